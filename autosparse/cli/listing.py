"""``autosparse list``: what there is."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autosparse.channels.criteria import CHANNEL_CRITERIA
from autosparse.channels.recipes import CHANNEL_RECIPES, channel_recipe_of, list_channel_methods
from autosparse.cli.options import console, help_text
from autosparse.criteria import CRITERIA, Criterion
from autosparse.data import list_datasets
from autosparse.errors import UnknownNameError
from autosparse.models import list_models
from autosparse.recipes import list_methods, recipe_of
from autosparse.scorer.store import DEFAULT_SCORERS, list_scorers, load_scorer
from autosparse.triggers.init import AtInit

_MOMENTS = ["at init", "early in training", "during training", "after training", "in rounds of training"]
_WEIGHTS, _CHANNELS = "weights", "channels"

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
    methods = [*list_methods(), *list_channel_methods()]
    if kind in methods:
        _explain(kind)
        return
    if kind not in listings:
        raise UnknownNameError("kind of list or method", kind, [*listings, *methods])
    rows = listings[kind]()
    table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
    for column, title in enumerate(rows[0]):
        table.add_column(title, overflow="fold", no_wrap=column == 0)  # names are there to be copied
    for row in rows[1:]:
        table.add_row(*map(Text, row))  # brackets are no markup
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
    rows = [(n, _WEIGHTS, c.summary, c.paper) for n, c in CRITERIA.items()]
    rows += [(n, _CHANNELS, c.summary, c.paper) for n, c in CHANNEL_CRITERIA.items()]
    return [("name", "scores", "score", "source"), *rows]


def _methods() -> list[tuple[str, ...]]:
    """Methods in groups by what they remove and the moment at which they prune."""
    groups: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for name in list_methods():
        recipe = recipe_of(name)
        how = [_rounds(recipe.when), "" if recipe.budget == "global" else f"{recipe.budget} budget"]
        row = _method_row(name, recipe.line, how, recipe.source)
        groups.setdefault((_WEIGHTS, recipe.moment.partition(",")[0]), []).append(row)
    for name in list_channel_methods():
        channels = channel_recipe_of(name)
        row = _method_row(name, channels.line, [_rounds(channels.when)], channels.source)
        groups.setdefault((_CHANNELS, channels.moment.partition(",")[0]), []).append(row)
    order = sorted(groups, key=lambda group: (group[0] == _CHANNELS, _MOMENTS.index(group[1])))
    rows = [[(f"{where} {moment}", ""), *groups[where, moment]] for where, moment in order]
    return [("name", "what it does, and where it comes from"), *(row for group in rows for row in group)]


def _rounds(when: object) -> str:
    return f"{when.rounds} rounds" if isinstance(when, AtInit) and when.rounds > 1 else ""


def _method_row(name: str, line: str, details: list[str], source: str) -> tuple[str, ...]:
    how = ", ".join(detail for detail in details if detail)
    return f"  {name}", f"{line.removesuffix('.')}{f' ({how})' if how else ''}. {source}".strip()


def _explain(name: str) -> None:
    """What a method computes, and the options that ``--method-arg`` sets, with their defaults."""
    if name in CHANNEL_RECIPES:
        channels = channel_recipe_of(name)
        criterion = CHANNEL_CRITERIA.get(channels.criterion) if channels.criterion else None
        how = f"removes channels {channels.moment}, spread {channels.spread}"
        _print_method(name, channels.line, channels.source, how, criterion, channels.when)
    else:
        recipe = recipe_of(name)
        how = f"prunes weights {recipe.moment}, {recipe.budget} budget"
        _print_method(name, recipe.line, recipe.source, how, CRITERIA.get(recipe.criterion), recipe.when)


def _print_method(name: str, line: str, source: str, how: str, criterion: Criterion[Any] | None, when: Any) -> None:
    console.print(f"[bold]{name}[/bold]: {line} {source}", highlight=False)
    console.print(f"{how}, criterion {criterion.name if criterion else 'none'}\n", highlight=False)
    moment = {f.name: getattr(when, f.name) for f in fields(when)}
    parts = [("When", moment, type(when).__doc__)]
    if criterion:
        parts.insert(0, (f"Criterion {criterion.name}", dict(criterion.options), criterion.function.__doc__))
    for title, options, text in parts:
        console.print(f"[bold]{title}[/bold]")
        for part in _reflowed(text or ""):
            console.print(Padding(Text(part.lstrip()), (0, 0, 0, len(part) - len(part.lstrip()))))
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
    rows: list[tuple[str, ...]] = [("name", "default for", "features", "learned from", "held-out Spearman")]
    for name in list_scorers():
        card = load_scorer(name).card
        tasks = card.get("search", {}).get("tasks", [])
        runs = [source["run"] for source in card.get("sources", [])]
        sources = ", ".join(runs or dict.fromkeys(task["model"] for task in tasks))
        rank = card.get("held_out", {}).get("figures", {}).get("scorer", {}).get("spearman")
        uses = " and ".join(use for use, default in DEFAULT_SCORERS.items() if default == name)
        rows.append((name, uses, card["features"], sources, "" if rank is None else f"{rank:.3f}"))
    return rows
