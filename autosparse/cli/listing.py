"""``autosparse list``: what there is."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from autosparse.cli.options import console, help_text
from autosparse.criteria import CRITERIA
from autosparse.data import list_datasets
from autosparse.errors import UnknownNameError
from autosparse.models import list_models
from autosparse.recipes import list_methods, recipe_of
from autosparse.scorer.store import DEFAULT_SCORER, list_scorers, load_scorer
from autosparse.triggers.init import AtInit

_MOMENTS = ["at init", "early in training", "during training", "after training", "in rounds of training"]


def register(app: typer.Typer) -> None:
    app.command("list", help=help_text(list_command))(list_command)


def list_command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="models, datasets, criteria, methods or scorers.")],
) -> None:
    """List models, datasets, criteria, methods or pretrained scorers."""
    listings = {
        "models": _models,
        "datasets": _datasets,
        "criteria": _criteria,
        "methods": _methods,
        "scorers": _scorers,
    }
    if kind not in listings:
        raise UnknownNameError("kind of list", kind, listings)
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


def _scorers() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("name", "features", "learned from", "held-out Spearman")]
    for name in list_scorers():
        card = load_scorer(name).card
        sources = ", ".join(source["run"] for source in card.get("sources", []))
        rank = card.get("held_out", {}).get("figures", {}).get("scorer", {}).get("spearman")
        label = f"{name} (default)" if name == DEFAULT_SCORER else name
        rows.append((label, card["features"], sources, "" if rank is None else f"{rank:.3f}"))
    return rows
