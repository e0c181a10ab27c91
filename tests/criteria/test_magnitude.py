"""Magnitude by hand."""

from __future__ import annotations

import torch
from torch import nn

from autosparse.criteria import score


def test_scores_are_absolute_values() -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0], [-0.0, 0.5]]))
    assert score("magnitude", model)["weight"].tolist() == [[1, 2], [0, 0.5]]


def test_scores_are_those_of_the_current_weights() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    assert score("magnitude", model)["weight"].tolist() == [[0, 0]]
