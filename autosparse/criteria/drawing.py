"""Pruning in rounds of draws, each with the gradients of other images at the network that is left."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from autosparse.budget import select
from autosparse.criteria.base import Scores
from autosparse.criteria.gradients import Batches, LossFn, mean_gradient
from autosparse.criteria.lasting import Lasting, Moment, Rule, budget_of, squeezed
from autosparse.errors import AutoSparseError
from autosparse.layers import layers_of, prunable
from autosparse.masks import Masks
from autosparse.triggers.init import AtInit

_FEWEST = 8  # images of a round: batch norm needs several


def drawn(
    owner: str,
    rule: Rule,
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
    """How long each weight survives in a copy that is pruned in rounds, by a rule and by chance.

    The images are dealt out to the rounds, so that all of them together cost one gradient pass over them. With
    ``noise`` 1 the rule's scores are logarithms of odds: each round keeps a sample without replacement in which a
    weight is drawn before another with the odds that the rule gives it (Gumbel top-k, Kool et al. 2019,
    arXiv 1903.06059). A weight's luck is the same in all rounds: their removals are nested as if drawn at once.

    Scores are those of :class:`~autosparse.criteria.lasting.Lasting`. The other arguments are the ingredients of these
    names (:data:`autosparse.criteria.base.INGREDIENTS`).

    Args:
        owner: the criterion, for messages.
        parts: rounds; fewer where there are not eight images for each. The density falls along an exponential, and what
            the last round says is the score of what is left.
        noise: scale of the Gumbel noise; with 0 the rule alone decides.

    Raises:
        AutoSparseError: a value out of range, no images, or a loss that is not finite.
    """
    if parts < 1:
        raise AutoSparseError(f"{owner} has parts {parts}: give 1 or more")
    if not 0 <= noise < math.inf:
        raise AutoSparseError(f"{owner} has noise {noise}: give 0 or more")
    network = copy.deepcopy(model)
    weights, layers = prunable(network), layers_of(network)
    dense = {name: weight.detach().clone() for name, weight in weights.items()}
    lasting, masks = Lasting(dense), masks.to(next(iter(dense.values())).device)
    luck = {name: noise * _gumbel(weight, generator) for name, weight in dense.items()} if noise else {}
    budget = budget_of(counts, layers, keep)
    first = masks.kept
    portions = dealt(batches, parts)
    way = AtInit(len(portions)).densities(keep / masks.kept)
    for index, images in enumerate(portions):
        gradients = mean_gradient(network, images, loss_fn)
        now = {name: weight.detach() for name, weight in weights.items()}
        found = rule(Moment(layers, now, gradients, masks))
        said = squeezed({name: score + luck[name] for name, score in found.items()} if luck else found)
        if index == len(portions) - 1:
            break
        left = select(said, layers, max(keep, round(first * way[index])), budget=budget, within=masks)
        lasting.pruned(said, masks, left)
        masks = left
        masks.apply(network)
    return lasting.ended(said, masks)


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


def _gumbel(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise of the shape and on the device of ``weight``; the same on every device."""
    return torch.empty(weight.shape).exponential_(generator=generator).log_().neg_().to(weight.device)
