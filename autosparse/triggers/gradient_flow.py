"""Pruning early in training, once the weights have settled into a direction: EarlyCroP's moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autosparse.errors import AutoSparseError, DivergedError, UnknownNameError
from autosparse.masks import Masks
from autosparse.triggers.base import MaskSchedule, Target, check_fractions, device_of, named

VARIANTS = ("paper", "code")

#: Prunes a network at its current weights to a density, at once.
PruneNow = Callable[[nn.Module, float], Masks]


@dataclass(frozen=True)
class GradientFlow:
    """One pruning of a dense network as soon as its weights change slowly; nothing is rewound.

    Rachwan et al. 2022, arXiv 2206.10451 ("EarlyCroP"). The distance r_t = ||W_t - W_ref|| / ||W_ref|| over all
    parameters (norms and biases included) is measured at equal intervals, and the network is pruned at the first
    t with ``|r_t - r_(t-1)|`` < tau. The density d = 1 - rho is what is *left*: the sparser the network shall be, the
    longer it trains dense.

    Args:
        variant: ``paper``: W_ref are the initial weights and tau = 1 - rho = d for measurements an epoch apart. The
            change is taken per epoch (divided by ``every``), so that measuring more often does not by itself end the
            wait. ``code``, the released implementation: W_ref are the weights after the first interval, and
            tau = r_1 (1 - rho), where r_1 is what the second interval moved them; the earliest moment is after the
            third. It is relative to the movement and so independent of the interval, but after a warm-up, when r_1
            is small, no change is smaller until the learning rate falls. The paper's rule is the default because it
            has the same meaning under every schedule of the learning rate. [It is known from the documentation of a
            port of the authors' code, the other rule from that code.]
        every: epochs between two measurements, at least one step; 1 as published. A training of few epochs needs less.
        latest: the fraction of training at which the network is pruned even if it has not settled; at high sparsity
            this often decides. By default the peak of the one-cycle learning rate: the network that is left gets the
            whole descent, as after the authors' pruning, which a fresh one-cycle follows.
    """

    variant: str = "paper"
    every: float = 1.0
    latest: float = 0.3

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise UnknownNameError("variant of the gradient-flow trigger", self.variant, VARIANTS)
        if not (self.every > 0 and math.isfinite(self.every)):
            raise AutoSparseError(f"every is {self.every}: give a positive number of epochs")
        check_fractions(latest=self.latest)

    def schedule(self, target: Target, *, prune_now: PruneNow) -> MaskSchedule:
        """The masks of one run; ``prune_now(model, density)`` chooses them when the moment has come."""
        return _Watch(self, target, prune_now)


class _Watch(MaskSchedule):
    """Facts: ``distances`` r_0 = 0, r_1, ... measured ``interval`` steps apart; ``pruned_at_step``; ``settled``.

    ``settled`` is false where ``latest`` decided. ``pruned_at_step`` is ``None`` until it happened.
    """

    def __init__(self, settings: GradientFlow, target: Target, prune_now: PruneNow) -> None:
        self._interval = max(1, round(settings.every * target.steps_per_epoch))
        start = {"interval": self._interval, "distances": [], "pruned_at_step": None, "settled": False}
        super().__init__(settings, target, start)
        self._settings = settings
        self._target = target
        self._prune_now = prune_now
        self._latest = max(1, target.step(settings.latest))
        self._reference: dict[str, Tensor] = {}

    def start(self, model: nn.Module) -> None:
        if self._settings.variant == "paper":
            self._refer_to(model)

    def after_step(self, model: nn.Module, step: int) -> Masks | None:
        if self.masks is not None:
            return None
        settled = step % self._interval == 0 and self._has_settled(model, step)
        if not settled and step < self._latest:
            return None
        self.masks = self._prune_now(model, self._target.density).to(device_of(model))
        self._reference = {}
        self._facts |= {"pruned_at_step": step, "settled": settled}
        return self.masks

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {f"reference.{name}": value for name, value in self._reference.items()}

    def restore(self, model: nn.Module, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().restore(model, tensors, facts)
        reference = named(tensors, "reference.")
        self._reference = {name: value.to(device_of(model)) for name, value in reference.items()}

    def _refer_to(self, model: nn.Module) -> None:
        self._reference = {name: value.detach().clone() for name, value in model.named_parameters()}
        self._facts["distances"] = [0.0]

    def _has_settled(self, model: nn.Module, step: int) -> bool:
        """Measure r_t and compare its change with tau."""
        if not self._reference:
            self._refer_to(model)
            return False
        r = self._facts["distances"]
        r.append(_relative_distance(model, self._reference))
        if not math.isfinite(r[-1]):
            raise DivergedError(f"the weights are no longer finite after step {step}: try a smaller --lr")
        if self._settings.variant == "paper":
            tau = self._target.density * self._interval / self._target.steps_per_epoch
        else:
            tau = r[1] * self._target.density
        return abs(r[-1] - r[-2]) < tau


@torch.no_grad()
def _relative_distance(model: nn.Module, reference: Mapping[str, Tensor]) -> float:
    """||W - W_ref|| / ||W_ref|| over all parameters, summed in float64."""
    moved = [value - reference[name] for name, value in model.named_parameters()]
    return float(_norm(moved) / _norm(list(reference.values())))


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors]))
