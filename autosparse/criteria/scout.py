from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autosparse.connectivity import passing_by
from autosparse.criteria.base import Scores, Stream, criterion
from autosparse.criteria.floors import Floors
from autosparse.criteria.gradients import LossFn
from autosparse.criteria.short_training import Moment, ShortTraining, survival
from autosparse.layers import layers_of
from autosparse.masks import Masks


@criterion("scout", paper="Zhu and Gupta 2017, arXiv 1710.01878, rewound")
def scout(
    model: nn.Module,
    stream: Stream,
    loss_fn: LossFn,
    keep: int,
    counts: Mapping[str, int] | None,
    masks: Masks,
    generator: torch.Generator,
    example: Tensor,
    *,
    steps: int = 500,
    split: int = 4,
    updates: int = 50,
    until: float = 0.8,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    same_sign: bool = True,
    precision: str = "auto",
    least: float = 0.0,
) -> Scores:
    """Survival in one short training that prunes step by step and is then forgotten.

    A copy of the network is trained by SGD for ``steps`` batches. Meanwhile its smallest weights are removed: the
    density falls along an exponential from 1 to the one asked for, which it reaches after ``until`` of the steps. The
    survivors are kept at their initial values. Lottery-ticket rewinding does the same in many trainings.

    Options are those of :class:`~autosparse.criteria.short_training.ShortTraining`, and ``least`` is that of
    :class:`~autosparse.criteria.floors.Floors`; scores are those of
    :func:`~autosparse.criteria.short_training.survival`. Later rounds (``rounds``) forget what the copy of the round
    before has learnt.

    Raises:
        AutoSparseError: an option out of range. DivergedError: a loss is not finite.
    """
    training = ShortTraining("scout", steps, split, updates, until, lr, momentum, weight_decay, same_sign, precision)
    floors = Floors("scout", layers_of(model), passing_by(model, example) if least else None, least)
    return survival(training, _magnitudes, model, stream, loss_fn, keep, counts, masks, generator, floors)


def _magnitudes(moment: Moment) -> Scores:
    return {name: weight.abs() for name, weight in moment.weights.items()}
