"""The PQ index and SAP's counts, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autosparse.errors import AutoSparseError
from autosparse.layers import layers_of, prunable
from autosparse.masks import Masks
from autosparse.pq_index import pq_index, pq_survivors, pruned_counts, retained_bound
from autosparse.triggers.rounds import PQRewinding

NORMS = pytest.mark.parametrize(("p", "q"), [(0.5, 1.0), (1.0, 2.0), (0.3, 4.0)])


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The index ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "q", "w", "index"),
    [
        (1.0, 2.0, (0, 0, 3, -4), 1 - 7 / 5 / 2),  # 4^(1/2 - 1) = 1/2
        (1.0, 2.0, (1, 2, 3, 4), 1 - 10 / 30**0.5 / 2),
        (0.5, 1.0, (1, -4, 9, 16), 1 - 100 / 30 / 4),  # (1 + 2 + 3 + 4)^2 = 100 and 4^(1 - 2) = 1/4
        (0.5, 1.0, (0, 0, 1, 9), 1 - 16 / 10 / 4),
    ],
)
def test_the_index_of_four_numbers(p: float, q: float, w: tuple[float, ...], index: float) -> None:
    assert pq_index(vector(*w), p, q).item() == pytest.approx(index, abs=1e-12)


@NORMS
def test_equal_magnitudes_have_index_0_and_a_single_weight_the_largest(p: float, q: float) -> None:
    assert pq_index(vector(2, -2, 2, 2, -2), p, q).item() == pytest.approx(0, abs=1e-12)
    assert pq_index(vector(0, 0, 7, 0, 0), p, q).item() == pytest.approx(1 - 5 ** (1 / q - 1 / p), abs=1e-12)


def test_where_the_ratio_is_undefined_the_index_is_0() -> None:
    rows = torch.tensor([[0.0, 0.0], [0.0, 5.0], [3.0, 5.0]])
    active = torch.tensor([[True, True], [False, False], [False, True]])
    assert pq_index(rows, active=active).tolist() == [0, 0, 0]
    assert pruned_counts(rows, active, PQRewinding()).tolist() == [0, 0, 0]


def test_only_active_weights_count() -> None:
    w, active = vector(0, 0, 100, 3, 4), torch.tensor([True, True, False, True, True])
    assert pq_index(w, 1, 2, active=active).item() == pytest.approx(0.3, abs=1e-12)


magnitudes = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=1, max_size=30)


@given(magnitudes, st.sampled_from([(0.5, 1.0), (1.0, 2.0), (0.3, 4.0)]))
def test_the_index_lies_in_its_range_and_ignores_scale_and_copies(
    values: list[float], norms: tuple[float, float]
) -> None:
    p, q = norms
    w = vector(*values)
    index = pq_index(w, p, q).item()
    assert 0 <= index <= 1 - len(values) ** (1 / q - 1 / p) + 1e-12
    for scale in (1e-200, 1e-3, 1e200):
        assert pq_index(w * scale, p, q).item() == pytest.approx(index, abs=1e-9)
    assert pq_index(torch.cat([w, -w]), p, q).item() == pytest.approx(index, abs=1e-9)


# The bound and the counts -------------------------------------------------------------------------------------------


def test_the_bound_by_hand() -> None:
    d = torch.tensor(4.0)
    # (1 - I)^(pq/(q-p)): 0.7^2 and 0.4^1; (1 + eta)^(-q/(q-p)) = 2^-2.
    assert retained_bound(vector(0.3), d, 1, 2).tolist() == [2]  # 1.96
    assert retained_bound(vector(0.6), d, 0.5, 1).tolist() == [2]  # 1.6
    assert retained_bound(vector(0.3), d, 1, 2, eta=1).tolist() == [1]  # 0.49


@NORMS
@pytest.mark.parametrize("k", [1, 3, 7, 50, 90, 99, 100])
def test_the_bound_of_k_equal_magnitudes_among_zeros_is_k(k: int, p: float, q: float) -> None:
    w = torch.zeros(100).index_fill(0, torch.arange(k), 0.37)
    assert retained_bound(pq_index(w, p, q), torch.tensor(100), p, q).item() == k


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, 2),  # 4 - 2
        ({"gamma": 0.5}, 1),
        ({"gamma": 0.4}, 0),
        ({"gamma": 1.5}, 3),
        ({"gamma": 100.0}, 3),  # 0.9 * 4 = 3.6
        ({"gamma": 100.0, "max_fraction": 0.5}, 2),
        ({"eta": 1.0}, 3),  # 4 - 1
    ],
    ids=str,
)
def test_counts_by_hand(change: dict[str, float], count: int) -> None:
    w = vector(0, 0, 3, 4).unsqueeze(0)
    settings = PQRewinding(p=1, q=2, **change)  # type: ignore[arg-type]
    assert pruned_counts(w, torch.ones_like(w, dtype=torch.bool), settings).tolist() == [count]


def test_counts_are_not_lost_to_rounding() -> None:
    """d (1 - m/d) in floating point is 0.9999999999999998 here."""
    w = torch.ones(1, 10).index_fill(1, torch.tensor(4), 0.0)
    assert pruned_counts(w, torch.ones_like(w, dtype=torch.bool), PQRewinding()).tolist() == [1]


# Survivors ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def net(chain: Callable[..., nn.Sequential]) -> nn.Sequential:
    """Two layers, of 2x4 and 2x2 weights; p = 1 and q = 2 make the bound ⌈(sum)² / sum of squares⌉."""
    model = chain(4, 2, 2)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 3, 0, -4], [1, 1, -1, 1]]))  # type: ignore[operator]
        model[2].weight.copy_(torch.tensor([[10.0, -10], [10, 10]]))  # type: ignore[operator]
    return model


@pytest.mark.parametrize(
    ("scope", "first"),
    [
        ("neuron", [[False, True, False, True], [True] * 4]),  # row 1: ⌈49/25⌉ = 2 stay; row 2: all are alike
        ("layer", [[False, True, False, True], [True, True, True, False]]),  # ⌈121/29⌉ = 5 of 8 stay
        ("global", [[False, True, False, True], [True, False, False, False]]),  # ⌈51²/429⌉ = 7 of 12 stay
    ],
)
def test_each_scope_removes_its_smallest_weights(scope: str, first: list[list[bool]], net: nn.Sequential) -> None:
    settings = PQRewinding(p=1, q=2, scope=scope)
    kept = pq_survivors(prunable(net), layers_of(net), Masks.dense(net), settings)
    assert kept["0.weight"].tolist() == first
    assert kept["2.weight"].all()


@pytest.mark.parametrize("scope", ["neuron", "layer", "global"])
def test_what_was_removed_stays_removed(scope: str, net: nn.Sequential) -> None:
    masks = Masks.dense(net)
    masks["2.weight"][0, 0] = masks["0.weight"][0, 3] = False
    settings = PQRewinding(p=1, q=2, scope=scope)
    kept = pq_survivors(prunable(net), layers_of(net), masks, settings)
    assert all(not (kept[name] & ~masks[name]).any() for name in masks)
    assert kept["0.weight"][0].tolist() == [False, True, False, False]
    assert kept["2.weight"].sum() == 3


def test_nan_is_refused(net: nn.Sequential) -> None:
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan  # type: ignore[operator]
    with pytest.raises(AutoSparseError, match=r"scores of '0\.weight' contain NaN"):
        pq_survivors(prunable(net), layers_of(net), Masks.dense(net), PQRewinding())
