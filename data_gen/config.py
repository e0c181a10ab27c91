"""Settings of one IRP run, and its pruning schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.training import TrainConfig

SCHEDULES = ("fraction", "count")
SCOPES = ("global", "layer")
CRITERIA = ("magnitude", "snip")


@dataclass(frozen=True)
class IRPConfig:
    """Everything but the images that determines an IRP run.

    Args:
        rounds: how often the network is trained and pruned.
        final_density: fraction of the weights that survives the last round.
        schedule: ``fraction`` keeps the same fraction in every round; ``count`` removes the same number of weights.
        criterion: score of a trained weight, ``magnitude`` or ``snip``.
        scope: one threshold for the whole network (``global``), or the same density in every ``layer``.
        rewind_steps: rewind to the state after this many steps of training the dense network; 0 is the initial state.
        gradient_images: training images over which initial gradients (and SNIP scores) are averaged.
        train: the training of every round; its ``seed`` is replaced by one derived from ``seed``.
        seed: fixes initial weights, data order, augmentation and the images of the gradients.
    """

    model: str = "resnet20"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 16
    final_density: float = 0.01
    schedule: str = "fraction"
    criterion: str = "magnitude"
    scope: str = "global"
    rewind_steps: int = 0
    gradient_images: int = 1280
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= 65_535:
            raise AutoSparseError(f"rounds is {self.rounds}: give 1 to 65535")
        if not 0 < self.final_density < 1:
            raise AutoSparseError(f"final-density is {self.final_density}: give a number between 0 and 1, such as 0.01")
        for name, low in (("rewind_steps", 0), ("gradient_images", 1)):
            if getattr(self, name) < low:
                raise AutoSparseError(f"{name.replace('_', '-')} is {getattr(self, name)}: give {low} or more")
        if self.train.epochs < 1:
            raise AutoSparseError("epochs is 0: every round needs at least one epoch of training")
        for kind, known in (("schedule", SCHEDULES), ("criterion", CRITERIA), ("scope", SCOPES)):
            if getattr(self, kind) not in known:
                raise UnknownNameError(f"IRP {kind}", getattr(self, kind), known)

    def kept_after(self, completed: int, total: int) -> int:
        """Weights kept once ``completed`` rounds are over, out of ``total``; all before the first."""
        if completed == self.rounds:
            density = self.final_density  # as given, free of the rounding of the formulas below
        elif self.schedule == "count":
            density = 1 - (1 - self.final_density) * completed / self.rounds
        else:
            density = self.final_density ** (completed / self.rounds)
        return max(1, round(density * total))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
