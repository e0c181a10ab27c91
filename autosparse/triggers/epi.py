"""Pruning early in training, once the pruned architecture no longer changes: the Early Pruning Indicator."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.triggers.epochs import EpochTrigger, Look, check_cap, damaged, numbers

#: The authors' thresholds tau, by the kind of importance that ranks the channels.
THRESHOLDS: Mapping[str, float] = {"magnitude": 0.983, "gradient": 0.944}
_KINDS = {"magnitude": "magnitude", "l1": "magnitude", "l2": "magnitude", "gradient": "gradient", "taylor": "gradient"}


def similarity(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """Psi(a, b) = 1 - (1/L) sum over l of |n_l^a - n_l^b| / (n_l^a + n_l^b), in [0, 1].

    Shen et al. 2022, arXiv 2110.12007, eqs. 4 and 5. n_l is the number of channels that group l keeps; a group that
    both have lost (0 / 0) has not changed. The paper's L layers are groups here: layers that must keep the same
    channels are counted once. Only numbers of channels matter, not which ones they are.

    Raises:
        AutoSparseError: no groups, or not the same ones.
    """
    if not a or a.keys() != b.keys():
        raise AutoSparseError(
            f"architectures of {len(a)} and {len(b)} channel groups cannot be compared: give the same groups, at "
            "least one, each time"
        )
    distances = [abs(n - b[name]) / (n + b[name]) if n + b[name] else 0.0 for name, n in a.items()]
    return 1.0 - math.fsum(distances) / len(distances)


@dataclass(frozen=True)
class ArchitectureStable:
    """One pruning of a dense network as soon as what pruning would leave has become stable; nothing is rewound.

    Shen et al. 2022, arXiv 2110.12007 ("When to prune? A policy towards early structural pruning"). After every epoch
    the network is pruned hypothetically, and EPI_t = (1/r) sum over j = 1 .. r of Psi(t, t-j) compares the widths that
    this leaves with those after the r epochs before (eq. 6). It is pruned at the first t with EPI_t >= tau and EPI_t
    >= EPI_(t-j), j = 1 .. 5.

    Args:
        threshold: tau. The authors' 0.983 belongs to a ranking by magnitude; :meth:`for_importance` knows the other.
        window: r. [Not confirmed; the published curves begin too early for the 20 of a port of the method.] The first
            value exists after epoch ``window + 1``: the network at initialisation is not taken for an epoch.
        lookback: how many values before EPI_t must not be larger; 0 leaves the threshold alone.
        strict: EPI_t has to be larger than they are. [Sources differ.] Not by default: an architecture that no longer
            changes has EPI_t = 1 for ever, and would never be pruned.
        full_lookback: wait until all of these values exist. [Not stated.] By default, since the condition names them
            all, and since the first value of a high threshold would otherwise decide without any comparison. Without
            it EPI_t is compared with those that exist, which suits trainings of few epochs.
        cap: the epoch at which the network is pruned even if it is not stable; ``None`` refuses a training in which it
            never is.
    """

    threshold: float = THRESHOLDS["magnitude"]
    window: int = 5
    lookback: int = 5
    strict: bool = False
    full_lookback: bool = True
    cap: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise AutoSparseError(f"threshold is {self.threshold}: give a number in (0, 1], such as 0.983")
        if self.window < 1:
            raise AutoSparseError(f"window is {self.window}: give 1 epoch or more")
        if self.lookback < 0:
            raise AutoSparseError(f"lookback is {self.lookback}: give 0 epochs or more")
        check_cap(self.cap)

    @classmethod
    def for_importance(cls, importance: str, **options: Any) -> ArchitectureStable:
        """The settings with the authors' threshold for ``importance``: a key of THRESHOLDS, or a criterion's name.

        Raises:
            UnknownNameError: a criterion for which they give none, and ``options`` do not give one either.
        """
        if "threshold" in options:
            return cls(**options)
        if importance not in _KINDS:
            raise UnknownNameError(
                "importance of the Early Pruning Indicator", importance, _KINDS, "or give a threshold of your own"
            )
        return cls(threshold=THRESHOLDS[_KINDS[importance]], **options)

    @property
    def earliest(self) -> int:
        """The first epoch after which the condition can be met."""
        return 1 + self.window + (self.lookback if self.full_lookback else 0)

    def watch(self, *, epochs: int, density: float) -> EpochTrigger:
        """The trigger of one run; AutoSparseError if that ends before EPI_t can be judged, and no cap is given."""
        history = EpiHistory(self)
        return EpochTrigger(self, history, epochs=epochs, density=density, earliest=self.earliest, cap=self.cap)


class EpiHistory:
    """The widths that pruning would have left after each epoch, and the EPI_t that followed from them.

    Values are kept, not computed anew.
    """

    quantity = "Early Pruning Indicator"

    def __init__(self, settings: ArchitectureStable) -> None:
        self._settings = settings
        self._counts: list[dict[str, int]] = []
        self.values: list[float | None] = []

    @property
    def threshold(self) -> float:
        return self._settings.threshold

    @property
    def wanted(self) -> str:
        lookback, than = self._settings.lookback, "larger than" if self._settings.strict else "no less than"
        return f"at least {self.threshold:g}" + (f" and {than} its {lookback} values before" if lookback else "")

    def see(self, epoch: int, look: Look) -> bool:
        return epoch > 0 and self.update(look.counts())

    def update(self, counts: Mapping[str, int]) -> bool:
        """Take in the widths that pruning after another epoch would leave; whether to prune.

        Raises:
            AutoSparseError: not the groups of the epochs before.
        """
        now = {name: operator.index(count) for name, count in counts.items()}
        similarity(now, self._counts[0] if self._counts else now)  # refuses other groups from the first epoch on
        r = self._settings.window
        past = self._counts[-r:]
        before = list(self.values)
        self._counts.append(now)
        self.values.append(math.fsum(similarity(now, then) for then in past) / r if len(past) == r else None)
        return self._is_stable(self.values[-1], before)

    def _is_stable(self, epi: float | None, before: list[float | None]) -> bool:
        settings = self._settings
        if epi is None or epi < settings.threshold:
            return False
        compared = [value for value in before[max(0, len(before) - settings.lookback) :] if value is not None]
        if settings.full_lookback and len(compared) < settings.lookback:
            return False
        return all(epi > value if settings.strict else epi >= value for value in compared)

    def as_dict(self) -> dict[str, Any]:
        """``counts``: from each group's name to its widths after epoch 1, 2, ...; ``values``: EPI_t after the same."""
        names = self._counts[0] if self._counts else {}
        return {"counts": {name: [n[name] for n in self._counts] for name in names}, "values": list(self.values)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`as_dict` said; FileFormatError if it is damaged."""
        values = numbers(state, "values", most=1.0, undefined=True)
        counts = state.get("counts")
        if not isinstance(counts, Mapping) or bool(counts) != bool(values):
            raise damaged("'counts' are not those of channel groups")
        columns = {name: numbers(counts, name) for name in counts}
        for name, column in columns.items():
            if len(column) != len(values) or not all(isinstance(n, int) for n in column):
                raise damaged(f"'{name}' has no width for each of {len(values)} epochs")
        if any((value is None) != (t < self._settings.window) for t, value in enumerate(values)):
            raise damaged(f"'values' do not begin after {self._settings.window} epochs")
        self._counts = [{name: column[t] for name, column in columns.items()} for t in range(len(values))]
        self.values = values
