"""What a scorer's logits are fitted to minimise; ``survival [n]`` is the share of the rounds survived, in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from autosparse.registry import Registry

#: ``loss(logits [n], survival [n])``, a mean over a batch in random order.
LOSSES: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry("loss")


def _regression(logits: Tensor, survival: Tensor) -> Tensor:
    """Squared error of the predicted survival, as published (arXiv 2408.14757)."""
    return F.mse_loss(logits.sigmoid(), survival)


def _classification(logits: Tensor, survival: Tensor) -> Tensor:
    """Cross-entropy of "does it survive this round?", over all rounds with one logit for them."""
    return F.binary_cross_entropy_with_logits(logits, survival)


def _ranking(logits: Tensor, survival: Tensor) -> Tensor:
    """Logistic loss of the order of pairs (RankNet, Burges et al. 2005): the one that survives longer comes first.

    A weight is paired with the one half a batch away; pairs of equal survival say nothing. Logits have an order then,
    and no scale: their sigmoid is not a survival.
    """
    half = len(logits) // 2
    ahead = logits[:half] - logits[half : 2 * half]
    order = torch.sign(survival[:half] - survival[half : 2 * half])
    return (F.softplus(-order * ahead) * order.abs()).sum() / order.abs().sum().clamp(min=1)


LOSSES.add("regression", _regression)
LOSSES.add("classification", _classification)
LOSSES.add("ranking", _ranking)
