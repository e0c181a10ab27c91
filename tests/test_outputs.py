"""By how much two networks' outputs differ."""

from __future__ import annotations

import math

import pytest
import torch

from autosparse.outputs import largest_difference, tensors_in

NAN, INF = math.nan, math.inf


def test_tensors_are_found_in_order_however_they_are_nested() -> None:
    a, b, c = (torch.full((1,), float(value)) for value in range(3))
    found = list(tensors_in({"logits": a, "aux": [(b, None), {"more": c}], "loss": 0.5}))
    assert all(one is other for one, other in zip(found, (a, b, c), strict=True))


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], 0.0),
        ([[1.0, 2.5]], [[1.0, -4.0]], 6.5 / 4.0),
        ([[1.0], [2.0, 8.5]], [[1.0], [2.0, 8.0]], 0.5 / 8.0),
        ([[0.25]], [[0.0]], 0.25),
        ([[NAN, INF, 1.0]], [[NAN, INF, 1.0]], 0.0),
        ([[NAN]], [[1.0]], INF),
        ([[1.0]], [[NAN]], INF),
        ([[-INF]], [[INF]], INF),
        ([[1.0]], [[1.0, 1.0]], INF),
        ([[1.0]], [], INF),
        ([], [], 0.0),
        ([[]], [[]], 0.0),
    ],
)
def test_the_largest_difference_by_hand(
    found: list[list[float]], expected: list[list[float]], difference: float
) -> None:
    values = largest_difference([torch.tensor(v) for v in found], [torch.tensor(v) for v in expected])
    assert values == pytest.approx(difference)
