"""Norms of the filters that compute a channel."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from autosparse.channels.criteria.base import ChannelScores, channel_criterion
from autosparse.channels.criteria.slices import filters, float64, slices, weight_of
from autosparse.channels.groups import Coupling
from autosparse.errors import UnknownNameError

#: What a group's scores are divided by so that those of different groups can be compared.
NORMALISERS: dict[str, Callable[[np.ndarray], float]] = {
    "none": lambda scores: 1.0,
    "mean": lambda scores: float(scores.mean()),
    "max": lambda scores: float(scores.max()),
}
_FAN_IN = "fan-in"


@channel_criterion("l1", paper="Li et al. 2017, arXiv 1608.08710")
def l1(model: nn.Module, coupling: Coupling, *, normalise: str = "mean") -> ChannelScores:
    """The L1 norm of the filters that compute the channel, a sum over the layers that share it.

    Args:
        normalise: how the norms of different groups are made comparable. ``mean``, the default, divides by the group's
            mean: in front of a norm the scale of a whole layer means nothing, and this is the same for every scale.
            ``max`` divides by the group's largest, which hangs on one filter. ``fan-in`` divides each layer's norm by
            sqrt(fan-in), the scale of an L1 norm at He initialisation (that of an L2 norm does not depend on the
            fan-in). ``none`` compares the norms as they are.
    """
    return normalised(filter_norms(model, coupling, 1, normalise == _FAN_IN), normalise, "l1")


@channel_criterion("l2", paper="He et al. 2018, arXiv 1808.06866")
def l2(model: nn.Module, coupling: Coupling, *, normalise: str = "mean") -> ChannelScores:
    """The L2 norm of the filters that compute the channel, a sum over the layers that share it.

    It is the magnitude importance of EPI (arXiv 2110.12007), which adds up tied layers too.

    Args:
        normalise: ``mean``, ``max``, ``fan-in`` or ``none``, as l1 says.
    """
    return normalised(filter_norms(model, coupling, 2, normalise == _FAN_IN), normalise, "l2")


def filter_norms(model: nn.Module, coupling: Coupling, order: int, by_fan_in: bool = False) -> ChannelScores:
    """The sum over layers of the L1 or L2 norm of all weights through which a layer computes the channel.

    Args:
        by_fan_in: divide each norm by the square root of its layer's fan-in.
    """
    scores = {}
    for group in coupling:
        scores[group.name] = np.zeros(group.width)
        for member in filters(model, group):
            weight = weight_of(model, member)
            norms = torch.linalg.vector_norm(slices(model, member, weight), order, dim=1, dtype=torch.float64)
            scores[group.name] += float64(norms) / (math.sqrt(weight[0].numel()) if by_fan_in else 1)
    return scores


def normalised(scores: ChannelScores, how: str, criterion: str) -> ChannelScores:
    """The scores of each group over what :data:`NORMALISERS` says; a group of zeros stays one.

    ``fan-in``, which acts on the layers of a group, has been applied before.
    """
    if how not in NORMALISERS and how != _FAN_IN:
        raise UnknownNameError(f"normalise of {criterion}", how, {*NORMALISERS, _FAN_IN})
    divisor = NORMALISERS.get(how, NORMALISERS["none"])
    return {name: values / (divisor(values) or 1.0) for name, values in scores.items()}
