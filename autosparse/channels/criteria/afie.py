"""AFIE: how much of a layer's filters is one another's repetition, by the entropy of its singular values."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from autosparse.channels.criteria.base import ChannelScores, channel_criterion
from autosparse.channels.criteria.filter_norms import filter_norms
from autosparse.channels.criteria.slices import filters, float64, weight_of
from autosparse.channels.groups import ChannelGroup, Coupling
from autosparse.errors import UnknownNameError

_KERNELS = ("mean", "flatten")
_ORDERS = {"l1": 1, "l2": 2}


@channel_criterion("afie", paper="Lu et al. 2022, arXiv 2208.06660")
def afie(model: nn.Module, coupling: Coupling, *, kernels: str = "mean", within: str = "l1") -> ChannelScores:
    """Average filter information entropy of the layer, times the rank of the filter in it.

    The singular values of a layer's output-by-input matrix, scaled to [0, 1], make a distribution by a softmax;
    AFIE = (its entropy) / (number of filters). Layers lose channels in inverse proportion to their AFIE:
    λ_l = λ AFIE_max / AFIE_l. A score is AFIE_l r with r = 1/width .. 1 the rank of a filter in its group, the largest
    r first in line to stay, so that a global threshold removes just these shares.

    Not confirmed from the paper: the mean over a kernel and the rule for λ_l are those of a public reproduction of it;
    that filters are ranked by their norm inside a layer, and that tied layers count by the mean of their AFIE, is
    chosen here. A layer with a single input, or a single output, has one singular value and so no entropy by the mean
    over its kernels: it counts with its kernels flattened.

    Args:
        kernels: how a kernel becomes entries of the matrix: ``mean`` makes one, their mean; ``flatten`` makes each
            position an input of its own.
        within: the norm of the filters that ranks the channels of a group, ``l1`` or ``l2``.
    """
    if kernels not in _KERNELS:
        raise UnknownNameError("kernels of afie", kernels, _KERNELS)
    if within not in _ORDERS:
        raise UnknownNameError("within of afie", within, _ORDERS)
    norms = filter_norms(model, coupling, _ORDERS[within])
    return {group.name: _layer_afie(model, group, kernels) * _ranks(norms[group.name]) for group in coupling}


def _ranks(values: np.ndarray) -> np.ndarray:
    """1/n for the smallest of n values to 1 for the largest; on a tie the earlier one ranks higher."""
    ranks = np.empty(len(values))
    ranks[np.argsort(-values, kind="stable")] = np.arange(len(values), 0, -1) / len(values)
    return ranks


def _layer_afie(model: nn.Module, group: ChannelGroup, kernels: str) -> float:
    found = []
    for member in filters(model, group):
        weight, groups = weight_of(model, member), getattr(model.get_submodule(member.module), "groups", 1)
        found.append(entropy(singular_values(weight, groups, kernels)) / len(weight))
    return float(np.mean(found))


def singular_values(weight: Tensor, groups: int, kernels: str) -> np.ndarray:
    """Of the matrix of outputs by inputs that ``weight [out, in / groups, *kernel]`` makes, block by block.

    Not a number for weights that are not finite.
    """
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    blocks = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)  # [groups, out, in, taps]
    single = groups * min(blocks.shape[1], blocks.shape[2]) == 1
    matrices = blocks.flatten(2) if kernels == "flatten" or single else blocks.mean(3)
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.transpose(1, 2)
    if not bool(matrices.isfinite().all()):  # torch would raise an error of its own
        return np.array([np.nan])
    # Far faster than a singular value decomposition, and as good for an entropy.
    squares = torch.linalg.eigvalsh(matrices @ matrices.transpose(1, 2))
    return float64(squares.clamp_min(0).sqrt().flatten())


def entropy(spectrum: np.ndarray) -> float:
    """Shannon entropy, in nats, of the softmax of ``spectrum`` scaled to [0, 1]; log n for n equal values."""
    spread = float(np.ptp(spectrum))
    scaled = np.zeros_like(spectrum) if spread == 0 else (spectrum - spectrum.min()) / spread
    p = np.exp(scaled) / np.exp(scaled).sum()
    return float(-(p * np.log(p)).sum())
