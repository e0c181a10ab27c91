"""Exact selection: asked for k of N weights, keep exactly k."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal

import numpy as np
import torch
from torch import Tensor

from autosparse.budget.allocation import BUDGETS, Allocation, layer_counts
from autosparse.errors import AutoSparseError, BudgetError
from autosparse.indexing import places_of
from autosparse.layers import Layer, total_weights
from autosparse.masks import Masks

Scores = Mapping[str, Tensor]
_SAMPLE = 100_000  # values that give bounds for the largest of many
_SCATTER = 2_654_435_761  # a prime near 2^32 over the golden ratio


def density_of(sparsity: float) -> float:
    """The fraction kept, free of binary rounding: ``density_of(0.98) == 0.02``. BudgetError outside [0, 1)."""
    if not 0 <= sparsity < 1:
        raise BudgetError(f"sparsity {sparsity} is outside [0, 1): 0.98 keeps 2 % of the weights")
    return float(1 - Decimal(repr(float(sparsity))))


def keep_count(total: int, sparsity: float) -> int:
    """``round((1 - sparsity) * total)``; BudgetError when that is no weight at all."""
    count = round(density_of(sparsity) * total)
    if count == 0:
        raise BudgetError(
            f"sparsity {sparsity} keeps none of {total} weights: the largest useful one is {1 - 1 / total}"
        )
    return count


def check_scores(scores: Scores, layers: Sequence[Layer]) -> None:
    """AutoSparseError unless every layer has scores of its shape, none of them NaN."""
    for layer in layers:
        score = scores.get(layer.name)
        if score is None or tuple(score.shape) != layer.shape:
            found = None if score is None else list(score.shape)
            raise AutoSparseError(f"scores of '{layer.name}' have shape {found}, not {list(layer.shape)}")
        if bool(score.isnan().any()):
            raise AutoSparseError(
                f"scores of '{layer.name}' contain NaN: check the data and the loss, or choose another method"
            )


def top_k(values: Tensor, k: int) -> Tensor:
    """A bool tensor ``[n]`` with exactly ``k`` True at the largest of ``values [n]``; ties go to the lower index."""
    if k <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    if k >= values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    threshold = _kth_largest(values, k)
    kept = values >= threshold
    excess = int(kept.count_nonzero()) - k
    if excess:
        tied = places_of(values == threshold)
        kept[tied[len(tied) - excess :]] = False
    return kept


def _kth_largest(values: Tensor, k: int) -> Tensor:
    """The ``k``-th largest of ``values [n]``; of many, it is found among those between two sampled bounds."""
    if values.numel() > 2 * _SAMPLE:
        # Scattered: a stride would fall in step with kernels and channels.
        places = torch.arange(_SAMPLE, device=values.device) * _SCATTER % values.numel()
        sample = values[places]
        place = _SAMPLE * k / values.numel()
        slack = 4 * math.sqrt(place) + 16
        ranks = (max(0, int(place - slack)), min(_SAMPLE - 1, int(place + slack)))  # from the largest
        high, low = (sample.kthvalue(_SAMPLE - rank).values for rank in ranks)
        above = int((values > high).count_nonzero())
        between = values[places_of((values <= high) & (values >= low))]
        if above < k <= above + len(between):
            return between.kthvalue(len(between) - (k - above) + 1).values
    return values.kthvalue(values.numel() - k + 1).values


def floors(layers: Sequence[Layer], min_layer_density: float, keep: int) -> list[int]:
    """The least count a layer: ``ceil(min_layer_density * size)``; BudgetError when they need more than ``keep``."""
    least = [math.ceil(min_layer_density * layer.size - 1e-9) for layer in layers]
    if sum(least) > keep:
        raise BudgetError(
            f"a layer density of at least {min_layer_density} needs {sum(least)} weights, but only {keep} are kept: "
            f"ask for a sparsity of {_rounded_down(1 - sum(least) / total_weights(layers))} or less, or a smaller floor"
        )
    return least


def select(
    scores: Scores,
    layers: Sequence[Layer],
    keep: int,
    *,
    budget: str | Allocation = "global",
    min_layer_density: float = 0.0,
    least: Sequence[int] | None = None,
    within: Mapping[str, Tensor] | None = None,
    forced: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Masks that keep exactly ``keep`` weights with the largest scores under a budget rule.

    Args:
        scores: one tensor a layer, of the layer's shape; larger means keep.
        budget: ``global`` compares all weights with one threshold; any other registered rule fixes the count of each
            layer first and keeps the largest inside it. An allocation may be given itself.
        min_layer_density: at least this fraction of every layer is kept.
        least: at least so many weights are kept of each layer, ``keep`` together at most; or all that it may keep.
        within: bool tensors a layer; only these weights may be kept, so that successive selections are nested.
        forced: bool tensors a layer of weights that are kept before all others.

    Raises:
        AutoSparseError: a score tensor is missing, misshapen or NaN. BudgetError: the floors need more than ``keep``.
    """
    check_scores(scores, layers)
    allocate = BUDGETS.get(budget) if isinstance(budget, str) else budget
    flat = _flat(scores, layers)
    capacity = [layer.size for layer in layers]
    if within is not None:
        capacity = [int(within[layer.name].count_nonzero()) for layer in layers]
        flat = {
            layer.name: values if room == layer.size else _fill(values, ~within[layer.name], -math.inf)
            for layer, room, values in zip(layers, capacity, flat.values(), strict=True)
        }
    if keep > sum(capacity):
        raise BudgetError(f"cannot keep {keep} weights out of {sum(capacity)}")
    asked = least or [0] * len(layers)
    if sum(asked) > keep:
        raise BudgetError(f"the least of all layers are {sum(asked)} weights, but only {keep} are kept")
    both = zip(floors(layers, min_layer_density, keep), asked, capacity, strict=True)
    least = [min(max(floor, count), room) for floor, count, room in both]
    if forced is not None:
        least = [max(count, int(forced[layer.name].sum())) for count, layer in zip(least, layers, strict=True)]
        if sum(least) > keep:
            raise BudgetError(
                f"keeping every layer connected needs {sum(least)} weights, but only {keep} are kept: "
                "ask for a smaller sparsity"
            )
        flat = {name: _fill(values, forced[name], math.inf) for name, values in flat.items()}
    if allocate is not None:
        counts = _lift(allocated(layers, keep, allocate, capacity), least)
        kept = [top_k(flat[layer.name], count) for layer, count in zip(layers, counts, strict=True)]
    else:
        for layer, count in zip(layers, least, strict=True):
            if count:
                flat[layer.name] = _fill(flat[layer.name], top_k(flat[layer.name], count), math.inf)
        chosen = top_k(torch.cat([flat[layer.name] for layer in layers]), keep)
        kept = list(chosen.split([layer.size for layer in layers]))
    return Masks({layer.name: mask.reshape(layer.shape) for layer, mask in zip(layers, kept, strict=True)})


def budget_counts(
    layers: Sequence[Layer], keep: int, budget: str | Allocation, min_layer_density: float = 0.0
) -> dict[str, int] | None:
    """How many weights :func:`select` keeps in each layer; ``None`` where that depends on the scores."""
    allocate = BUDGETS.get(budget) if isinstance(budget, str) else budget
    if allocate is None:
        return None
    capacity = [layer.size for layer in layers]
    counts = _lift(allocated(layers, keep, allocate, capacity), floors(layers, min_layer_density, keep))
    return {layer.name: count for layer, count in zip(layers, counts, strict=True)}


def allocated(layers: Sequence[Layer], keep: int, allocate: Allocation, capacity: Sequence[int]) -> list[int]:
    sizes = np.array([layer.size for layer in layers], dtype=float)
    return layer_counts(capacity, allocate(layers, keep / total_weights(layers)) * sizes, keep)


def _flat(scores: Scores, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Scores of each layer in one row, on one device, in float64 if any of them are and in float32 otherwise.

    Infinities are kept for weights that may not or must be kept: scores come next to them, never level.
    """
    device = scores[layers[0].name].device
    wide = any(scores[layer.name].dtype is torch.float64 for layer in layers)
    dtype = torch.float64 if wide else torch.float32
    largest = torch.finfo(dtype).max
    return {
        layer.name: scores[layer.name].detach().reshape(-1).to(device, dtype).clamp(-largest, largest)
        for layer in layers
    }


def _rounded_down(sparsity: float) -> float:
    return math.floor(sparsity * 1e6) / 1e6


def _fill(values: Tensor, mask: Tensor, value: float) -> Tensor:
    return values.masked_fill(mask.reshape(-1).to(values.device), value)


def _lift(counts: list[int], least: list[int]) -> list[int]:
    """Raise counts to their floors and take what that costs from the layers that have most above theirs."""
    lifted = [max(count, floor) for count, floor in zip(counts, least, strict=True)]
    surplus = sum(lifted) - sum(counts)
    if not surplus:
        return lifted
    spare = [count - floor for count, floor in zip(lifted, least, strict=True)]
    taken = layer_counts(spare, np.array(spare) * (surplus / sum(spare)), surplus)
    return [count - take for count, take in zip(lifted, taken, strict=True)]
