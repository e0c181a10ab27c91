"""What is removed together: single weights, or N:M blocks.

In an N:M pattern every M consecutive input channels of an output (at one position of the kernel) keep exactly N
weights: 2:4 is what sparse tensor cores multiply (Mishra et al. 2021, arXiv 2104.08378). Layers whose input channels
are no multiple of M (an RGB stem, depthwise convolutions) stay dense.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autosparse.errors import AutoSparseError
from autosparse.layers import Layer

_PATTERN = re.compile(r"^(\d+):(\d+)$")


@dataclass(frozen=True)
class Blocks:
    """``keep`` weights of every ``size`` consecutive input channels."""

    keep: int
    size: int

    @property
    def sparsity(self) -> float:
        """Of the layers that follow the pattern."""
        return (self.size - self.keep) / self.size

    def fits(self, layer: Layer) -> bool:
        return layer.shape[1] % self.size == 0

    def counts(self, layers: Sequence[Layer]) -> dict[str, int]:
        """How many weights each layer keeps."""
        return {layer.name: layer.size // self.size * self.keep if self.fits(layer) else layer.size for layer in layers}

    def best(self, scores: Mapping[str, Tensor], layers: Sequence[Layer]) -> dict[str, Tensor]:
        """Bool tensors a layer: the ``keep`` largest scores of every block, the lower channel first on a tie."""
        return {layer.name: self._best(scores[layer.name], layer) for layer in layers}

    def _best(self, scores: Tensor, layer: Layer) -> Tensor:
        if not self.fits(layer):
            return torch.ones(layer.shape, dtype=torch.bool, device=scores.device)
        last = scores.detach().movedim(1, -1)  # [out, *kernel, in]
        order = last.unflatten(-1, (-1, self.size)).argsort(dim=-1, descending=True, stable=True)
        chosen = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., : self.keep], True)
        return chosen.flatten(-2).movedim(-1, 1).contiguous()


def parse_granularity(text: str | None) -> Blocks | None:
    """``None`` for single weights (``weights``, or nothing), :class:`Blocks` for ``N:M``."""
    if text is None or text == "weights":
        return None
    match = _PATTERN.match(text)
    if match is None or not 0 < int(match[1]) < int(match[2]):
        raise AutoSparseError(f"granularity '{text}' is neither 'weights' nor N:M with 0 < N < M, such as 2:4")
    return Blocks(int(match[1]), int(match[2]))
