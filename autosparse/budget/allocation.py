"""Layer densities: how a total count is spread over the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from autosparse.errors import BudgetError
from autosparse.layers import Layer
from autosparse.registry import Registry

#: From the layers and the overall density to one density a layer (a value above 1 asks for a dense layer).
#: ``None`` stands for one threshold over the whole network.
Allocation = Callable[[Sequence[Layer], float], np.ndarray]
BUDGETS: Registry[Allocation | None] = Registry("budget")
BUDGETS.add("global", None)


def list_budgets() -> list[str]:
    return BUDGETS.names()


@BUDGETS.register("uniform")
def uniform(layers: Sequence[Layer], density: float) -> np.ndarray:
    """The same density in every layer."""
    return np.full(len(layers), density)


@BUDGETS.register("erk")
def erdos_renyi_kernel(layers: Sequence[Layer], density: float) -> np.ndarray:
    """Density proportional to (sum of a layer's dimensions) / (their product), clipped at 1.

    Evci et al. 2020, arXiv 1911.11134 ("ERK"). Layers that would exceed density 1 stay dense and the rest of the
    count is spread over the others, again until nothing exceeds 1.
    """
    size = np.array([layer.size for layer in layers], dtype=float)
    raw = np.array([sum(layer.shape) / layer.size for layer in layers])
    wanted = density * size.sum()
    dense = np.zeros(len(layers), dtype=bool)
    while not dense.all():
        scale = (wanted - size[dense].sum()) / (raw * size)[~dense].sum()
        over = ~dense & (scale * raw > 1)
        if not over.any():
            return np.where(dense, 1.0, scale * raw)
        dense |= over
    return np.ones(len(layers))


@BUDGETS.register("synexp")
def synexp_optimal(layers: Sequence[Layer], density: float) -> np.ndarray:
    """The densities that maximise the sum of their logarithms: every layer keeps the same number of weights, or all.

    PreCrop (arXiv 2203.02549) maximises the expected SynFlow score, whose logarithm is that sum up to a constant. With
    multiplier 1/K of the budget, the optimum is p_l = min(1, K / size_l): the water level K that fills the budget.
    """
    sizes = np.sort(np.array([layer.size for layer in layers], dtype=float))
    wanted = density * sizes.sum()
    below = np.concatenate([[0.0], np.cumsum(sizes)])  # the weights of the smallest layers
    levels = (wanted - below[:-1]) / np.arange(len(sizes), 0, -1)
    full = np.flatnonzero(levels <= sizes)  # the first layer that the level does not fill
    level = levels[full[0]] if len(full) else sizes[-1]
    return np.minimum(1.0, level / np.array([layer.size for layer in layers]))


def following(densities: np.ndarray, overall: float) -> Allocation:
    """These layer densities, of a network of density ``overall``; at another one d', layer l gets its own to the power
    log d' / log d, so that nested densities follow one another.
    """

    def allocate(layers: Sequence[Layer], density: float) -> np.ndarray:
        power = 1.0 if overall in (density, 1.0) else math.log(density) / math.log(overall)
        return densities**power

    return allocate


def layer_counts(capacity: Sequence[int], wanted: np.ndarray, keep: int) -> list[int]:
    """Whole counts a layer, summing to ``keep``, that follow fractional counts ``wanted`` within each ``capacity``.

    Fractions are settled by largest remainder, the earlier layer first on a tie; what a full layer cannot take goes
    to the others.
    """
    limit = np.asarray(capacity, dtype=np.int64)
    if keep > limit.sum():
        raise BudgetError(f"cannot keep {keep} weights out of {limit.sum()}")
    clipped = np.minimum(wanted, limit)
    if clipped.sum() < keep - 0.5:  # full layers pass their share on, in proportion to what the others have left
        clipped = clipped + (limit - clipped) * (keep - clipped.sum()) / (limit - clipped).sum()
    counts = np.floor(clipped + 1e-9).astype(np.int64)
    order = np.argsort(-(clipped - counts), kind="stable")
    while (missing := keep - int(counts.sum())) != 0:
        step = 1 if missing > 0 else -1
        movable = [i for i in order if 0 <= counts[i] + step <= limit[i]]
        for i in movable[: abs(missing)]:
            counts[i] += step
    return counts.tolist()
