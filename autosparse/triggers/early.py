"""Structured early pruning: channels are removed after the epoch that a trigger chooses."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from autosparse.channels.groups import Coupling
from autosparse.channels.plan import Selection
from autosparse.triggers.base import named
from autosparse.triggers.epochs import EpochTrigger
from autosparse.triggers.gradient_flow import reference_weights, relative_distance
from autosparse.triggers.narrowing import Narrowing

#: The channels that stay if the network were pruned as it is.
SelectNow = Callable[[nn.Module], Selection]


class EarlyNarrowing(Narrowing):
    """A :class:`Narrowing` at the moment of an :class:`EpochTrigger`; the channels are chosen at that moment too."""

    def __init__(
        self,
        coupling: Coupling,
        trigger: EpochTrigger,
        select: SelectNow,
        imagine: SelectNow,
        identity: Mapping[str, Any],
    ) -> None:
        """Neither ``select`` nor ``imagine`` may change the network.

        Args:
            select: what stays when the moment has come.
            imagine: what would stay, for the trigger: without rounding, which would hide small changes.
            identity: what both do, in JSON-able facts beside the trigger's own.
        """
        self.coupling = coupling
        self.identity = {**trigger.identity, **identity}
        self._trigger = trigger
        self._select = select
        self._imagine = imagine
        self._reference: dict[str, Tensor] = {}
        #: What choosing the channels took, at all looks of this process together.
        self.seconds = 0.0

    def start(self, model: nn.Module) -> bool:
        return self.after_epoch(model, 0)

    def after_epoch(self, model: nn.Module, epoch: int) -> bool:
        if epoch == self._trigger.reference_epoch:
            self._reference = reference_weights(model)
        began = time.perf_counter()
        now = self._trigger.after_epoch(epoch, _Look(model, self._imagine, self._reference))
        if now:
            self.kept = self._select(model).kept
            self._reference = {}
        self.seconds += time.perf_counter() - began
        return now

    def facts(self) -> dict[str, Any]:
        return self._trigger.facts()

    def restore_facts(self, facts: Mapping[str, Any]) -> None:
        self._trigger.restore(facts)

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), **{f"reference.{name}": value for name, value in self._reference.items()}}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().restore(tensors, facts)
        self._reference = named(tensors, "reference.")


class _Look:
    """A network as it is now; see :class:`autosparse.triggers.epochs.Look`."""

    def __init__(self, model: nn.Module, imagine: SelectNow, reference: Mapping[str, Tensor]) -> None:
        self._model = model
        self._imagine = imagine
        self._reference = reference
        self._selection: Selection | None = None

    def _selected(self) -> Selection:
        if self._selection is None:
            self._selection = self._imagine(self._model)
        return self._selection

    def counts(self) -> Mapping[str, int]:
        return self._selected().widths

    def kept(self) -> Mapping[str, np.ndarray]:
        kept = self._selected().kept
        assert kept is not None  # methods that draw fresh weights do not wait for a moment
        return kept

    def distance(self) -> float:
        device = next(self._model.parameters()).device
        return relative_distance(self._model, {name: value.to(device) for name, value in self._reference.items()})
