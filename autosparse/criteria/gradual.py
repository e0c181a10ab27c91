"""What criteria that prune in several rounds share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from autosparse.budget import Allocation, following
from autosparse.layers import Layer, total_weights


@torch.no_grad()
def squeezed(said: Sequence[Tensor]) -> list[Tensor]:
    """Put into [0, 1/2] by one linear map for the network that keeps order and, without negative values, zero.

    Float32 is overwritten.
    """
    found = [values.float() for values in said]
    ends = [values.aminmax() for values in found if values.numel()]
    low, high = min(0.0, *(float(end.min) for end in ends)), max(float(end.max) for end in ends)
    return [values.sub_(low).div_(2 * (high - low)) if high > low else values.zero_() for values in found]


def budget_of(counts: Mapping[str, int] | None, layers: Sequence[Layer], keep: int) -> str | Allocation:
    """For prunings on the way to ``keep`` weights: layer densities that lead to ``counts``, or one global threshold."""
    if counts is None:
        return "global"
    return following(np.array([counts[layer.name] / layer.size for layer in layers]), keep / total_weights(layers))
