"""Pruning early in training, once the weights have settled into a direction: EarlyCroP's moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from autosparse.errors import AutoSparseError, BudgetError, DivergedError, UnknownNameError
from autosparse.masks import Masks
from autosparse.triggers.base import MaskSchedule, Target, check_fractions, device_of, named
from autosparse.triggers.epochs import EpochTrigger, Look, check_cap, damaged, numbers

VARIANTS = ("paper", "code")

#: Prunes a network at its current weights to a density, at once.
PruneNow = Callable[[nn.Module, float], Masks]

#: What the released code subtracts from 1 - rho when it removes channels. (It also takes 0.99 at most, which the
#: difference cannot exceed.)
_CODE_MARGIN = 0.1


class Settling:
    """The distances r_0 = 0, r_1, ... of the weights from a reference, and whether they have settled.

    Rachwan et al. 2022, arXiv 2206.10451: the weights have settled at the first t with ``|r_t - r_(t-1)|`` < tau.

    Args:
        factor: tau, or tau / r_1.
        relative: tau = r_1 * factor, where r_1 is what the first interval moved the weights.
    """

    def __init__(self, factor: float, *, relative: bool = False) -> None:
        self._factor = factor
        self._relative = relative
        self.distances: list[float] = []

    @property
    def tau(self) -> float | None:
        """The threshold; ``None`` while r_1 is needed for it and not known."""
        if not self._relative:
            return self._factor
        return self.distances[1] * self._factor if len(self.distances) > 1 else None

    @property
    def changes(self) -> list[float]:
        """``|r_t - r_(t-1)|`` for t = 1, 2, ..."""
        return [abs(r - before) for before, r in pairwise(self.distances)]

    def update(self, r: float) -> bool:
        """Take in the next distance, first r_0 = 0; whether the weights have settled."""
        self.distances.append(r)
        return len(self.distances) > 1 and self.tau is not None and self.changes[-1] < self.tau

    def as_dict(self) -> dict[str, Any]:
        return {"distances": list(self.distances)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`as_dict` said; FileFormatError if it is damaged."""
        distances = numbers(state, "distances")
        if distances and distances[0] != 0:
            raise damaged(f"the first of 'distances' is {distances[0]}")
        self.distances = distances


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
        per_epoch = target.density * self._interval / target.steps_per_epoch
        relative = settings.variant == "code"
        self._settling = Settling(target.density if relative else per_epoch, relative=relative)

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

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), **self._settling.as_dict()}

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {f"reference.{name}": value for name, value in self._reference.items()}

    def restore(self, model: nn.Module, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().restore(model, tensors, facts)
        self._settling.restore(facts)
        reference = named(tensors, "reference.")
        self._reference = {name: value.to(device_of(model)) for name, value in reference.items()}

    def _refer_to(self, model: nn.Module) -> None:
        self._reference = reference_weights(model)
        self._settling.update(0.0)

    def _has_settled(self, model: nn.Module, step: int) -> bool:
        """Measure r_t and compare its change with tau."""
        if not self._reference:
            self._refer_to(model)
            return False
        r = relative_distance(model, self._reference)
        _require_finite(r, f"step {step}")
        return self._settling.update(r)


@dataclass(frozen=True)
class GradientFlowSettled:
    """One pruning of channels after the first epoch in which the weights changed slowly; nothing is rewound.

    EarlyCroP-S (Rachwan et al. 2022, arXiv 2206.10451): as :class:`GradientFlow`, asked once an epoch. rho is the
    share of the channels that is removed, whatever the budget counts.

    Args:
        variant: ``paper``: W_ref are the initial weights and tau = 1 - rho; the default for the reason that is given
            there. ``code``: W_ref are the weights after the first epoch and tau = r_1 (1 - rho - 0.1), where r_1 is
            what the second epoch moved them; the earliest moment is after the third. No change is smaller where a
            tenth of the channels or less is left: then ``cap`` decides alone, as it does in the authors' code (after
            epoch 100), and without one the training is refused.
        cap: the epoch at which the network is pruned even if it has not settled; ``None`` refuses a training in which
            it never does.
    """

    variant: str = "paper"
    cap: int | None = None

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise UnknownNameError("variant of the gradient-flow trigger", self.variant, VARIANTS)
        check_cap(self.cap)

    def watch(self, *, epochs: int, density: float) -> EpochTrigger:
        """The trigger of one run; AutoSparseError if tau is not positive or epochs are too few, and no cap is given."""
        if not 0 < density <= 1:
            raise BudgetError(f"density {density} is outside (0, 1]: 0.5 keeps half of the channels")
        if self.variant == "paper":
            settling, reference_epoch, earliest = Settling(density), 0, 1
        else:
            factor = density - _CODE_MARGIN
            if factor <= 0 and self.cap is None:
                raise AutoSparseError(
                    f"variant code never prunes when {density:.4g} of the channels are left: its threshold "
                    f"r_1 (1 - rho - {_CODE_MARGIN}) is not positive; give a cap, the epoch at which to prune, or "
                    "variant=paper"
                )
            settling, reference_epoch, earliest = Settling(factor, relative=True), 1, 3
        return EpochTrigger(
            self,
            _EpochDistances(settling, reference_epoch),
            epochs=epochs,
            density=density,
            earliest=earliest,
            cap=self.cap,
            reference_epoch=reference_epoch,
        )


class _EpochDistances:
    """:class:`Settling` with one distance an epoch, the first at ``reference_epoch``."""

    quantity = "relative weight change per epoch"

    def __init__(self, settling: Settling, reference_epoch: int) -> None:
        self._settling = settling
        self._reference_epoch = reference_epoch

    @property
    def values(self) -> list[float | None]:
        changes = self._settling.changes
        return [*[None] * self._reference_epoch, *changes] if self._settling.distances else []

    @property
    def threshold(self) -> float | None:
        return self._settling.tau

    @property
    def wanted(self) -> str:
        return "below tau" if self.threshold is None else f"below tau = {self.threshold:.4g}"

    def see(self, epoch: int, look: Look) -> bool:
        if epoch < self._reference_epoch:
            return False
        r = 0.0 if epoch == self._reference_epoch else look.distance()
        _require_finite(r, f"epoch {epoch}")
        return self._settling.update(r)

    def as_dict(self) -> dict[str, Any]:
        return self._settling.as_dict()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._settling.restore(state)


def reference_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters, norms and biases included, for :func:`relative_distance`.

    It is contiguous, as what a checkpoint gives back: norms of another memory format are summed in another order.
    """
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in model.named_parameters()
    }


@torch.no_grad()
def relative_distance(model: nn.Module, reference: Mapping[str, Tensor]) -> float:
    """||W - W_ref|| / ||W_ref|| over all parameters, summed in float64 in the order of the model."""
    moved = [value - reference[name] for name, value in model.named_parameters()]
    return float(_norm(moved) / _norm([reference[name] for name, _ in model.named_parameters()]))


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t, dtype=torch.float64) for t in tensors]))


def _require_finite(r: float, when: str) -> None:
    if not math.isfinite(r):
        raise DivergedError(f"the weights are no longer finite after {when}: try a smaller --lr")
