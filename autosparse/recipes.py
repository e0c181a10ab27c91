"""Named methods: one line each that picks a value for every axis.

All methods here prune single weights at initialisation; a recipe names the criterion and the default budget.
"""

from __future__ import annotations

from dataclasses import dataclass

from autosparse.registry import Registry


@dataclass(frozen=True)
class Recipe:
    """What is important (a criterion) and how much is kept where (a budget)."""

    criterion: str
    budget: str = "global"


RECIPES: Registry[Recipe] = Registry("method")
RECIPES.add("autos", Recipe(criterion="autos"))
RECIPES.add("snip", Recipe(criterion="snip"))
RECIPES.add("magnitude", Recipe(criterion="magnitude"))
RECIPES.add("random", Recipe(criterion="random", budget="erk"))


def list_methods() -> list[str]:
    return RECIPES.names()
