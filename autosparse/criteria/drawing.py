"""Pruning in rounds of draws, each with the gradients of other images at the network that is left."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from autosparse.budget.selection import allocated, top_k
from autosparse.criteria.base import Scores
from autosparse.criteria.gradients import Batches, LossFn, mean_gradient
from autosparse.criteria.gradual import budget_of, squeezed
from autosparse.errors import AutoSparseError
from autosparse.features import FeaturesOfRest
from autosparse.layers import layers_of, prunable
from autosparse.masks import Masks
from autosparse.scorer.network import Scorer
from autosparse.triggers.init import AtInit

_FEWEST = 8  # images of a round: batch norm needs several


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
    *,
    parts: int,
    noise: float,
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
        scorer: of the feature set ``state``.
        parts: rounds; fewer where there are not eight images for each. The density falls along an exponential, and what
            the last round says is the score of what is left.
        noise: scale of the Gumbel noise; with 0 the scorer alone decides.

    Raises:
        AutoSparseError: a value out of range, no images, or a loss that is not finite.
    """
    if parts < 1:
        raise AutoSparseError(f"{owner} has parts {parts}: give 1 or more")
    if not 0 <= noise < math.inf:
        raise AutoSparseError(f"{owner} has noise {noise}: give 0 or more")
    network = copy.deepcopy(model)
    rest = _Rest(network, masks, counts, keep)
    luck = [noise * _gumbel(layer.shape, generator, rest.device) for layer in rest.layers] if noise else None
    scores = [torch.zeros(layer.size, device=rest.device) for layer in rest.layers]
    portions = dealt(batches, parts)
    way = AtInit(len(portions)).densities(keep / rest.count)
    first = rest.count
    for index, images in enumerate(portions):
        said = squeezed(rest.logits(scorer, mean_gradient(network, images, loss_fn), luck))
        for score, values, places in zip(scores, said, rest.places, strict=True):
            _at(score, places, index + values)
        if index < len(portions) - 1:
            rest.prune(said, max(keep, round(first * way[index])))
    return {layer.name: score.reshape(layer.shape) for layer, score in zip(rest.layers, scores, strict=True)}


class _Rest:
    """What is left of a network that is being pruned: places in the flattened layers, and the network itself."""

    def __init__(self, network: nn.Module, masks: Masks, counts: Mapping[str, int] | None, keep: int) -> None:
        self.layers = layers_of(network)
        self._weights = prunable(network)
        self.device = next(iter(self._weights.values())).device
        #: ``None`` where everything is left: places of millions of weights would cost more than they save.
        self.places: list[Tensor | None] = [
            None if bool(mask.all()) else mask.flatten().nonzero().squeeze(1).to(self.device)
            for mask in (masks[layer.name] for layer in self.layers)
        ]
        budget = budget_of(counts, self.layers, keep)
        self._allocate = None if isinstance(budget, str) else budget

    @property
    def counts(self) -> list[int]:
        return [
            layer.size if places is None else len(places)
            for layer, places in zip(self.layers, self.places, strict=True)
        ]

    @property
    def count(self) -> int:
        return sum(self.counts)

    @torch.no_grad()
    def logits(self, scorer: Scorer, gradients: Scores, luck: Sequence[Tensor] | None) -> list[Tensor]:
        """Of what is left of each layer."""

        def left(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                layer.name: _of(tensors[layer.name].detach().flatten(), places).float()
                for layer, places in zip(self.layers, self.places, strict=True)
            }

        named = {layer.name: places for layer, places in zip(self.layers, self.places, strict=True)}
        features = FeaturesOfRest(self.layers, left(self._weights), left(gradients), named)
        found = [scorer.score(features.layer(layer)) for layer in self.layers]
        if luck is None:
            return found
        return [
            values.add_(_of(chance, places)) for values, chance, places in zip(found, luck, self.places, strict=True)
        ]

    @torch.no_grad()
    def prune(self, said: Sequence[Tensor], keep: int) -> None:
        """Keep the ``keep`` weights of the highest scores, under the budget."""
        if self._allocate is None:
            kept = list(top_k(torch.cat(list(said)), keep).split(self.counts))
        else:
            counts = allocated(self.layers, keep, self._allocate, self.counts)
            kept = [top_k(values, count) for values, count in zip(said, counts, strict=True)]
        for index, (layer, here) in enumerate(zip(self.layers, kept, strict=True)):
            places = self.places[index]
            gone = _of_or_range(places, ~here)
            removed = torch.zeros(layer.size, dtype=torch.bool, device=self.device)
            removed[gone] = True  # a view of the weights would depend on their memory format
            self._weights[layer.name].masked_fill_(removed.view(layer.shape), 0.0)
            self.places[index] = _of_or_range(places, here)


def _of(values: Tensor, places: Tensor | None) -> Tensor:
    return values if places is None else values[places]


def _of_or_range(places: Tensor | None, chosen: Tensor) -> Tensor:
    """``places[chosen]``, where ``None`` stands for all places."""
    return chosen.nonzero().squeeze(1) if places is None else places[chosen]


def _at(score: Tensor, places: Tensor | None, values: Tensor) -> None:
    if places is None:
        score.copy_(values)
    else:
        score[places] = values


def dealt(batches: Batches, parts: int) -> list[list[tuple[Tensor, Tensor]]]:
    """``batches`` in at most ``parts`` lists of about as many images, in their order; at least one.

    Batches are divided where need be.
    """
    batches = list(batches)
    images = sum(len(x) for x, _ in batches)
    parts = max(1, min(parts, images // _FEWEST))
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


def _gumbel(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard Gumbel noise, flat; the same on every device."""
    return torch.empty(math.prod(shape)).exponential_(generator=generator).log_().neg_().to(device)
