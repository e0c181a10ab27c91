"""Which channels stay: widths within a budget, and the best channels of each group."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from autosparse.channels.groups import Coupling, widths_of, without
from autosparse.channels.recipes import ChannelRecipe
from autosparse.channels.surgery import shrink_
from autosparse.channels.synexp import path_weights, synexp_widths
from autosparse.channels.widths import (
    ROUND_TO,
    Budget,
    Steps,
    best,
    fill,
    priorities_of_scores,
    priorities_of_widths,
    steps_of,
    wider_steps_of,
)
from autosparse.errors import AutoSparseError
from autosparse.measuring import Spread

#: From a network and its coupling to scores of the channels of every group, larger means keep.
Scoring = Callable[[nn.Module, Coupling], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Selection:
    """The widths of the groups, and which of their channels stay.

    Args:
        kept: ``None`` where all weights are drawn anew.
        latency: measured, over that of the dense network, where that was the budget.
    """

    widths: Mapping[str, int]
    kept: Mapping[str, np.ndarray] | None
    latency: Spread | None = None


def select_channels(
    model: nn.Module,
    coupling: Coupling,
    budgets: Sequence[Budget],
    recipe: ChannelRecipe,
    scoring: Scoring,
    round_to: int = ROUND_TO,
) -> Selection:
    """The channels that ``recipe`` keeps within the budgets; the model is left as it was.

    In rounds, the network is scored again without the channels that the last round removed; budgets go from all to
    their shares along the recipe's path.

    Raises:
        BudgetError: no widths meet a budget.
    """
    if recipe.spread == "global":
        kept = _by_scores(model, coupling, budgets, recipe, scoring, steps_of(coupling, round_to))
        return Selection(widths_of(kept), kept)
    wanted = _wanted(model, coupling, budgets, recipe)
    steps = wider_steps_of(coupling, wanted, round_to) if recipe.widen else steps_of(coupling, round_to)
    widths = fill(coupling, budgets, steps, priorities_of_widths(wanted, steps))
    return Selection(widths, None if recipe.criterion is None else best(coupling, scoring(model, coupling), widths))


def _by_scores(
    model: nn.Module,
    coupling: Coupling,
    budgets: Sequence[Budget],
    recipe: ChannelRecipe,
    scoring: Scoring,
    steps: Steps,
) -> dict[str, np.ndarray]:
    kept = {group.name: np.ones(group.width, dtype=bool) for group in coupling}
    paths = [recipe.at_init.densities(budget.share) for budget in budgets]
    for index, shares in enumerate(zip(*paths, strict=True)):
        small, left = model, coupling
        if index:
            small, left = copy.deepcopy(model), without(coupling, kept)
            shrink_(small, coupling, kept)
        found = scoring(small, left)
        _require_differences(found, recipe)
        scores = _at_full_width(kept, found)
        now = [replace(budget, share=share) for budget, share in zip(budgets, shares, strict=True)]
        kept = best(coupling, scores, fill(coupling, now, steps, priorities_of_scores(scores, steps)))
    return kept


def _require_differences(scores: Mapping[str, np.ndarray], recipe: ChannelRecipe) -> None:
    values = np.concatenate([*scores.values()])
    if len(values) > 1 and (values == values[0]).all():
        raise AutoSparseError(
            f"{recipe.criterion} gives every channel the same score here, so that nothing could be chosen: take "
            "another criterion, or one moment later (when), once the network has been trained"
        )


def _wanted(
    model: nn.Module, coupling: Coupling, budgets: Sequence[Budget], recipe: ChannelRecipe
) -> Mapping[str, float]:
    if recipe.spread == "uniform":
        return {name: float(width) for name, width in coupling.widths.items()}
    return synexp_widths(coupling, path_weights(model, coupling), budgets, widen=recipe.widen)


def _at_full_width(kept: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores of the channels that are left, at their places in the dense network; the others are never taken."""
    spread = {name: np.full(len(mask), -np.inf) for name, mask in kept.items()}
    for name, mask in kept.items():
        spread[name][mask] = scores[name]
    return spread
