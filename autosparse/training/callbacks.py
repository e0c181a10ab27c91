"""What may happen beside training: a progress bar, a log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from autosparse.files import write_text

if TYPE_CHECKING:
    from autosparse.training.loop import EpochRecord


class Callback:
    """Called by the loop on the main process; override what is of interest."""

    def on_step(self, step: int, steps: int) -> None:
        """After step ``step`` (from 1) of ``steps``."""

    def on_epoch(self, history: list[EpochRecord]) -> None:
        """After an epoch, when its checkpoint is on disk; ``history`` ends with it."""


class ProgressBar(Callback):
    """A bar over all steps, with the newest epoch's loss and validation accuracy; on stderr if that is a terminal."""

    def __init__(self, label: str = "train", leave: bool = True) -> None:
        self._label = label
        self._leave = leave
        self._bar: tqdm | None = None

    def on_step(self, step: int, steps: int) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=steps,
                initial=step - 1,
                desc=self._label,
                unit="step",
                leave=self._leave,
                mininterval=0.5,
                disable=None,
            )
        self._bar.update(step - self._bar.n)
        if step == steps:
            self.close()

    def on_epoch(self, history: list[EpochRecord]) -> None:
        if self._bar is not None:
            last = history[-1]
            validation = "" if last.val_accuracy is None else f", val {last.val_accuracy:.1%}"
            self._bar.set_postfix_str(f"loss {last.train_loss:.3f}{validation}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class JsonlLog(Callback):
    """One JSON line an epoch.

    The file is written anew each time: a kill in the middle of a line, or between checkpoint and log, leaves nothing
    that a resumed run would have to mend.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_epoch(self, history: list[EpochRecord]) -> None:
        write_text(self._path, "".join(json.dumps(record.as_dict()) + "\n" for record in history))
