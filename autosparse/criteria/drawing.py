"""Pruning in rounds of draws, each with the gradients of other images at the network that is left."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from autosparse.budget.selection import allocated, top_k
from autosparse.connectivity import bypass_for
from autosparse.criteria.base import Scores
from autosparse.criteria.floors import Floors
from autosparse.criteria.gradients import FEWEST_IMAGES, Batches, LossFn, mean_gradient
from autosparse.criteria.gradual import budget_of, squeezed
from autosparse.errors import AutoSparseError
from autosparse.features import FeaturesOfRest
from autosparse.indexing import places_of
from autosparse.layers import Layer, layers_of, prunable
from autosparse.masks import Masks
from autosparse.scorer.network import Scorer
from autosparse.triggers.init import AtInit


def drawn(
    owner: str,
    scorer: Scorer,
    model: nn.Module,
    batches: Batches,
    loss_fn: LossFn,
    keep: int,
    counts: Mapping[str, int] | None,
    masks: Masks,
    generator: torch.Generator,
    example: Tensor,
    *,
    parts: int,
    noise: float,
    least: float,
) -> Scores:
    """How many prunings each weight survives in a copy that is pruned in rounds, by a scorer and by chance.

    The images are dealt out to the rounds, so that all of them together cost one gradient pass over them. With
    ``noise`` 1 logits are logarithms of odds: each round keeps a sample without replacement in which a weight is drawn
    before another with the odds that the scorer gives it (Gumbel top-k, Kool et al. 2019, arXiv 1903.06059). A weight's
    luck is the same in all rounds: their removals are nested as if drawn at once.

    A score counts the prunings that a weight survived; what was said of it at its last, in [0, 1/2], decides among
    equals. The other arguments are the ingredients of these names (:data:`autosparse.criteria.base.INGREDIENTS`).

    Args:
        owner: the criterion, for messages.
        scorer: of the feature set ``state`` or ``flow``.
        parts: rounds; fewer where there are not eight images for each. The density falls along an exponential, and what
            the last round says is the score of what is left.
        noise: scale of the Gumbel noise; with 0 the scorer alone decides.
        least: of the mean layer's weights. No round leaves a layer that everything must pass through with fewer
            (:class:`~autosparse.criteria.floors.Floors`). Needs a scorer that sees shortcuts; has no say under a budget
            of layers.

    Raises:
        AutoSparseError: a value out of range, no images, or a loss that is not finite.
    """
    if parts < 1:
        raise AutoSparseError(f"{owner} has parts {parts}: give 1 or more")
    if not 0 <= noise < math.inf:
        raise AutoSparseError(f"{owner} has noise {noise}: give 0 or more")
    network = copy.deepcopy(model)
    bypass = bypass_for(scorer.feature_set, network, example)
    rest = _Rest(network, masks, counts, keep, Floors(owner, layers_of(network), bypass, least))
    if noise:
        rest.draw(noise, generator)
    scores = [torch.zeros(layer.size, device=rest.device) for layer in rest.layers]
    portions = dealt(batches, parts)
    way = AtInit(len(portions)).densities(keep / rest.count)
    first = rest.count
    for index, images in enumerate(portions):
        said = squeezed(rest.logits(scorer, mean_gradient(network, images, loss_fn)))
        kept = rest.chosen(said, max(keep, round(first * way[index])))
        for score, values, places in zip(scores, said, rest.places, strict=True):
            if places is None:
                torch.add(values, index, out=score)
            else:
                score.index_copy_(0, places.long(), values + index)
        if index < len(portions) - 1:
            rest.prune(kept)
    return {layer.name: score.reshape(layer.shape) for layer, score in zip(rest.layers, scores, strict=True)}


class _Rest:
    """What is left of a network that is being pruned, layer by layer, and the network itself.

    Attributes:
        places: where in the flattened layer, ascending; ``None`` where everything is left: places of millions of
            weights would cost more than they save.
    """

    def __init__(
        self,
        network: nn.Module,
        masks: Masks,
        counts: Mapping[str, int] | None,
        keep: int,
        floors: Floors,
    ) -> None:
        self.layers = layers_of(network)
        self._parameters = [prunable(network)[layer.name] for layer in self.layers]
        self.device = self._parameters[0].device
        self.places = [self._places_of(masks[layer.name], layer) for layer in self.layers]
        self._weights = [
            _of(parameter.detach().float().flatten(), places)
            for parameter, places in zip(self._parameters, self.places, strict=True)
        ]
        self._floors = floors
        self._luck: list[Tensor] | None = None
        budget = budget_of(counts, self.layers, keep)
        self._allocate = None if isinstance(budget, str) else budget

    def _places_of(self, mask: Tensor, layer: Layer) -> Tensor | None:
        return None if bool(mask.all()) else _index(mask.flatten().to(self.device), layer.size)

    def draw(self, noise: float, generator: torch.Generator) -> None:
        """Give every weight its luck, the same on every device; it is added to all logits from now on."""
        self._luck = [
            _of(_gumbel(layer.size, generator).to(self.device).mul_(noise), places)
            for layer, places in zip(self.layers, self.places, strict=True)
        ]

    @property
    def counts(self) -> list[int]:
        return [len(weights) for weights in self._weights]

    @property
    def count(self) -> int:
        return sum(self.counts)

    @torch.no_grad()
    def logits(self, scorer: Scorer, gradients: Scores) -> list[Tensor]:
        """Of what is left of each layer."""
        names = [layer.name for layer in self.layers]
        left = [
            _of(gradients[name].detach().float().flatten(), places)
            for name, places in zip(names, self.places, strict=True)
        ]
        features = FeaturesOfRest(
            scorer.feature_set,
            self.layers,
            dict(zip(names, self._weights, strict=True)),
            dict(zip(names, left, strict=True)),
            dict(zip(names, self.places, strict=True)),
            self._floors.bypass,
        )
        found = [scorer.score(features.layer(layer)) for layer in self.layers]
        if self._luck is not None:
            for values, luck in zip(found, self._luck, strict=True):
                values.add_(luck)
        return found

    @torch.no_grad()
    def chosen(self, said: Sequence[Tensor], keep: int) -> list[Tensor]:
        """Which ``keep`` weights of what is left stay: those of the highest scores, under the budget.

        Of layers that would be left with too few the best scores, in [0, 1/2], are raised by 1/2, above all others.
        """
        if self._allocate is not None:
            counts = allocated(self.layers, keep, self._allocate, self.counts)
            return [top_k(values, count) for values, count in zip(said, counts, strict=True)]
        floors = [min(least, count) for least, count in zip(self._floors.of(keep), self.counts, strict=True)]
        while True:
            kept = top_k(torch.cat(list(said)), keep).split(self.counts)
            short = [
                at
                for at, (mask, least) in enumerate(zip(kept, floors, strict=True))
                if least and int(mask.count_nonzero()) < least
            ]
            if not short:
                return list(kept)
            for at in short:
                said[at].add_(top_k(said[at], floors[at]), alpha=0.5)

    @torch.no_grad()
    def prune(self, kept: Sequence[Tensor]) -> None:
        """Keep what masks over what is left say."""
        for at, (layer, parameter, here) in enumerate(zip(self.layers, self._parameters, kept, strict=True)):
            index = _index(here, layer.size)
            before = self.places[at]
            places = index if before is None else before.index_select(0, index)
            self.places[at] = places
            self._weights[at] = self._weights[at].index_select(0, index)
            if self._luck is not None:
                self._luck[at] = self._luck[at].index_select(0, index)
            direct = parameter.is_contiguous() and parameter.dtype == torch.float32  # else a view has another order
            dense = parameter.view(-1) if direct else torch.empty(layer.size, device=self.device)
            dense.zero_().index_copy_(0, places.long(), self._weights[at])
            if not direct:
                parameter.copy_(dense.view(layer.shape))


def _index(mask: Tensor, size: int) -> Tensor:
    """Where a flat ``mask`` is true: in half the memory where ``size`` fits."""
    found = places_of(mask)
    return found.int() if size < 2**31 else found


def _of(values: Tensor, places: Tensor | None) -> Tensor:
    return values if places is None else values.index_select(0, places)


def dealt(batches: Batches, parts: int) -> list[list[tuple[Tensor, Tensor]]]:
    """``batches`` in at most ``parts`` lists of about as many images, in their order; at least one.

    Batches are divided where need be.
    """
    batches = list(batches)
    images = sum(len(x) for x, _ in batches)
    parts = max(1, min(parts, images // FEWEST_IMAGES))
    bounds = [round(images * part / parts) for part in range(parts + 1)]
    portions: list[list[tuple[Tensor, Tensor]]] = []
    for low, high in pairwise(bounds):
        portions.append([])
        start = 0
        for x, y in batches:
            begin, end = max(low - start, 0), min(high - start, len(x))
            if begin < end:
                portions[-1].append((x[begin:end], y[begin:end]))
            start += len(x)
    return portions


def _gumbel(count: int, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise from 24 bits each, on the CPU."""
    uniform = torch.rand(count, generator=generator).clamp_(min=2**-25)
    return uniform.neg_().log1p_().neg_().log_().neg_()
