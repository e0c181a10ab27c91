from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from autosparse.connectivity import passing_by
from autosparse.criteria.base import Scores, Stream, criterion
from autosparse.criteria.drawing import drawn
from autosparse.criteria.floors import Floors
from autosparse.criteria.gradients import Batches, LossFn
from autosparse.criteria.short_training import Moment, ShortTraining, survival
from autosparse.errors import AutoSparseError
from autosparse.features import AT_ANY_MOMENT, NetworkFeatures
from autosparse.layers import Layer, layers_of, prunable
from autosparse.masks import Masks
from autosparse.scorer.network import Scorer


@criterion("autos", paper="Liu et al. 2024, arXiv 2408.14757 (AutoSparse)")
def autos(
    model: nn.Module,
    measure_gradients: Callable[[], Mapping[str, Tensor]],
    batches: Batches,
    stream: Stream,
    loss_fn: LossFn,
    keep: int,
    counts: Mapping[str, int] | None,
    masks: Masks,
    generator: torch.Generator,
    scorer: Scorer,
    example: Tensor,
    *,
    steps: int = 0,
    split: int = 4,
    updates: int = 50,
    until: float = 0.8,
    lr: float = 0.1,
    memory: float = 0.95,
    precision: str = "auto",
    parts: int = 10,
    noise: float = 1.0,
    least: float = 0.5,
) -> Scores:
    """Which weights are worth keeping, as a scorer learned on other networks.

    Scorers of initial features (``paper``, ``scale-free``) see each weight once, and scores are their logits: the order
    of the predicted survivals in iterative rewind pruning, without the ties that a float32 sigmoid makes near 1.
    ``parts``, ``noise`` and ``least`` are not for them.

    Scorers of the feature sets ``state`` and ``flow`` see what is left again and again, and scores count the prunings
    that a weight survived. Without ``steps`` the network is pruned at its initial weights, in rounds of draws
    (:mod:`autosparse.criteria.drawing`). With them the scorer guides a short training of a copy
    (:mod:`autosparse.criteria.short_training`): it sees the copy's weights, the root mean squares of their gradients
    and what is left, and the lowest logits go.

    Args:
        steps: batches of the training; more buy a better mask. A hundred are worth no more than none on residual
            networks, and less in narrow blocks, where five hundred are worth as much (docs/study.md, The frontier).
        split, updates, until, lr, precision: as in :class:`~autosparse.criteria.short_training.ShortTraining`.
        memory: decay a batch of the moving average of squared gradients.
        parts: rounds without ``steps``; each has its part of the images.
        noise: scale of the Gumbel noise without ``steps``: with 1 logits are logarithms of odds, with 0 the highest
            stay.
        least: of the mean layer's weights, kept in every layer that all must pass through, if that is no more than one
            for each of its output channels.

    Raises:
        AutoSparseError: an option out of range, or ``steps`` for a scorer that knows initial weights only.
        DivergedError: a loss is not finite.
    """
    if scorer.feature_set not in AT_ANY_MOMENT:
        if steps:
            raise AutoSparseError(
                f"the scorer looks at '{scorer.feature_set}' features, which are those of initial weights: it cannot "
                f"guide a training; leave steps out, or give a scorer of the feature set 'state'"
            )
        return logits(scorer, layers_of(model), prunable(model), measure_gradients())
    if steps == 0:
        return drawn(
            "autos", scorer, model, batches, loss_fn, keep, counts, masks, generator, example,
            parts=parts, noise=noise, least=least,
        )  # fmt: skip

    bypass = passing_by(model, example)
    floors = Floors("autos", layers_of(model), bypass, least)

    def rule(moment: Moment) -> Scores:
        return logits(scorer, moment.layers, moment.weights, moment.gradients, moment.masks, bypass)

    training = ShortTraining(
        "autos", steps, split, updates, until, lr, momentum=0.9, weight_decay=5e-4, same_sign=True,
        precision=precision, memory=memory,
    )  # fmt: skip
    return survival(training, rule, model, stream, loss_fn, keep, counts, masks, generator, floors)


def logits(
    scorer: Scorer,
    layers: Sequence[Layer],
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    masks: Masks | None = None,
    bypass: Mapping[str, float] | None = None,
) -> Scores:
    """The scorer's outputs; arguments as for :class:`~autosparse.features.NetworkFeatures`."""
    features = NetworkFeatures(scorer.feature_set, layers, weights, gradients, masks, bypass)
    return {layer.name: scorer.score(features.layer(layer)).to(gradients[layer.name].device) for layer in layers}
