"""From scores or wanted widths to whole widths within a budget.

A group grows in steps: from one channel (or the first multiple of the rounding) up to its full width. Every step has a
priority, the steps of all groups are taken in the order of their priorities, and one that would exceed a budget ends
its group's growth. What is left of a budget in the end is less than the smallest step that was refused.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autosparse.channels.costs import Bilinear, Costs
from autosparse.channels.groups import ChannelGroup, Coupling
from autosparse.errors import AutoSparseError, BudgetError

#: Channel counts are multiples of this: what matrix units like, and torch-pruning's advice.
ROUND_TO = 8
_NARROW, _CHOICES = 64, 8  # a group of fewer channels is rounded less, so that it has so many widths to choose from


@dataclass(frozen=True)
class Budget:
    """``cost(widths) <= share * cost(full widths)``.

    Args:
        name: what is counted, for messages: channels, parameters, FLOPs.
    """

    name: str
    cost: Bilinear
    share: float

    def __post_init__(self) -> None:
        check_share(self.name, self.share)


def check_share(name: str, share: float) -> None:
    """BudgetError unless ``share`` is in (0, 1]."""
    if not 0 < share <= 1:
        raise BudgetError(f"{name} of {share} is outside (0, 1]: 0.5 keeps half of them")


def channel_count(coupling: Coupling) -> Bilinear:
    """The number of coupled channels as a cost."""
    groups = len(coupling)
    left = np.zeros((1, 1 + groups))
    right = np.ones((1, 1 + groups))
    left[0, 0], right[0, 0] = 1.0, 0.0
    return Bilinear(tuple(coupling.widths), np.ones(1), left, right)


def budgets_of(
    coupling: Coupling,
    costs: Costs,
    *,
    channels: float | None = None,
    params: float | None = None,
    flops: float | None = None,
) -> list[Budget]:
    """The budgets that are given, as shares of the dense network; BudgetError for one outside (0, 1]."""
    given = [
        ("channels", channel_count(coupling), channels),
        ("parameters", costs.params, params),
        ("FLOPs", costs.flops, flops),
    ]
    return [Budget(name, cost, share) for name, cost, share in given if share is not None]


#: For groups by name, the widths that they may have, ascending.
Steps = Mapping[str, np.ndarray]


def steps_of(coupling: Coupling, round_to: int = ROUND_TO) -> dict[str, np.ndarray]:
    """The widths that every group may have up to its full width, which is one of them.

    They are multiples of ``round_to`` outputs. A group of fewer than 64 channels takes a power of two that leaves it
    eight widths, if that is smaller.
    """
    found = {}
    for group in coupling:
        block = _block(group, round_to)
        found[group.name] = np.array([*range(block, group.width, block), group.width])
    return found


def wider_steps_of(coupling: Coupling, wanted: Mapping[str, float], round_to: int = ROUND_TO) -> dict[str, np.ndarray]:
    """The widths that every group may have when it may also grow: up to twice what is ``wanted``."""
    found = {}
    for group in coupling:
        block = _block(group, round_to)
        found[group.name] = np.arange(1, max(1, math.ceil(2 * wanted[group.name] / block)) + 1) * block
    return found


def _block(group: ChannelGroup, round_to: int) -> int:
    if round_to < 1:
        raise AutoSparseError(f"round-to is {round_to}: give 1 or more")
    block = math.lcm(round_to, group.unit) // group.unit
    if group.width < _NARROW:
        block = min(block, 2 ** int(math.log2(max(1, group.width / _CHOICES))))
    return min(block, group.width)


def priorities_of_scores(scores: Mapping[str, np.ndarray], steps: Steps) -> dict[str, np.ndarray]:
    """The priority of each step: the mean score of the channels that it adds, the best ones first."""
    found = {}
    for name, ends in steps.items():
        values = np.sort(scores[name])[::-1]
        if values.shape != (ends[-1],) or np.isnan(values).any():
            raise AutoSparseError(
                f"scores of channel group '{name}' are not {ends[-1]} numbers: the criterion is at fault"
            )
        found[name] = np.array([part.mean() for part in np.split(values, ends[:-1])])
    return found


def priorities_of_widths(wanted: Mapping[str, float], steps: Steps) -> dict[str, np.ndarray]:
    """The priority of each step when every group is to come near a wanted width: wanted / width after the step.

    All groups then keep about the same ratio to what they want, which is how seats are shared out by d'Hondt.
    """
    return {name: wanted[name] / ends for name, ends in steps.items()}


def fill(
    coupling: Coupling, budgets: Sequence[Budget], steps: Steps, priorities: Mapping[str, np.ndarray]
) -> dict[str, int]:
    """Widths that take the steps of highest priority within all ``budgets``; the first step of a group is given.

    Args:
        priorities: for each group an array as long as its steps, descending; a step of -inf is never taken. On a tie
            the earlier group comes first.

    Raises:
        BudgetError: the first steps cost more than a budget; says what they cost.
    """
    names = list(coupling.widths)
    full = np.array([*coupling.widths.values()], dtype=np.float64)
    widths = np.array([steps[name][0] for name in names], dtype=np.float64)
    limits = [budget.share * budget.cost.at(full) * (1 + 1e-12) for budget in budgets]
    for budget, limit in zip(budgets, limits, strict=True):
        least = budget.cost.at(widths)
        if least > limit:
            raise BudgetError(
                f"{budget.name} of {budget.share:.4g} cannot be reached: the narrowest network has "
                f"{least / budget.cost.at(full):.4g} of them" + (" (see --round-to)" if widths.max() > 1 else "")
            )
    queue: list[tuple[float, int, int]] = []

    def offer(index: int, step: int) -> None:
        name = names[index]
        if step < len(steps[name]) and priorities[name][step] > -np.inf:
            heapq.heappush(queue, (-float(priorities[name][step]), index, step))

    for index in range(len(names)):
        offer(index, 1)
    while queue:
        _, index, step = heapq.heappop(queue)
        before, widths[index] = widths[index], steps[names[index]][step]
        if any(budget.cost.at(widths) > limit for budget, limit in zip(budgets, limits, strict=True)):
            widths[index] = before
        else:
            offer(index, step + 1)
    return dict(zip(names, widths.astype(int).tolist(), strict=True))


def best(coupling: Coupling, scores: Mapping[str, np.ndarray], widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Which channels stay: the ``widths`` best of each group, the earlier one first on a tie."""
    kept = {}
    for group in coupling:
        order = np.argsort(-scores[group.name], kind="stable")
        kept[group.name] = np.zeros(group.width, dtype=bool)
        kept[group.name][order[: widths[group.name]]] = True
    return kept
