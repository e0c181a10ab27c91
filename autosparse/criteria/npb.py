"""Node-Path Balancing: masks with many effective nodes and many effective paths, chosen without data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from autosparse.criteria.base import Scores, criterion
from autosparse.criteria.kernel_allocation import KernelAllocation
from autosparse.criteria.path_counting import PathNetwork
from autosparse.errors import AutoSparseError
from autosparse.layers import Layer, layers_of


@criterion("npb", paper="Pham et al. 2023, NeurIPS")
def npb(
    model: nn.Module,
    example: Tensor,
    counts: Mapping[str, int] | None,
    generator: torch.Generator,
    *,
    alpha: float = 0.01,
    beta: float = 1.0,
    max_kernel: int = 9,
    min_node: int = 1,
) -> Scores:
    """Node-Path Balancing: a mask with many effective nodes, paths and kernels.

    Layers are decided in the order in which the network runs. In each, the number of weights of every kernel solves
    the paper's integer programme (:mod:`autosparse.criteria.kernel_allocation`) for the paths that arrive through the
    layers before; where inside its kernel a weight sits is left to chance, among the taps that meet the image at all.
    Then, from the last layer to the first, weights on no path from input to output move to places of their layer that
    join arriving to leaving paths, the most valuable to the same objective first (the authors' code fills up the
    fullest kernels, which undoes its own term for kernels in use). In that order a channel at which paths only arrive
    can be used, and the layers before it stay as they are. Where a layer has no such place left, weights stay: a
    depthwise layer, for one, has no choice of channels.

    Neither the weights' values nor ``example``'s matter, only shapes. Weights of the mask score 1 to 2 and all others
    0 to 0.5, each by its share of the paths that run, or would run, through it. Costs two passes of one image, and
    one a layer, in float64.

    Args:
        alpha: weight of effective nodes against paths, and
        beta: weight of kernels in use. 0.01 and 1 are the paper's for ResNet-20 on CIFAR-10 (0.01 and 2 for ResNet-18
            on Tiny-ImageNet).
        max_kernel: the most weights of one kernel where the count allows: 9 there, all of a 3x3 kernel (6 for
            ResNet-18).
        min_node: weights that every channel should have at either end; 1 in the authors' code.

    Raises:
        AutoSparseError: the budget fixes no layer counts, an option is out of range, or the model cannot be evaluated
            on paths.
    """
    if counts is None:
        raise AutoSparseError(
            "npb needs a budget that fixes how many weights each layer keeps: choose erk, synexp or uniform"
        )
    layers = {layer.name: layer for layer in layers_of(model)}
    network = PathNetwork("npb", model, example)
    taps = _usable_taps(network)
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    problems: dict[str, KernelAllocation] = {}

    def choose(name: str, arriving: Tensor) -> Tensor:
        layer = layers[name]
        problems[name] = KernelAllocation(
            arriving.numpy(),
            outputs=layer.shape[0],
            groups=layer.groups,
            count=counts[name],
            alpha=alpha,
            beta=beta,
            max_kernel=min(max_kernel, max(1, int(taps[name].sum()))),
            min_node=min_node,
        )
        kernels = torch.from_numpy(problems[name].solve(rng))
        return _placed(_as_weight(kernels, layer), taps[name], generator).reshape(layer.shape)

    network.decide(choose)
    scores = {}
    for name in reversed(problems):
        paths = network.paths_through(name)[name]
        kept = _moved(network.weights[name].bool().cpu(), paths.cpu() > 0, problems[name], layers[name], generator)
        network.weights[name].copy_(kept)
        share = paths / paths.max().clamp(min=torch.finfo(paths.dtype).tiny)
        scores[name] = torch.where(network.weights[name].bool(), 1 + share, share / 2).float()
    return {name: scores[name] for name in layers}


def _usable_taps(network: PathNetwork) -> dict[str, Tensor]:
    """For every layer, bool ``[taps]``: the positions of a kernel that lie on paths of the dense network.

    On a 1x1 image, only the centre of a padded 3x3 kernel does.
    """
    for weight in network.weights.values():
        weight.div_(weight[0].numel())  # or the paths of a deep dense network would exceed float64
    return {
        name: (paths > 0).reshape(*paths.shape[:2], -1).any(dim=0).any(dim=0).cpu()
        for name, paths in network.paths_through(*network.weights).items()
    }


def _as_weight(per_input: Tensor, layer: Layer) -> Tensor:
    """``[C_in, C_out / groups]`` as ``[C_out, C_in / groups]``, the order of a weight's first two axes."""
    by_group = per_input.reshape(layer.groups, layer.shape[1], layer.shape[0] // layer.groups)
    return by_group.transpose(1, 2).reshape(layer.shape[0], layer.shape[1])


def _placed(kernels: Tensor, taps: Tensor, generator: torch.Generator) -> Tensor:
    """Bool ``[..., taps]`` with ``kernels [...]`` True a kernel, at random positions; usable ones first."""
    noise = torch.rand((*kernels.shape, len(taps)), generator=generator) + taps
    return noise.argsort(dim=-1, descending=True).argsort(dim=-1) < kernels.unsqueeze(-1)


def _moved(mask: Tensor, live: Tensor, problem: KernelAllocation, layer: Layer, generator: torch.Generator) -> Tensor:
    """``mask`` with its weights outside ``live`` moved to free places inside it, as many as fit.

    All are bool tensors of the layer's shape. No path ran through what is taken away, so ``live`` stays true of the
    places that are filled.
    """
    kernels = (*layer.shape[:2], layer.taps)
    effective, free = (mask & live).reshape(kernels), (live & ~mask).reshape(kernels)
    idle = (mask & ~live).flatten().nonzero()[:, 0]
    # The free places of a kernel stand in line, by chance; a place is worth what the weights before it leave.
    line = (torch.rand(kernels, generator=generator) + free).argsort(dim=-1, descending=True).argsort(dim=-1)
    level = effective.sum(dim=-1, keepdim=True) + line
    free &= level < problem.limit
    places = free.flatten().nonzero()[:, 0]
    places = places[torch.randperm(len(places), generator=generator)]
    of_input = torch.from_numpy(problem.path_value).unsqueeze(1).expand(-1, problem.row)
    value = _as_weight(of_input, layer).unsqueeze(-1) + problem.kernel_value * (level == 0)
    best = places[value.flatten()[places].argsort(descending=True, stable=True)[: len(idle)]]
    kept = effective.flatten()
    kept[best] = True
    kept[idle[torch.randperm(len(idle), generator=generator)[len(best) :]]] = True
    return kept.reshape(mask.shape)
