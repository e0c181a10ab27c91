"""A budget of measured latency: the largest share of something countable whose network is fast enough here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from autosparse.errors import BudgetError
from autosparse.measuring import Spread

_NEAR = 0.02  # of the budget: a network that is so little faster than it may be ends the search
_FINEST = 0.004  # of the dense network: shares that are closer are not told apart
_ROUNDS = 10
_MARGIN = 0.1  # of what is left between slow and fast enough: guesses stay so far from both


@dataclass(frozen=True)
class Trial:
    """A network whose latency was measured.

    Args:
        share: of what is searched along, as it was asked for.
        latency: over that of the dense network.
    """

    share: float
    widths: Mapping[str, int]
    latency: Spread


def search(
    target: float,
    narrowest: Trial,
    widest: Trial,
    widths_at: Callable[[float], Mapping[str, int]],
    measure: Callable[[Mapping[str, int]], Spread],
) -> Trial:
    """The largest network found whose median latency is at most ``target``.

    Latency is taken to grow with the share, about linearly: each guess interpolates between the largest network that
    was fast enough and the smallest that was not. Networks of equal widths are measured once. What is found is measured
    again, for on a busy machine a network may look fast by chance; if it was chance, the next smaller one is taken.

    Args:
        narrowest, widest: the ends of the search.
        widths_at: the widths of the network with a share.
        measure: the latency of the network with these widths over that of the dense one, anew at each call.

    Raises:
        BudgetError: not even ``narrowest`` is fast enough.
    """
    if narrowest.latency.median > target:
        raise BudgetError(
            f"latency of {target:.4g} cannot be reached: the narrowest network takes {narrowest.latency.median:.3g} of "
            "the dense network's time here (another batch size may gain more)"
        )
    if widest.latency.median <= target:
        return widest
    fast, slow = narrowest, widest
    fast_enough = [narrowest]
    for _ in range(_ROUNDS):
        room = slow.share - fast.share
        if fast.latency.median >= (1 - _NEAR) * target or room < _FINEST:
            break
        rise = slow.latency.median - fast.latency.median
        way = (target - fast.latency.median) / rise
        share = fast.share + min(max(way, _MARGIN), 1 - _MARGIN) * room
        widths = widths_at(share)
        known = next((trial.latency for trial in (fast, slow) if trial.widths == widths), None)
        trial = Trial(share, widths, measure(widths) if known is None else known)
        if trial.latency.median <= target:
            fast = trial
            if known is None:
                fast_enough.append(fast)
        else:
            slow = trial
    for trial in reversed(fast_enough[1:]):
        again = replace(trial, latency=measure(trial.widths))
        if again.latency.median <= (1 + _NEAR) * target:
            return again
    return narrowest
