"""Settings of a training run, and its learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autosparse.errors import AutoSparseError, UnknownNameError

SCHEDULES = ("one-cycle", "cosine", "constant")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """Everything but the model, the data and the masks that determines a training run.

    SGD with Nesterov momentum; weight decay on all parameters; the loss is the mean cross-entropy.

    Args:
        batch_size: images a step, over all processes together; the last, smaller batch of an epoch is dropped.
        lr: the peak learning rate.
        schedule: ``one-cycle`` (linear from lr/25 to lr over the first 30 % of the steps, then a half cosine to 0),
            ``cosine`` (a half cosine from lr to 0), or ``constant``.
        precision: ``bf16`` autocasts to bfloat16; ``auto`` does so where the hardware gains from it.
        augment: random crops and flips.
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    precision: str = "auto"
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 0), ("batch_size", 2)):
            if getattr(self, name) < low:
                raise AutoSparseError(f"{name.replace('_', '-')} is {getattr(self, name)}: give {low} or more")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise AutoSparseError(f"lr is {self.lr}: give a positive number")
        if not 0 <= self.momentum < 1:
            raise AutoSparseError(f"momentum is {self.momentum}: give a number in [0, 1)")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise AutoSparseError(f"weight-decay is {self.weight_decay}: give 0 or more")
        if self.schedule not in SCHEDULES:
            raise UnknownNameError("schedule", self.schedule, SCHEDULES)
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)

    def steps_per_epoch(self, images: int) -> int:
        """Whole batches among ``images``."""
        return images // self.batch_size

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of ``step`` (from 0) out of ``steps``: a pure function, so that resuming needs no state."""
        if self.schedule == "constant":
            return self.lr
        warmup = 0.3 * steps if self.schedule == "one-cycle" else 0.0
        if step < warmup:
            return self.lr * (1 / 25 + (1 - 1 / 25) * step / warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
