"""Pruning once, after some epoch of dense training: what a trigger is shown, and how the training loop asks it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from autosparse.errors import AutoSparseError, FileFormatError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_SHOWN = 5  # of the last values, in the message of a trigger that never fired


class Look(Protocol):
    """The network after an epoch, as triggers see it; an answer is computed when it is asked for.

    Nothing of it changes the network. All processes of a run must be given the same answers, for each decides itself.
    """

    def counts(self) -> Mapping[str, int]:
        """How many channels each group would keep if the network were pruned now."""

    def kept(self) -> Mapping[str, np.ndarray]:
        """Which channels each group would keep: bool arrays ``[width]``."""

    def distance(self) -> float:
        """||W - W_ref|| / ||W_ref|| over all parameters; W_ref as :attr:`EpochTrigger.reference_epoch` says."""


class History(Protocol):
    """What was seen so far and what follows from it: a pure state machine, asked once an epoch.

    Attributes:
        quantity: what is watched, in words.
    """

    quantity: str

    @property
    def values(self) -> Sequence[float | None]:
        """The quantity after epoch 1, 2, ...; ``None`` where it is not defined."""

    @property
    def threshold(self) -> float | None:
        """What values are compared with; ``None`` while that is not known."""

    @property
    def wanted(self) -> str:
        """The condition in words, after "it has to be"."""

    def see(self, epoch: int, look: Look) -> bool:
        """Take in the network after ``epoch`` epochs (0: at initialisation); whether to prune it now."""

    def as_dict(self) -> dict[str, Any]:
        """The whole state, JSON-able."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`as_dict` said; FileFormatError if it cannot have said that."""


class EpochSettings(Protocol):
    """The settings of a trigger: a frozen dataclass of numbers and names."""

    def watch(self, *, epochs: int, density: float) -> EpochTrigger:
        """The trigger of one run.

        Args:
            epochs: of the whole training, dense and pruned.
            density: 1 - rho, the share of the channels that is left in the end.

        Raises:
            AutoSparseError: settings under which no epoch of this run could be the one.
        """


class EpochTrigger:
    """Decides, once in a training, after which epoch the network is pruned.

    The training loop calls :meth:`after_epoch` before the first step and after every epoch until it says yes. The
    last epoch at which it may is the last but one: a pruned network is trained for an epoch at least.

    Attributes:
        reference_epoch: the weights after this many epochs are the W_ref of :meth:`Look.distance`: the loop keeps a
            copy from then on, in its checkpoints too. ``None``: distances are not asked for.
        identity: JSON-able facts that must agree between a checkpoint and the run that continues it.
    """

    def __init__(
        self,
        settings: DataclassInstance,
        history: History,
        *,
        epochs: int,
        density: float,
        earliest: int,
        cap: int | None = None,
        reference_epoch: int | None = None,
    ) -> None:
        """A trigger whose ``history`` decides from epoch ``earliest`` on, and ``cap`` if nothing came of it by then.

        Raises:
            AutoSparseError: the run is too short for ``cap``, or without one for ``earliest``.
        """
        last = epochs - 1
        if cap is not None and cap > last:
            raise AutoSparseError(
                f"cap is {cap}, and a training of {epochs} epochs leaves the pruned network none after epoch {last}: "
                "give an earlier cap, or train longer"
            )
        if cap is None and earliest > last:
            raise AutoSparseError(
                f"{type(settings).__name__} prunes after epoch {earliest} at the earliest, and a training of {epochs} "
                f"epochs leaves the pruned network none after epoch {last}: train longer, or give a cap, the epoch at "
                "which to prune at the latest"
            )
        run = {"epochs": epochs, "density": density}
        self.identity = {"trigger": type(settings).__name__, **asdict(settings), **run}
        self.reference_epoch = reference_epoch
        self._history = history
        self._cap = cap
        self._last = last
        self._epoch: int | None = None
        self._pruned_at: int | None = None
        self._settled = False

    def after_epoch(self, epoch: int, look: Look) -> bool:
        """Whether to prune the network now, after ``epoch`` epochs: 0 before the first step, then 1, 2, ...

        Raises:
            AutoSparseError: the last epoch at which it could, without a cap, and the condition was never met.
        """
        expected = 0 if self._epoch is None else self._epoch + 1
        if self._pruned_at is not None or epoch != expected:
            raise ValueError(f"a trigger that pruned after epoch {self._pruned_at} and expects {expected} got {epoch}")
        self._settled = self._history.see(epoch, look)
        self._epoch = epoch
        if self._settled or epoch == self._cap:
            self._pruned_at = epoch
            return True
        if epoch >= self._last:
            raise AutoSparseError(self._never())
        return False

    def facts(self) -> dict[str, Any]:
        """What has happened so far, JSON-able, for checkpoints and result files.

        ``epoch`` is the last one that was looked at (``None``: none yet), ``pruned_at_epoch`` the one after which the
        network was pruned. ``settled`` is true where the condition was met and false where ``cap`` decided.
        """
        own = {"epoch": self._epoch, "pruned_at_epoch": self._pruned_at, "settled": self._settled}
        history = self._history
        told = {"quantity": history.quantity, "threshold": history.threshold, "wanted": history.wanted}
        state = {"values": list(history.values), **history.as_dict()}
        return copy.deepcopy({"trigger": self.identity["trigger"], **own, **told, **state})

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Continue from what :meth:`facts` said.

        Raises:
            FileFormatError: a damaged checkpoint.
        """
        epoch, pruned_at, settled = (facts.get(name) for name in ("epoch", "pruned_at_epoch", "settled"))
        if not (epoch is None or _is_count(epoch)):
            raise damaged(f"epoch is {epoch!r}")
        if pruned_at not in (None, epoch):
            raise damaged(f"pruned_at_epoch is {pruned_at!r} at epoch {epoch}")
        if not isinstance(settled, bool) or (settled and pruned_at is None):
            raise damaged(f"settled is {settled!r}, pruned_at_epoch {pruned_at!r}")
        self._history.restore(facts)
        if len(self._history.values) != (epoch or 0):
            raise damaged(f"{len(self._history.values)} values of {epoch or 0} epochs")
        self._epoch, self._pruned_at, self._settled = epoch, pruned_at, settled

    def _never(self) -> str:
        known = [f"{value:.4g}" for value in self._history.values if value is not None]
        seen = f"its last values were {', '.join(known[-_SHOWN:])}" if known else "it has no value so far"
        return (
            f"{self._history.quantity} has to be {self._history.wanted}, and never was up to epoch {self._epoch}, the "
            f"last one to prune after ({seen}): give a cap, the epoch at which to prune at the latest, or train longer"
        )


@dataclass(frozen=True)
class AtEpoch:
    """Pruning after a given epoch: one point of an oracle's sweep over all of them.

    Args:
        epoch: 0 prunes at initialisation.
    """

    epoch: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0:
            raise AutoSparseError(f"epoch is {self.epoch}: give 0 (at initialisation) or more")

    def watch(self, *, epochs: int, density: float) -> EpochTrigger:
        """The trigger of one run; AutoSparseError if that has too few epochs."""
        if self.epoch >= epochs:
            raise AutoSparseError(
                f"epoch is {self.epoch}: a training of {epochs} epochs is pruned after 0 to {epochs - 1} of them"
            )
        return EpochTrigger(self, _Calendar(self.epoch), epochs=epochs, density=density, earliest=self.epoch)


class _Calendar:
    """A history of nothing: the number of the epoch decides."""

    quantity = "the epoch"
    threshold = None

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self.values: list[float | None] = []

    @property
    def wanted(self) -> str:
        return str(self._epoch)

    def see(self, epoch: int, look: Look) -> bool:
        self.values = [None] * epoch
        return epoch == self._epoch

    def as_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.values = numbers(state, "values", undefined=True)


def check_cap(cap: int | None) -> None:
    """AutoSparseError unless ``cap`` is ``None`` or a whole number of epochs from 1 on."""
    if not (cap is None or (_is_count(cap) and cap >= 1)):
        raise AutoSparseError(f"cap is {cap!r}: give a whole number of epochs from 1 on, or None to refuse instead")


def damaged(what: str) -> FileFormatError:
    """The error for a state that no history can have written."""
    return FileFormatError(f"the trigger's history in the checkpoint is damaged: {what}; start anew with --force")


def numbers(state: Mapping[str, Any], name: str, *, most: float = math.inf, undefined: bool = False) -> list[Any]:
    """The list of finite numbers in [0, most] at ``name``, with ``None`` among them only if ``undefined``.

    Raises:
        FileFormatError: it is anything else.
    """
    found = state.get(name)
    if not isinstance(found, list):
        raise damaged(f"'{name}' is no list")
    for value in found:
        if value is None and undefined:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and 0 <= value <= most):
            raise damaged(f"'{name}' contains {value!r}")
    return list(found)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
