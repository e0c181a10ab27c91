"""What networks return, and by how much two of them differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def tensors_in(output: Any) -> Iterator[Tensor]:
    """All tensors in what a network returned: a tensor, or lists, tuples and dicts of them, nested at will."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors_in(value)


def largest_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest absolute difference over the largest magnitude in ``expected``; infinite where shapes differ.

    Not-a-number and infinity count as equal to themselves, and as infinitely far from all else.
    """
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        return math.inf
    far, scale = 0.0, 0.0
    for one, other in zip(found, expected, strict=True):
        a, b = one.detach().cpu().double(), other.detach().cpu().double()
        equal = (a == b) | (a.isnan() & b.isnan())
        far = max(
            far,
            float(torch.where(equal, 0.0, (a - b).abs()).nan_to_num(math.inf, math.inf).max()) if a.numel() else 0.0,
        )
        finite = b[b.isfinite()]
        scale = max(scale, float(finite.abs().max()) if finite.numel() else 0.0)
    return far / scale if far and scale else far
