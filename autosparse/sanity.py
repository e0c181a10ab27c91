"""Sanity checks: what a method's masks are worth beyond their layer densities and their initial weights.

Frankle et al. 2021, arXiv 2009.08576; Su et al. 2020, arXiv 2009.11094. A method whose accuracy survives ``shuffle``
has found layer densities, not weights; one that survives ``reinit`` has not used the weights' values; one that
survives ``invert`` ranks nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autosparse.errors import UnknownNameError
from autosparse.granularity import Blocks
from autosparse.layers import Layer
from autosparse.masks import Masks

SANITY = {
    "shuffle": "permute the mask at random within every layer",
    "reinit": "draw new initial weights under the same mask",
    "invert": "keep the weights with the smallest scores",
}


def check_sanity(name: str | None) -> None:
    """UnknownNameError for a check that does not exist."""
    if name is not None and name not in SANITY:
        raise UnknownNameError("sanity check", name, SANITY)


def shuffled(masks: Masks, layers: Sequence[Layer], blocks: Blocks | None, generator: torch.Generator) -> Masks:
    """``masks`` permuted within every layer; an N:M pattern stays one.

    Args:
        generator: on the CPU, so that a seed gives one permutation on every device.
    """
    if blocks is not None:
        noise = {layer.name: torch.rand(layer.shape, generator=generator) for layer in layers}
        return Masks({name: best.to(masks[name].device) for name, best in blocks.best(noise, layers).items()})
    found = {}
    for layer in layers:
        order = torch.randperm(layer.size, generator=generator).to(masks[layer.name].device)
        found[layer.name] = masks[layer.name].reshape(-1)[order].reshape(layer.shape)
    return Masks(found)
