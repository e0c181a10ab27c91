"""Pruning step by step while the network trains, with and without regrowth: GMP, GraNet, RigL, SET."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from autosparse.budget import BUDGETS, Allocation, select
from autosparse.budget.selection import floors
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.layers import Layer, prunable
from autosparse.masks import Masks
from autosparse.seeding import generator
from autosparse.triggers.base import (
    MaskSchedule,
    Scoring,
    Target,
    check_fractions,
    device_of,
    require_finite,
)

REGROWTH = ("gradient", "random")
DROP_PATHS = ("cosine", "constant")


def cubic(first: float, last: float, u: float) -> float:
    """The value at ``u`` in [0, 1] on the way from ``first`` to ``last``: last + (first - last) (1 - u)^3.

    Zhu & Gupta 2017, arXiv 1710.01878, eq. 1, with u = (t - t_0) / (n dt); sparsities and densities alike.
    """
    return last + (first - last) * (1 - min(max(u, 0.0), 1.0)) ** 3


def cosine(first: float, last: float, u: float) -> float:
    """The value at ``u`` in [0, 1] on half a cosine from ``first`` down to ``last``."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(max(u, 0.0), 1.0)))


@dataclass(frozen=True)
class PruneAndRegrow:
    """Updates of the masks at equal intervals: prune the whole network, then exchange weights within each layer.

    At step t the network is pruned to density ``cubic(d_0, d, u)``, u running from 0 at ``start`` to 1 at
    ``prune_end``: exactly round(density * N) weights are left, all of them among those that were there before. Then a
    fraction q_t of each layer's weights, the least important, is dropped, and as many are regrown in that layer.

    Moments are fractions of training, so that one row suits long and short runs.

    Args:
        initial_density: d_0; 1 starts dense. A d_0 below the final density d means d: the density is constant (RigL,
            SET).
        initial_budget: how a sparse start is spread over the layers; its masks are random within each.
        start: nothing happens before.
        prune_end: density d is reached here. GraNet prunes until epoch 110 of 160; Evci et al.'s GMP on CIFAR-10 until
            step 75,000 of 97,656. The rest is left to train what survives while the learning rate is still high.
        updates: a training has about this many update steps, one every max(1, steps // updates). GraNet's are 1,000
            steps apart in 160 epochs of CIFAR (62 in all), for every method that it compares; RigL's own 100 steps in
            32,000 of ImageNet (320) and 97,656 of CIFAR-10. In between, a regrown weight has to become larger than
            those that are dropped next.
        drop: q at step 0; 0 exchanges nothing (GMP).
        drop_path: ``cosine`` takes q from ``drop`` at step 0 to ``drop_floor`` at ``drop_end``; ``constant`` keeps it.
        drop_end: no exchange from here on. RigL stops at 3/4 of training, GraNet's released code never.
        regrow: ``gradient`` takes the largest ``|grad|`` of the step (RigL, GraNet); ``random`` draws uniformly (SET).

    A weight that was dropped may be regrown at once, as in RigL (paper and code) and GraNet (code): it is then simply
    kept, with its value and momentum. Any other regrown weight starts at zero without momentum. A layer's dropped
    count is round(q_t * its weights); RigL's code rounds down, GraNet's up.
    """

    initial_density: float = 1.0
    initial_budget: str = "erk"
    start: float = 0.0
    prune_end: float = 110 / 160
    updates: int = 62
    drop: float = 0.0
    drop_path: str = "cosine"
    drop_floor: float = 0.0
    drop_end: float = 0.75
    regrow: str = "gradient"

    def __post_init__(self) -> None:
        fractions = ("initial_density", "start", "prune_end", "drop", "drop_floor", "drop_end")
        check_fractions(**{name: getattr(self, name) for name in fractions})
        if self.start > self.prune_end:
            raise AutoSparseError(f"start {self.start} comes after prune_end {self.prune_end}: exchange them")
        if self.drop_floor > self.drop:
            raise AutoSparseError(f"drop_floor {self.drop_floor} is above drop {self.drop}: give at most that")
        if self.updates < 1:
            raise AutoSparseError(f"updates is {self.updates}: give 1 or more")
        if self.drop_path not in DROP_PATHS:
            raise UnknownNameError("drop path", self.drop_path, DROP_PATHS)
        if self.regrow not in REGROWTH:
            raise UnknownNameError("regrowth", self.regrow, REGROWTH)
        BUDGETS.get(self.initial_budget)

    def schedule(
        self, target: Target, *, scores: Scoring, budget: str | Allocation = "global", min_layer_density: float = 0.0
    ) -> MaskSchedule:
        """The masks of one run.

        Args:
            scores: the criterion by which weights are removed, pruned and dropped alike; magnitude in all the papers.
            budget: how a pruned network's weights are spread over its layers; one threshold over all of them in GMP
                and GraNet.
            min_layer_density: every layer keeps at least this fraction of its weights.

        Raises:
            BudgetError: the floors need more weights than are kept.
        """
        return _Updates(self, target, scores, budget, min_layer_density)


#: Zhu & Gupta 2017, arXiv 1710.01878; start and end as GraNet's own comparison has them.
GMP = PruneAndRegrow()
#: Liu et al. 2021, arXiv 2106.10404, from a dense network.
GRANET = PruneAndRegrow(drop=0.5, drop_floor=0.005, drop_end=1.0)
#: The same from an ERK network of half the weights.
GRANET_SPARSE = replace(GRANET, initial_density=0.5)
#: Evci et al. 2020, arXiv 1911.11134.
RIGL = PruneAndRegrow(initial_density=0.0, drop=0.3)
#: Mocanu et al. 2018, arXiv 1707.04780. Smallest magnitudes are dropped, as in Evci et al.'s comparison; the original
#: takes the fraction from positive and negative weights separately. It exchanges until the last epoch but one; here it
#: stops where RigL does, since what is grown under a learning rate that goes to zero stays at zero.
SET = PruneAndRegrow(initial_density=0.0, drop=0.3, drop_path="constant", regrow="random")


class _Updates(MaskSchedule):
    """Facts: ``pruned``, pairs of step and density after it; ``exchanges``; ``regrown``, weights that came back."""

    def __init__(
        self,
        settings: PruneAndRegrow,
        target: Target,
        scores: Scoring,
        budget: str | Allocation,
        min_layer_density: float,
    ) -> None:
        super().__init__(settings, target, {"pruned": [], "exchanges": 0, "regrown": 0})
        self._settings = settings
        self._target = target
        self._scores = scores
        self._budget = budget
        self._min_layer_density = min_layer_density
        self._initial = max(settings.initial_density, target.density)
        self._every = max(1, target.steps // settings.updates)
        self._first = target.step(settings.start)
        self._last = max(1, target.step(settings.prune_end))
        self._drop_end = settings.drop_end * target.steps if settings.drop else 0
        floors(target.layers, min_layer_density, target.count(target.density))

    def start(self, model: nn.Module) -> None:
        if self._initial >= 1:
            self.masks = Masks.dense(model)
            return
        masks = select(
            self._random("initial"),
            self._target.layers,
            self._target.count(self._initial),
            budget=self._settings.initial_budget,
            min_layer_density=self._min_layer_density,
        )
        self.masks = masks.to(device_of(model))

    def after_step(self, model: nn.Module, step: int) -> Masks | None:
        before = self.masks
        if before is None:
            raise RuntimeError("a schedule of masks takes no step before start() or restore()")
        due = step >= self._first and (step - self._first) % self._every == 0
        prunes = (due and step < self._last) or step == self._last
        exchanges = due and step < self._drop_end  # not after the last step: what grows there is never trained
        if not (prunes or exchanges):
            return None
        scores = self._scores(model)
        require_finite(scores, "scores", step)
        masks = self._prune(scores, before, step) if prunes else before
        masks = self._exchange(scores, masks, self._growth(model, step), step) if exchanges else masks
        if masks is before:
            return None
        self._facts["regrown"] += sum(int((mask & ~before[name]).sum()) for name, mask in masks.items())
        self.masks = masks
        return masks

    def _prune(self, scores: Mapping[str, Tensor], masks: Masks, step: int) -> Masks:
        """Leave the most important weights of ``masks``, as many as the cubic path says."""
        u = (step - self._first) / max(1, self._last - self._first) if step < self._last else 1.0
        keep = self._target.count(cubic(self._initial, self._target.density, u))
        if keep >= masks.kept:
            return masks
        pruned = select(
            scores,
            self._target.layers,
            keep,
            budget=self._budget,
            min_layer_density=self._min_layer_density,
            within=masks,
        )
        self._facts["pruned"].append([step, pruned.density])
        return pruned

    def _exchange(self, scores: Mapping[str, Tensor], masks: Masks, growth: Mapping[str, Tensor], step: int) -> Masks:
        """Drop the least important weights of each layer and regrow as many among its zeros."""
        layers, q = self._target.layers, self._drop(step)
        active = [int(masks[layer.name].sum()) for layer in layers]
        staying = [count - round(q * count) for count in active]
        if staying == active:
            return masks
        self._facts["exchanges"] += 1
        kept = select(scores, layers, sum(staying), budget=_exactly(staying), within=masks)
        grown = select(growth, layers, sum(active), budget=_exactly(active), forced=kept)
        return grown.to(next(iter(masks.values())).device)

    def _drop(self, step: int) -> float:
        settings = self._settings
        if settings.drop_path == "constant":
            return settings.drop
        return cosine(settings.drop, settings.drop_floor, step / self._drop_end)

    def _growth(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        """What is regrown first in each layer: the larger the sooner."""
        if self._settings.regrow == "random":
            return self._random("regrow", step)
        grads = {
            name: torch.zeros_like(weight) if weight.grad is None else weight.grad.abs()
            for name, weight in prunable(model).items()
        }
        require_finite(grads, "gradients", step)
        return grads

    def _random(self, *stream: str | int) -> dict[str, Tensor]:
        """Uniform numbers from a seed of their own, so that a resumed run draws what the whole one did."""
        draw = generator(self._target.seed, "masks", *stream)
        return {layer.name: torch.rand(layer.shape, generator=draw) for layer in self._target.layers}


def _exactly(counts: Sequence[int]) -> Allocation:
    """A budget of so many weights in each layer."""

    def allocate(layers: Sequence[Layer], density: float) -> np.ndarray:
        return np.array([count / layer.size for count, layer in zip(counts, layers, strict=True)])

    return allocate
