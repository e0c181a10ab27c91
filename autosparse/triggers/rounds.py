"""Pruning of trained weights: round by round with rewinding, or once after training."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autosparse.errors import AutoSparseError, UnknownNameError

if TYPE_CHECKING:
    from autosparse.training import TrainConfig

SCOPES = ("global", "layer")
PQ_SCOPES = ("global", "layer", "neuron")


@dataclass(frozen=True)
class Rewinding:
    """Iterative pruning with rewinding (IRP): train, prune, put the survivors back, again.

    Frankle & Carbin 2019, arXiv 1803.03635; to a later step than 0: Frankle et al. 2020, arXiv 1912.05671. The path
    of densities, ``fraction`` to the power of the rounds, knows no target, so that one run serves every density.

    Args:
        fraction: of its weights, each round keeps this much (the papers remove 20 %).
        rewind_steps: back to the state after this many steps of training the dense network; 0 is the initial state.
        criterion: score of a trained weight, by the name of a registered criterion.
        scope: one threshold for the whole network (``global``), or the same density in every ``layer``.
        epochs: of each round's training; ``None`` is as many as the final training has.
    """

    fraction: float = 0.8
    rewind_steps: int = 0
    criterion: str = "magnitude"
    scope: str = "global"
    epochs: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise AutoSparseError(f"fraction is {self.fraction}: give a number between 0 and 1, such as 0.8")
        _check_rounds(self.rewind_steps, self.epochs)
        if self.scope not in SCOPES:
            raise UnknownNameError("scope", self.scope, SCOPES)

    def kept_after(self, completed: int, total: int) -> int:
        """Weights kept once ``completed`` rounds are over, out of ``total``; all before the first."""
        return max(1, round(self.fraction**completed * total))


@dataclass(frozen=True)
class PQRewinding:
    """Sparsity-informed adaptive pruning (SAP): rounds with rewinding that remove what the PQ index says.

    Diao et al. 2023, arXiv 2302.05601; the formulas are in :mod:`autosparse.pq_index`. SAP has no target density of
    its own: rounds go on until the next one would leave fewer weights than are asked for, and that one stops short.
    What a round removes shrinks as the survivors become alike, so a small density may be out of reach: then the
    weights with the largest magnitudes of the last round are taken at once.

    Args:
        p, q: norms of the index, 0 < p < q. The authors use (0.5, 1) and (1, 2).
        gamma: scales what is removed.
        eta: how much of the survivors' p-norm the removed weights may have.
        max_fraction: at most this fraction of a neuron, a layer or the network is removed in one round.
        scope: where the index is measured and weights are compared: ``global``, each ``layer``, or each output
            ``neuron``. The authors compare the three; global, as in the other methods here, is the default.
        max_rounds: no more rounds than these, whatever is asked for.
        rewind_steps: as in :class:`Rewinding`; the authors rewind to the initial state.
        epochs: of each round's training; ``None`` is as many as the final training has.
    """

    p: float = 0.5
    q: float = 1.0
    gamma: float = 1.0
    eta: float = 0.0
    max_fraction: float = 0.9
    scope: str = "global"
    max_rounds: int = 30
    rewind_steps: int = 0
    epochs: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.p < self.q < math.inf:
            raise AutoSparseError(f"p is {self.p} and q is {self.q}: give 0 < p < q, such as 0.5 and 1")
        if not 0 < self.gamma < math.inf:
            raise AutoSparseError(f"gamma is {self.gamma}: give a positive number")
        if not 0 <= self.eta < math.inf:
            raise AutoSparseError(f"eta is {self.eta}: give 0 or more")
        if not 0 < self.max_fraction < 1:
            raise AutoSparseError(f"max-fraction is {self.max_fraction}: give a number between 0 and 1, such as 0.9")
        if self.max_rounds < 1:
            raise AutoSparseError(f"max-rounds is {self.max_rounds}: give 1 or more")
        _check_rounds(self.rewind_steps, self.epochs)
        if self.scope not in PQ_SCOPES:
            raise UnknownNameError("scope", self.scope, PQ_SCOPES)


@dataclass(frozen=True)
class AfterTraining:
    """Train the dense network, prune it once, keep the trained weights and fine-tune them.

    Han et al. 2015, arXiv 1506.02626.

    Args:
        criterion: score of a trained weight, by the name of a registered criterion.
        scope: one threshold for the whole network (``global``), or the same density in every ``layer``.
        lr_factor: fine-tuning has the training's schedule with this multiple of its learning rate. Han et al. take
            0.1 to 0.01. Renda et al. (2020, arXiv 2003.02389) find that the whole schedule at its old height
            ("learning-rate rewinding") is as good or better at every density: hence 1. Their fine-tuning at the last
            learning rate does not exist for schedules that end at zero.
        epochs: of fine-tuning; ``None`` is as many as the dense training has.
    """

    criterion: str = "magnitude"
    scope: str = "global"
    lr_factor: float = 1.0
    epochs: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.lr_factor < math.inf:
            raise AutoSparseError(f"lr-factor is {self.lr_factor}: give a positive number, such as 1 or 0.1")
        _check_rounds(0, self.epochs)
        if self.scope not in SCOPES:
            raise UnknownNameError("scope", self.scope, SCOPES)

    def fine_tuning(self, train: TrainConfig) -> TrainConfig:
        """The settings of fine-tuning, from those of the dense training."""
        return replace(train, lr=train.lr * self.lr_factor, epochs=self.epochs or train.epochs)


def _check_rounds(rewind_steps: int, epochs: int | None) -> None:
    if rewind_steps < 0:
        raise AutoSparseError(f"rewind-steps is {rewind_steps}: give 0 or more")
    if epochs is not None and epochs < 1:
        raise AutoSparseError(f"epochs is {epochs}: give 1 or more, or none for those of the final training")
