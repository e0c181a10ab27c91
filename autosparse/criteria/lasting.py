"""Scores that count how many prunings a weight has survived."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autosparse.budget import Allocation, following
from autosparse.criteria.base import Scores
from autosparse.layers import Layer, total_weights
from autosparse.masks import Masks


@dataclass(frozen=True)
class Moment:
    """A network that is about to be pruned.

    Attributes:
        weights: its weights; zero where they were removed.
        gradients: what is known of their gradients: a mean, or in a training the root mean square over its last
            batches; empty where no rule looks at them.
        masks: what is left.
    """

    layers: Sequence[Layer]
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    masks: Masks


#: Scores of a moment, of any size: their order decides which weights the next pruning removes.
Rule = Callable[[Moment], Scores]


class Lasting:
    """A score a weight: the prunings that it survived; what was said of it at its last decides among equals."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._scores = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
        self._prunings = 0

    def pruned(self, said: Scores, before: Masks, after: Masks) -> None:
        """A pruning by the scores ``said`` (any that :func:`squeezed` gave) has left ``after`` of ``before``."""
        for name, score in self._scores.items():
            torch.where(before[name] & ~after[name], said[name] + self._prunings, score, out=score)
        self._prunings += 1

    def ended(self, said: Scores, masks: Masks) -> Scores:
        """The scores, when ``masks`` is what is left and nothing more will be removed."""
        self.pruned(said, masks, Masks({name: torch.zeros_like(mask) for name, mask in masks.items()}))
        return self._scores


@torch.no_grad()
def squeezed(scores: Scores) -> Scores:
    """Scores of any size in float32, put into [0, 1/2] by one linear map for the network."""
    found = {name: score.float() for name, score in scores.items()}
    ends = [score.aminmax() for score in found.values()]
    low = min(0.0, *(float(end.min) for end in ends))
    high = max(float(end.max) for end in ends)
    return {name: (score - low) / (2 * (high - low)) if high > low else score - low for name, score in found.items()}


def budget_of(counts: Mapping[str, int] | None, layers: Sequence[Layer], keep: int) -> str | Allocation:
    """For prunings on the way to ``keep`` weights: layer densities that lead to ``counts``, or one global threshold."""
    if counts is None:
        return "global"
    return following(np.array([counts[layer.name] / layer.size for layer in layers]), keep / total_weights(layers))
