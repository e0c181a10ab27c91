"""Sanity checks: what a method's masks are worth beyond their layer densities and their initial weights.

Frankle et al. 2021, arXiv 2009.08576; Su et al. 2020, arXiv 2009.11094. A method whose accuracy survives ``shuffle``
has found layer densities, not weights; one that survives ``reinit`` has not used the weights' values; one that
survives ``invert`` ranks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.granularity import Blocks
from autosparse.layers import Layer
from autosparse.masks import Masks

SANITY = {
    "shuffle": "permute the mask at random within every layer",
    "shuffle-taps": "permute the mask at random within every kernel: who is connected to whom stays",
    "shuffle-inputs": "permute the mask at random within every output channel, which keeps its count",
    "shuffle-outputs": "permute the mask at random within every input channel, which keeps its count",
    "rewire": "exchange the inputs of connections at random: output and input channels keep their counts",
    "reinit": "draw new initial weights under the same mask",
    "invert": "keep the weights with the smallest scores",
}


_EXCHANGES = 40  # rounds of random exchanges; each tries every connection once


def check_sanity(name: str | None, blocks: Blocks | None = None) -> None:
    """UnknownNameError for a check that does not exist; AutoSparseError for one that would break an N:M pattern."""
    if name is not None and name not in SANITY:
        raise UnknownNameError("sanity check", name, SANITY)
    if blocks is not None and name in _REARRANGED:
        raise AutoSparseError(f"sanity {name} would break the N:M pattern: use shuffle, which draws another one")


def is_rearrangement(name: str | None) -> bool:
    """Whether a check moves the mask and leaves scores and weights alone."""
    return name == "shuffle" or name in _REARRANGED


def rearranged(
    name: str | None, masks: Masks, layers: Sequence[Layer], blocks: Blocks | None, generator: torch.Generator
) -> Masks:
    """``masks`` under the check ``name``; as they are where it moves nothing (``None``, ``reinit``, ``invert``).

    Args:
        blocks: of an N:M pattern, which only ``shuffle`` keeps (:func:`check_sanity`).
        generator: on the CPU, so that a seed gives one mask on every device.
    """
    if name == "shuffle":
        return shuffled(masks, layers, blocks, generator)
    if name is None or name not in _REARRANGED:
        return masks
    rearrange = _REARRANGED[name]
    found = {}
    for layer in layers:
        mask = masks[layer.name]
        moved = rearrange(mask.cpu().reshape(layer.shape[0], layer.shape[1], layer.taps), generator)
        found[layer.name] = moved.reshape(layer.shape).to(mask.device)
    return Masks(found)


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


def _within_rows(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Every row of ``rows [n, m]`` permuted at random."""
    order = torch.rand(rows.shape, generator=generator, dtype=torch.float64).argsort(dim=1)
    return rows.gather(1, order)


def _shuffle_taps(mask: Tensor, generator: torch.Generator) -> Tensor:
    return _within_rows(mask.flatten(0, 1), generator).view_as(mask)


def _shuffle_inputs(mask: Tensor, generator: torch.Generator) -> Tensor:
    return _within_rows(mask.flatten(1), generator).view_as(mask)


def _shuffle_outputs(mask: Tensor, generator: torch.Generator) -> Tensor:
    by_input = mask.transpose(0, 1)
    return _within_rows(by_input.flatten(1), generator).view(by_input.shape).transpose(0, 1).contiguous()


def _rewire(mask: Tensor, generator: torch.Generator) -> Tensor:
    """Pairs of connections (o, i, tap), (o', i', tap') become (o, i', tap), (o', i, tap') where both are free.

    The standard chain of double edge swaps on a bipartite graph with given degrees, many disjoint ones at a time.
    """
    _, inputs, taps = mask.shape
    edges = mask.nonzero()  # [n, 3]
    pairs = len(edges) // 2
    place = torch.tensor([inputs * taps, taps, 1])  # from (o, i, tap) to the position in storage
    for _ in range(_EXCHANGES if pairs else 0):
        one, other = torch.randperm(len(edges), generator=generator)[: 2 * pairs].view(2, pairs)
        new_one, new_other = edges[one].clone(), edges[other].clone()
        new_one[:, 1], new_other[:, 1] = edges[other, 1], edges[one, 1]
        codes = torch.stack([(new_one * place).sum(1), (new_other * place).sum(1)])  # [2, pairs]
        _, inverse, counts = codes.unique(return_inverse=True, return_counts=True)
        taken = torch.zeros(mask.numel(), dtype=torch.bool)
        taken[(edges * place).sum(1)] = True
        free = ~taken[codes] & (counts[inverse] == 1)
        # Half of them, lest the number of exchanges be even each time.
        swap = free.all(dim=0) & (torch.rand(pairs, generator=generator) < 0.5)
        edges[one[swap]], edges[other[swap]] = new_one[swap], new_other[swap]
    moved = torch.zeros_like(mask)
    moved[edges[:, 0], edges[:, 1], edges[:, 2]] = True
    return moved


#: Checks that move the mask of a layer, bool [outputs, inputs, taps]; ``shuffle`` also knows N:M patterns.
_REARRANGED: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "shuffle-taps": _shuffle_taps,
    "shuffle-inputs": _shuffle_inputs,
    "shuffle-outputs": _shuffle_outputs,
    "rewire": _rewire,
}
