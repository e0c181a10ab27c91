"""Callbacks that end a training in the middle, as a kill would."""

from __future__ import annotations

from autosparse.training import Callback, EpochRecord


class KilledError(Exception):
    """A kill, as far as the loop can tell."""


class StopAfter(Callback):
    """Ends the training after an epoch, whose checkpoint is on disk."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_epoch(self, history: list[EpochRecord]) -> None:
        if history[-1].epoch == self._epoch:
            raise KilledError


class StopAtStep(Callback):
    """Ends the training after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, step: int, steps: int) -> None:
        if step == self._step:
            raise KilledError
