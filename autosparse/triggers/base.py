"""Masks that change while a network trains: what a schedule of them is, and how the training loop keeps to it."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autosparse.errors import AutoSparseError, BudgetError, DivergedError
from autosparse.layers import Layer, prunable, total_weights
from autosparse.masks import Masks

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: A criterion with everything but the network filled in: larger means keep.
Scoring = Callable[[nn.Module], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Target:
    """Where a schedule leads, and over how many steps: what only the run knows.

    Args:
        layers: the network's prunable layers.
        density: the fraction of their N weights that is left in the end, exactly round(density * N) of them.
        steps, steps_per_epoch: of the whole training, however little of it is run at a time.
        seed: of everything random.
    """

    layers: Sequence[Layer]
    density: float
    steps: int
    steps_per_epoch: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise BudgetError(f"density {self.density} is outside (0, 1]: 0.02 keeps 2 % of the weights")
        if self.count(self.density) == 0:
            total = total_weights(self.layers)
            raise BudgetError(f"density {self.density} keeps none of {total} weights: the least is {1 / total}")
        if self.steps < 1 or self.steps_per_epoch < 1:
            raise AutoSparseError(
                f"a training of {self.steps} steps, {self.steps_per_epoch} an epoch, cannot prune on its way: "
                "train for an epoch or more, or choose a method that prunes at initialisation"
            )

    def count(self, density: float) -> int:
        """How many weights ``density`` of all layers are."""
        return round(density * total_weights(self.layers))

    def step(self, fraction: float) -> int:
        """The step nearest to ``fraction`` of training."""
        return round(fraction * self.steps)


class MaskSchedule(ABC):
    """Masks that change while a network trains.

    The training loop calls :meth:`start` before the first step, or :meth:`restore` when it continues, and
    :meth:`after_step` after every step; both leave the weights to the loop. Whatever a schedule decides follows from
    weights, gradients, the step and its own state, so that all processes of a run decide alike, and a resumed run as
    one that was never killed.

    Attributes:
        masks: those in force; ``None`` while nothing is pruned. They are replaced, never changed in place.
        identity: JSON-able facts that must agree between a checkpoint and the run that continues it.
    """

    masks: Masks | None = None

    def __init__(self, settings: DataclassInstance, target: Target, facts: Mapping[str, Any]) -> None:
        """``settings`` hold numbers and names only; ``facts`` is what :meth:`facts` says before the first step."""
        run = {"density": target.density, "steps": target.steps, "steps_per_epoch": target.steps_per_epoch}
        self.identity = {"trigger": type(settings).__name__, **asdict(settings), **run, "seed": target.seed}
        self._facts = copy.deepcopy(dict(facts))

    @abstractmethod
    def start(self, model: nn.Module) -> None:
        """Before the first step, where the weights lie on the device that trains them: set ``masks``."""

    @abstractmethod
    def after_step(self, model: nn.Module, step: int) -> Masks | None:
        """After step ``step`` (from 1): the new masks, or ``None`` if they stay.

        The weights are those after the step, with the removed ones at zero; their ``grad`` is that of the step.
        """

    def facts(self) -> dict[str, Any]:
        """What has happened so far, JSON-able, for the result file."""
        return copy.deepcopy(self._facts)

    def tensors(self) -> dict[str, Tensor]:
        """The state that a checkpoint needs beside :meth:`facts`."""
        return {f"masks.{name}": mask for name, mask in (self.masks or {}).items()}

    def restore(self, model: nn.Module, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from what :meth:`tensors` and :meth:`facts` said, beside the weights of ``model``."""
        self._facts = copy.deepcopy(dict(facts))
        masks = named(tensors, "masks.")
        self.masks = Masks(masks).to(device_of(model)) if masks else None


class HeldMasks:
    """Holds the masks in force at zero on an optimizer, and exchanges them when the schedule says so."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: MaskSchedule | None) -> None:
        self._model = model
        self._optimizer = optimizer
        self._schedule = schedule
        self._masks: Masks | None = None
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def after_step(self, step: int) -> None:
        """Ask the schedule for new masks after step ``step`` (from 1)."""
        masks = None if self._schedule is None else self._schedule.after_step(self._model, step)
        if masks is not None:
            _agree(masks)
            self.hold(masks)

    def hold(self, masks: Masks | None) -> None:
        """Hold ``masks`` instead of those before; ``None`` changes nothing.

        A weight that comes back was held at zero and starts there, without momentum (Evci et al. 2020).
        """
        if masks is None:
            return
        if self._masks is not None:
            self._forget({name: mask & ~self._masks[name] for name, mask in masks.items()})
        if self._handle is not None:
            self._handle.remove()
        self._handle = masks.hold(self._model, self._optimizer)
        self._masks = masks

    @torch.no_grad()
    def _forget(self, grown: Mapping[str, Tensor]) -> None:
        """Clear what the optimizer has accumulated for the weights that come back."""
        for name, weight in prunable(self._model).items():
            for value in self._optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_(grown[name].to(value.device), 0.0)


def _agree(masks: Masks) -> None:
    """Make the masks of all processes those of the first, in place.

    Weights and gradients are the same in all of them, but batch statistics are not, and a criterion may look at them.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for mask in masks.values():
            flat = mask.contiguous()
            torch.distributed.broadcast(flat, 0)
            mask.copy_(flat)


def device_of(model: nn.Module) -> torch.device:
    """Where the first prunable weight lies."""
    return next(iter(prunable(model).values())).device


def named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def require_finite(values: Mapping[str, Tensor], what: str, step: int) -> None:
    """DivergedError naming the first tensor that is not finite: no choice can be based on it."""
    for name, value in values.items():
        if not bool(value.isfinite().all()):
            raise DivergedError(
                f"{what} of '{name}' are no longer finite after step {step}: try a smaller --lr or --precision fp32"
            )


def check_fractions(**fractions: float) -> None:
    """AutoSparseError naming the first setting that lies outside [0, 1]."""
    for name, value in fractions.items():
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise AutoSparseError(f"{name} is {value}: give a number in [0, 1]")
