"""Masks without waste: every kept weight lies on a path from input to output.

A weight that gets no signal, or whose signal gets nowhere, counts as kept and does nothing. The density without such
weights is the *effective* one (Vysogorets & Kempe 2023, arXiv 2107.02306): below 1 % the two are far apart for masks
that choose weights one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from autosparse.budget import Allocation, select
from autosparse.budget.selection import top_k
from autosparse.connectivity import connecting_weights, flow_through, in_float64, useful_weights
from autosparse.layers import Layer
from autosparse.masks import Masks

_LITTLE = 0.02  # of the weights may be wasted where the scores alone select
_STEP = 0.8  # of the weights stay in one selection: what it strands is seen before the next


def on_paths(model: nn.Module, masks: Masks, x: Tensor) -> Masks:
    """The weights of ``masks`` that lie on a path of kept weights from input to output.

    Args:
        x: a batch of inputs; only its shape and device are used.

    Raises:
        RuntimeError: the model cannot be evaluated in float64.
    """
    return _both(masks, useful_weights(model, masks, x))


def select_on_paths(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    layers: Sequence[Layer],
    keep: int,
    x: Tensor,
    *,
    budget: str | Allocation = "global",
    min_layer_density: float = 0.0,
    within: Masks | None = None,
) -> Masks:
    """As :func:`autosparse.budget.select`, with every kept weight on a path from input to output.

    The scores alone select down to the least of ``keep``, 2 ``keep``, 4 ``keep``, ... that wastes next to nothing. From
    there weights go a fifth at a time, first those that are wasted and then those of the lowest scores; no layer loses
    more than half at once. What the last selection strands is exchanged for the best weights that join what is left.
    Where the scores would cut the network, those go through which least flows (as SynFlow's do, arXiv 2006.05467).
    Every selection costs one backward pass of one image, or three.

    Exceptions are networks with so few weights that not even these steps find as many on paths: some are wasted then,
    and at worst one path through every layer is kept.

    Args:
        x: a batch of inputs; only its shape and device are used.
        within: the weights to choose from.

    Raises:
        AutoSparseError: the model cannot be evaluated in float64. Others as :func:`autosparse.budget.select`.
    """
    with in_float64(f"find the paths of {type(model).__name__}", "switch on-paths off"):
        return _selected(model, scores, layers, keep, x, budget, min_layer_density, within)


def _selected(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    layers: Sequence[Layer],
    keep: int,
    x: Tensor,
    budget: str | Allocation,
    min_layer_density: float,
    within: Masks | None,
) -> Masks:

    def chosen(count: int, allowed: Masks, forced: Mapping[str, Tensor] | None = None) -> Masks:
        return select(
            scores, layers, count, budget=budget, min_layer_density=min_layer_density, within=allowed, forced=forced
        )

    masks = Masks.dense(model) if within is None else within
    live = on_paths(model, masks, x)
    steps = [(masks, live)]  # what was left after each selection
    allowed, count = (live if live.kept >= keep else masks), keep
    while count < allowed.kept:  # from the density on that is wasted in earnest, more care is needed
        masks = chosen(count, allowed)
        live = on_paths(model, masks, x)
        if live.kept >= (1 - _LITTLE) * count:
            steps.append((masks, live))
            break
        count *= 2
    masks, live = steps[-1]
    for count in _way(masks.kept, keep):
        allowed = live if live.kept >= count else masks
        masks = chosen(count, allowed, _best_half(scores, allowed, count))
        live = on_paths(model, masks, x)
        if not live.kept:
            masks = select(flow_through(model, allowed, x), layers, count, within=allowed)
            live = on_paths(model, masks, x)
        steps.append((masks, live))
    best, most = masks, 0
    for masks, live in reversed(steps):  # the later, the more of it the scores have decided
        if masks.kept > keep:
            masks = _by_flow(model, layers, keep, x, masks)
            live = on_paths(model, masks, x)
        if live.kept == keep:
            return masks
        # What is useful to live weights alone: each makes a path with them, so none is wasted whichever are chosen.
        room = Masks(useful_weights(model, live, x))
        if live.kept and room.kept >= keep:
            return chosen(keep, room, live)
        if live.kept >= most:
            best, most = masks, live.kept
    if most:
        return best
    return chosen(keep, steps[0][0], connecting_weights(model, best, scores, x))


def _by_flow(model: nn.Module, layers: Sequence[Layer], keep: int, x: Tensor, masks: Masks) -> Masks:
    for count in _way(masks.kept, keep):
        masks = select(flow_through(model, masks, x), layers, count, within=masks)
    return masks


def _best_half(scores: Mapping[str, Tensor], masks: Masks, keep: int) -> dict[str, Tensor]:
    """Of every layer the half with the highest scores: it must not vanish at once. At least one, if ``keep`` allows."""
    halves = {name: math.ceil(int(mask.sum()) / 2) for name, mask in masks.items()}
    if sum(halves.values()) > keep:
        halves = {name: int(mask.sum()) // 2 for name, mask in masks.items()}
    found = {}
    for name, mask in masks.items():
        values = scores[name].flatten().to(mask.device).masked_fill(~mask.flatten(), -math.inf)
        found[name] = top_k(values, halves[name]).reshape(mask.shape)
    return found


def _way(first: int, last: int) -> list[int]:
    """How many weights are left after each selection; nothing when there are no more than ``last``."""
    rounds = max(int(first > last), math.ceil(math.log(last / first) / math.log(_STEP)))
    return [max(last, round(first * (last / first) ** (index / rounds))) for index in range(1, rounds + 1)]


def _both(masks: Masks, others: Mapping[str, Tensor]) -> Masks:
    return Masks({name: mask & others[name].to(mask.device) for name, mask in masks.items()})
