"""``autosparse list``: what there is."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from typing import Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autosparse.cli.options import console, help_text
from autosparse.criteria import CRITERIA
from autosparse.data import list_datasets
from autosparse.errors import UnknownNameError
from autosparse.models import list_models
from autosparse.recipes import list_methods, recipe_of
from autosparse.scorer.store import DEFAULT_SCORER, list_scorers, load_scorer
from autosparse.triggers.init import AtInit

_MOMENTS = ["at init", "early in training", "during training", "after training", "in rounds of training"]


_ENTRY = re.compile(r"^ {4}\w[\w, ]*:")


def register(app: typer.Typer) -> None:
    app.command("list", help=help_text(list_command))(list_command)


def list_command(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="models, datasets, criteria, methods or scorers; or a method's name."),
    ],
) -> None:
    """List models, datasets, criteria, methods or pretrained scorers; or all about one method and its options."""
    listings = {
        "models": _models,
        "datasets": _datasets,
        "criteria": _criteria,
        "methods": _methods,
        "scorers": _scorers,
    }
    if kind in list_methods():
        _explain(kind)
        return
    if kind not in listings:
        raise UnknownNameError("kind of list or method", kind, [*listings, *list_methods()])
    rows = listings[kind]()
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    for title in rows[0]:
        table.add_column(title, overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def _models() -> list[tuple[str, ...]]:
    elsewhere = [
        ("torchvision:NAME", "any classifier of torchvision, such as torchvision:resnet50"),
        ("timm:NAME", "any model of timm (pip install 'autosparse[timm]')"),
        ("package.module:factory", "your own function or class"),
    ]
    return [("name", "what"), *((name, "CIFAR variant; takes width=") for name in list_models()), *elsewhere]


def _datasets() -> list[tuple[str, ...]]:
    what = {
        "digits": "1,797 grey 8x8 digits, embedded: needs no download",
        "fashion-mnist": "70,000 grey 28x28 images, downloaded on first use",
        "cifar10": "60,000 colour 32x32 images, 10 classes, downloaded on first use",
        "cifar100": "60,000 colour 32x32 images, 100 classes, downloaded on first use",
        "imagefolder:PATH": "a folder or .tar(.gz) of train/CLASS/* and test/CLASS/* or val/CLASS/*",
    }
    return [("name", "what"), *((name, what.get(name, "")) for name in list_datasets())]


def _criteria() -> list[tuple[str, ...]]:
    return [("name", "score of a weight", "source"), *((n, c.summary, c.paper) for n, c in CRITERIA.items())]


def _methods() -> list[tuple[str, ...]]:
    """Methods in groups by the moment at which they prune."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for name in list_methods():
        recipe = recipe_of(name)
        budget = [] if recipe.budget == "global" else [f"{recipe.budget} budget"]
        rounds = [f"{recipe.when.rounds} rounds"] if isinstance(recipe.when, AtInit) and recipe.when.rounds > 1 else []
        how = f" ({', '.join([*rounds, *budget])})" if rounds or budget else ""
        line = f"{recipe.line.removesuffix('.')}{how}. {recipe.source}".strip()
        groups.setdefault(recipe.moment.partition(",")[0], []).append((f"  {name}", line))
    rows = [[(moment, ""), *groups[moment]] for moment in sorted(groups, key=_MOMENTS.index)]
    return [("name", "what it does, and where it comes from"), *(row for group in rows for row in group)]


def _explain(name: str) -> None:
    """What a method computes, and the options that ``--method-arg`` sets, with their defaults."""
    recipe = recipe_of(name)
    criterion = CRITERIA.get(recipe.criterion)
    console.print(f"[bold]{name}[/bold]: {recipe.line} {recipe.source}", highlight=False)
    console.print(f"prunes {recipe.moment}, {recipe.budget} budget, criterion {recipe.criterion}\n", highlight=False)
    moment = {f.name: getattr(recipe.when, f.name) for f in fields(recipe.when)}
    for title, options, text in (
        (f"Criterion {criterion.name}", criterion.options, criterion.function.__doc__),
        ("When", moment, type(recipe.when).__doc__),
    ):
        console.print(f"[bold]{title}[/bold]")
        for line in _reflowed(text or ""):
            console.print(Padding(Text(line.lstrip()), (0, 0, 0, len(line) - len(line.lstrip()))))
        defaults = ", ".join(f"{key}={value}" for key, value in options.items())
        console.print(f"\nOptions: {defaults or 'none'}\n", highlight=False, markup=False)


def _reflowed(docstring: str) -> list[str]:
    """Paragraphs and entries of a docstring, a line each, for the terminal to wrap."""
    lines: list[str] = []
    for line in inspect.cleandoc(docstring).splitlines():
        begins = not lines or not lines[-1] or not line or _ENTRY.match(line) or lines[-1].endswith(":")
        lines = [*lines, line] if begins else [*lines[:-1], f"{lines[-1]} {line.strip()}"]
    return lines


def _scorers() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("name", "features", "learned from", "held-out Spearman")]
    for name in list_scorers():
        card = load_scorer(name).card
        sources = ", ".join(source["run"] for source in card.get("sources", []))
        rank = card.get("held_out", {}).get("figures", {}).get("scorer", {}).get("spearman")
        label = f"{name} (default)" if name == DEFAULT_SCORER else name
        rows.append((label, card["features"], sources, "" if rank is None else f"{rank:.3f}"))
    return rows
