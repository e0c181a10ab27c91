"""Which scorer a method takes: the one that was given, or the pretrained one of its use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autosparse.criteria import CRITERIA
from autosparse.recipes import Recipe, recipe_of
from autosparse.scorer.network import Scorer
from autosparse.scorer.store import DEFAULT_SCORERS, load_scorer

#: What budgets begin with that are the layer densities of another method.
LIKE = "like:"


def default_scorer(method: str, options: Mapping[str, Any], budget: str | None) -> str | None:
    """The pretrained scorer that ``method``, or the method of its budget, takes where none is given."""
    asked = [(recipe_of(method), options)]
    if (other := like_of(budget)) is not None:
        asked.append((recipe_of(other), {}))
    uses = [use_of(recipe, given) for recipe, given in asked if "scorer" in CRITERIA.get(recipe.criterion).needs]
    return DEFAULT_SCORERS[uses[0]] if uses else None


def like_of(budget: str | None) -> str | None:
    """The method whose layer densities ``budget`` asks for (``like:METHOD``), with its default options."""
    return budget.removeprefix(LIKE) if budget and budget.startswith(LIKE) else None


def use_of(recipe: Recipe, options: Mapping[str, Any]) -> str:
    """What a scorer is for, a key of :data:`autosparse.scorer.store.DEFAULT_SCORERS`."""
    return "steps" if recipe.criterion == "autos" and options.get("steps") else "weights"


def named_scorer(scorer: Scorer | str | Path | None, use: str) -> tuple[str, Scorer]:
    """A scorer and what to call it: one given in Python, a pretrained one or a file by name, or the default of a
    use (:data:`autosparse.scorer.store.DEFAULT_SCORERS`).
    """
    if isinstance(scorer, Scorer):
        return "(given in Python)", scorer
    loaded = load_scorer(scorer, use)
    return loaded.name, loaded.scorer
