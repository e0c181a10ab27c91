"""Which weights stay: score, select, and where the method says so, do it again on what is left."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autosparse.budget import Allocation, budget_counts, following, select
from autosparse.collapse import CollapseWarning
from autosparse.criteria import Scores, score
from autosparse.errors import AutoSparseError
from autosparse.granularity import Blocks
from autosparse.layers import Layer, layers_of, prunable, total_weights
from autosparse.masks import Masks
from autosparse.paths import select_on_paths
from autosparse.triggers.init import ONE_SHOT, AtInit


@dataclass(frozen=True)
class Choice:
    """How masks are chosen: a criterion with its options, rounds, a granularity and a budget.

    Args:
        invert: keep the smallest scores instead of the largest.
        on_paths: keep only weights on a path from input to output (:mod:`autosparse.paths`); needs ``batches``.
        paths_needed: raise an error where paths cannot be found; otherwise do without, with a warning.
    """

    criterion: str
    options: Mapping[str, Any] = field(default_factory=dict)
    when: AtInit = ONE_SHOT
    budget: str | Allocation = "global"
    blocks: Blocks | None = None
    min_layer_density: float = 0.0
    invert: bool = False
    on_paths: bool = False
    paths_needed: bool = True


def choose(
    model: nn.Module, choice: Choice, keep: int, *, gradients: Mapping[str, Tensor] | None = None, **ingredients: Any
) -> tuple[Masks, Scores]:
    """Masks that keep exactly ``keep`` weights, and the scores of the last round; the model is as it was.

    Args:
        gradients: the mean gradient at the current weights where it is known already.
        ingredients: what the criterion may ask for, as in :func:`autosparse.criteria.score`.
    """
    layers, weights = layers_of(model), prunable(model)
    total = total_weights(layers)
    way = [max(keep, round(density * total)) for density in choice.when.densities(keep / total)[:-1]] + [keep]
    dense = {name: weight.detach() if len(way) == 1 else weight.detach().clone() for name, weight in weights.items()}
    masks: Masks | None = None
    scores: Scores = {}
    try:
        for index, count in enumerate(way):
            if masks is not None:
                _restore(weights, dense)
                masks.apply(model)
            found = score(
                choice.criterion,
                model,
                options=choice.options,
                gradients=None if index else gradients,
                dense=dense,
                masks=masks,
                keep=count,
                counts=_counts(choice, layers, count),
                **ingredients,
            )
            scores = {name: -value for name, value in found.items()} if choice.invert else found
            within = None if choice.when.regrow else masks
            if choice.on_paths:
                x = ingredients["batches"][0][0].to(next(iter(weights.values())).device)
                masks = _select_on_paths(choice, model, scores, layers, count, x, within)
            else:
                masks = _select(choice, scores, layers, count, within)
    finally:
        if len(way) > 1:
            _restore(weights, dense)
    assert masks is not None  # there is at least one round
    return masks, scores


def _select_on_paths(
    choice: Choice,
    model: nn.Module,
    scores: Scores,
    layers: Sequence[Layer],
    count: int,
    x: Tensor,
    within: Masks | None,
) -> Masks:
    budget, floor = choice.budget, choice.min_layer_density
    try:
        return select_on_paths(model, scores, layers, count, x, budget=budget, min_layer_density=floor, within=within)
    except AutoSparseError as error:
        if choice.paths_needed:
            raise
        masks = _select(choice, scores, layers, count, within)  # what is wrong with more than paths is told here
        warnings.warn(f"{error}; some weights may be kept in vain", CollapseWarning, stacklevel=2)
        return masks


def _select(choice: Choice, scores: Scores, layers: Sequence[Layer], count: int, within: Masks | None) -> Masks:
    if choice.blocks is None:
        settings = {"budget": choice.budget, "min_layer_density": choice.min_layer_density}
        return select(scores, layers, count, within=within, **settings)  # type: ignore[arg-type]
    # Every block keeps its best; in rounds before the last, when more is kept, the others compete for the rest.
    alive = scores if within is None else {name: s.masked_fill(~within[name], -math.inf) for name, s in scores.items()}
    return select(scores, layers, count, within=within, forced=choice.blocks.best(alive, layers))


def _counts(choice: Choice, layers: Sequence[Layer], keep: int) -> dict[str, int] | None:
    if choice.blocks is not None:
        counts = choice.blocks.counts(layers)
        return counts if sum(counts.values()) == keep else None
    return budget_counts(layers, keep, choice.budget, choice.min_layer_density)


def like(masks: Masks) -> Allocation:
    """The layer densities of ``masks`` as a budget (:func:`autosparse.budget.following`)."""
    return following(np.array(list(masks.layer_densities().values())), masks.density)


@torch.no_grad()
def _restore(weights: Mapping[str, nn.Parameter], dense: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        weight.copy_(dense[name])
