"""Accuracy and loss of a model on a split."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.data import Split
from autosparse.training.precision import autocast, resolve_precision


def evaluate(model: nn.Module, split: Split, *, batch_size: int = 500, precision: str = "auto") -> float:
    """Fraction of the split's images whose largest output is their class; the train/eval flag is restored."""
    found = _outputs(model, split, batch_size, precision)
    correct = sum((output.argmax(dim=1) == y).sum() for output, y in found)  # one wait for the accelerator
    return int(correct) / max(1, len(split))


def evaluate_loss(model: nn.Module, split: Split, *, batch_size: int = 500, precision: str = "auto") -> float:
    """The mean cross-entropy over the split's images; the train/eval flag is restored."""
    found = _outputs(model, split, batch_size, precision)
    loss = sum(F.cross_entropy(output.float(), y, reduction="sum") for output, y in found)
    return float(loss) / max(1, len(split))


@torch.no_grad()
def _outputs(model: nn.Module, split: Split, batch_size: int, precision: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs and labels, batch by batch."""
    device = next(model.parameters()).device
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with autocast(resolve_precision(precision, device), device):
            for x, y in split.batches(batch_size):
                yield model(x.to(device)), y.to(device)
    finally:
        for module, training in flags:
            module.training = training
