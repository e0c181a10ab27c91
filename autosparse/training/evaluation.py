"""Accuracy of a model on a split."""

from __future__ import annotations

import torch
from torch import nn

from autosparse.data import Split
from autosparse.training.precision import autocast, resolve_precision


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, *, batch_size: int = 500, precision: str = "auto") -> float:
    """Fraction of the split's images whose largest output is their class; the train/eval flag is restored."""
    device = next(model.parameters()).device
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    try:
        with autocast(resolve_precision(precision, device), device):
            for x, y in split.batches(batch_size):
                correct += (model(x.to(device)).argmax(dim=1) == y.to(device)).sum()
    finally:
        for module, training in flags:
            module.training = training
    return int(correct) / max(1, len(split))
