"""Random scores: uniform, and fixed by their generator."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from autosparse.criteria import score
from autosparse.seeding import generator

Net = Callable[..., nn.Module]


def test_scores_are_fixed_by_the_generator(conv_net: Net) -> None:
    model = conv_net()
    first, again, other = (score("random", model, generator=generator(seed, "r")) for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)
    flat = torch.cat([value.flatten() for value in first.values()])
    assert flat.unique().numel() == flat.numel() == 368


def test_scores_are_uniform() -> None:
    values = score("random", nn.Linear(100, 100, bias=False), generator=generator(0, "r"))["weight"].flatten()
    for low in (0.0, 0.25, 0.5, 0.75):
        share = ((values >= low) & (values < low + 0.25)).float().mean().item()
        assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 10_000))
    assert 0 <= values.min() < values.max() < 1
