"""Exact counts: how many weights are kept, in which layers, and which ones."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autosparse.budget import BUDGETS, check_scores, density_of, keep_count, layer_counts, list_budgets, select
from autosparse.budget.selection import floors, top_k
from autosparse.errors import AutoSparseError, BudgetError, UnknownNameError
from autosparse.layers import Layer, total_weights
from autosparse.masks import Masks

# A fixed sequence of examples, and no clock: the machine's speed decides nothing.
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def layers_of_shapes(*shapes: tuple[int, ...]) -> list[Layer]:
    offsets = np.cumsum([0, *(math.prod(shape) for shape in shapes)]).tolist()
    return [
        Layer(f"l{i}", "conv2d" if len(shape) == 4 else "linear", shape, 1, i, offsets[i])
        for i, shape in enumerate(shapes)
    ]


def random_scores(layers: Sequence[Layer], seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {layer.name: torch.randn(layer.shape, generator=rng) for layer in layers}


def counts(masks: Masks) -> list[int]:
    return [int(mask.sum()) for mask in masks.values()]


def densities(budget: str, layers: Sequence[Layer], density: float) -> np.ndarray:
    rule = BUDGETS.get(budget)
    assert rule is not None
    return rule(layers, density)


TWO = layers_of_shapes((2, 2), (1, 4))


# How many weights a sparsity keeps ----------------------------------------------------------------------------------


def test_density_is_free_of_binary_rounding() -> None:
    assert [density_of(s) for s in (0, 0.5, 0.9, 0.98, 0.999)] == [1, 0.5, 0.1, 0.02, 0.001]


def test_sparsity_098_keeps_two_percent_of_any_total() -> None:
    for total in [*range(26, 6000), 17_132, 268_336, 11_164_352, 10**9 + 25]:
        assert keep_count(total, 0.98) == round(0.02 * total), total


@quick
@given(st.integers(1, 10**8), st.integers(0, 9999))
def test_the_count_is_the_decimal_density_times_the_total(total: int, parts: int) -> None:
    exact = (1 - Decimal(parts) / 10_000) * total
    if exact >= 1:
        assert abs(keep_count(total, parts / 10_000) - exact) <= Decimal("0.500001")


@pytest.mark.parametrize("sparsity", [-0.1, -1e-9, 1, 1.0, 1.5, 98, math.nan, math.inf, -math.inf])
def test_a_sparsity_outside_0_to_1_is_refused(sparsity: float) -> None:
    with pytest.raises(BudgetError, match=r"outside \[0, 1\)"):
        keep_count(100, sparsity)


def test_keeping_nothing_is_refused_and_the_advice_works() -> None:
    with pytest.raises(BudgetError, match="keeps none of 20 weights: the largest useful one is") as info:
        keep_count(20, 0.99)
    advice = float(str(info.value).rpartition(" ")[2])
    assert keep_count(20, advice) == 1


def test_zero_sparsity_keeps_all() -> None:
    assert keep_count(7, 0) == 7


# How the count is spread over the layers ----------------------------------------------------------------------------


def test_budgets_are_listed_and_misses_suggested() -> None:
    assert list_budgets() == ["erk", "global", "synexp", "uniform"]
    with pytest.raises(UnknownNameError, match="did you mean uniform"):
        select(random_scores(TWO), TWO, 2, budget="unifrom")


def test_synexp_keeps_the_same_number_everywhere_and_leaves_small_layers_dense() -> None:
    layers = layers_of_shapes((10, 1), (10, 10), (100, 10))
    np.testing.assert_allclose(densities("synexp", layers, 110 / 1110), [1, 0.5, 0.05])
    np.testing.assert_allclose(densities("synexp", layers, 15 / 1110), [0.5, 0.05, 0.005])
    np.testing.assert_allclose(densities("synexp", layers, 1), [1, 1, 1])


def test_uniform_is_the_same_density_everywhere() -> None:
    assert densities("uniform", TWO, 0.3).tolist() == [0.3, 0.3]


ERK_LAYERS = layers_of_shapes((4, 4, 1, 1), (8, 8, 3, 3), (10, 8))  # sizes 16, 576, 80; sums of dimensions 10, 22, 18


def test_erk_by_hand() -> None:
    # The dimensions sum to 50 and the network has 672 weights: scale = 0.1 * 672 / 50.
    scale = 1.344
    assert densities("erk", ERK_LAYERS, 0.1) == pytest.approx([scale * 10 / 16, scale * 22 / 576, scale * 18 / 80])


def test_erk_saturates_twice_by_hand() -> None:
    # 201.6 wanted. First the 16-weight layer exceeds 1 (4.032 * 10 / 16), then the 80-weight one (4.64 * 18 / 80).
    assert densities("erk", ERK_LAYERS, 0.3) == pytest.approx([1, (201.6 - 96) / 576, 1])


@quick
@given(st.floats(0.001, 1))
def test_erk_densities_keep_the_total_and_never_exceed_one(density: float) -> None:
    found = densities("erk", ERK_LAYERS, density)
    assert (found <= 1).all()
    assert (found > 0).all()
    assert sum(found * [16, 576, 80]) == pytest.approx(density * 672)


def test_fractions_are_settled_by_largest_remainder_the_earlier_layer_first() -> None:
    assert layer_counts([10, 10, 10], np.array([1.5, 1.5, 1.0]), 4) == [2, 1, 1]
    assert layer_counts([10, 10, 10], np.array([1.2, 1.7, 1.1]), 4) == [1, 2, 1]


def test_what_a_full_layer_cannot_take_goes_to_the_others() -> None:
    # 3 weights beyond the first layer's 2: half each, for both others have room for 9.
    assert layer_counts([2, 10, 10], np.array([5.0, 1.0, 1.0]), 7) == [2, 3, 2]


def test_more_than_there_is_cannot_be_kept() -> None:
    with pytest.raises(BudgetError, match="cannot keep 5 weights out of 4"):
        layer_counts([2, 2], np.array([2.0, 3.0]), 5)


@quick
@given(st.data())
def test_layer_counts_sum_exactly_and_never_exceed_capacity(data: st.DataObject) -> None:
    capacity = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=6))
    wanted = data.draw(st.lists(st.floats(0, 60), min_size=len(capacity), max_size=len(capacity)))
    keep = data.draw(st.integers(0, sum(capacity)))
    found = layer_counts(capacity, np.array(wanted), keep)
    assert sum(found) == keep
    assert all(0 <= count <= most for count, most in zip(found, capacity, strict=True))


@quick
@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=8), st.floats(0, 1))
def test_layer_counts_are_within_one_of_what_is_wanted(sizes: list[int], density: float) -> None:
    keep = round(density * sum(sizes))
    wanted = np.array(sizes) * keep / sum(sizes)
    assert np.abs(np.array(layer_counts(sizes, wanted, keep)) - wanted).max() < 1


# Which weights ------------------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.integers(-2, 2), min_size=1, max_size=30), st.integers(0, 31))
def test_top_k_keeps_exactly_the_k_largest_and_ties_go_to_the_lower_index(values: list[int], k: int) -> None:
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    found = top_k(torch.tensor(values, dtype=torch.float32), k)
    assert found.nonzero().flatten().tolist() == sorted(expected)


def test_one_threshold_by_hand() -> None:
    scores = {"l0": torch.tensor([[4.0, 1.0], [0.0, 3.0]]), "l1": torch.tensor([[2.0, 5.0, -1.0, 2.0]])}
    masks = select(scores, TWO, 4)
    assert masks["l0"].tolist() == [[True, False], [False, True]]
    assert masks["l1"].tolist() == [[True, True, False, False]]  # of the two 2.0 the earlier one


def test_uniform_selects_inside_each_layer_by_hand() -> None:
    scores = {"l0": torch.tensor([[4.0, 1.0], [0.0, 3.0]]), "l1": torch.tensor([[20.0, 50.0, -10.0, 20.0]])}
    masks = select(scores, TWO, 4, budget="uniform")
    assert masks["l0"].tolist() == [[True, False], [False, True]]
    assert masks["l1"].tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("budget", list_budgets())
@pytest.mark.parametrize("constant", [True, False])
def test_every_k_is_kept_exactly(budget: str, constant: bool) -> None:
    layers = layers_of_shapes((3, 2, 3, 3), (4, 3), (2, 4))
    scores = random_scores(layers)
    if constant:
        scores = {name: torch.zeros_like(score) for name, score in scores.items()}
    for keep in range(1, total_weights(layers) + 1):
        assert select(scores, layers, keep, budget=budget).kept == keep


def test_equal_scores_keep_the_first_positions() -> None:
    layers = layers_of_shapes((2, 3), (3, 2))
    masks = select({"l0": torch.ones(2, 3), "l1": torch.ones(3, 2)}, layers, 8)
    assert masks["l0"].all()
    assert masks["l1"].flatten().tolist() == [True, True, False, False, False, False]


def test_positions_count_in_storage_order_whatever_the_memory_format() -> None:
    layers = layers_of_shapes((2, 3, 2, 2))
    scores = random_scores(layers)
    channels_last = {"l0": scores["l0"].to(memory_format=torch.channels_last)}
    assert torch.equal(select(scores, layers, 7)["l0"], select(channels_last, layers, 7)["l0"])
    flat = select({"l0": torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last)}, layers, 5)["l0"].flatten()
    assert flat.tolist() == [True] * 5 + [False] * 19


@quick
@given(
    st.sampled_from(list_budgets()),
    st.floats(0, 0.5),
    st.floats(0.01, 1),
    st.integers(0, 1000),
)
def test_floors_are_honoured_and_the_total_stays_exact(budget: str, floor: float, density: float, seed: int) -> None:
    layers = layers_of_shapes((3, 2, 3, 3), (4, 3), (1, 1), (2, 40))
    scores = random_scores(layers, seed)
    scores["l1"] -= 100  # one threshold would empty this layer
    keep = max(1, round(density * total_weights(layers)))
    least = [math.ceil(floor * layer.size - 1e-9) for layer in layers]
    if sum(least) > keep:
        with pytest.raises(BudgetError):
            select(scores, layers, keep, budget=budget, min_layer_density=floor)
        return
    masks = select(scores, layers, keep, budget=budget, min_layer_density=floor)
    assert masks.kept == keep
    assert all(count >= low for count, low in zip(counts(masks), least, strict=True))


@pytest.mark.parametrize(("shape", "floor"), [((1000, 977), 0.0123456), ((3, 7), 0.4), ((10, 10), 0.1)])
def test_infeasible_floors_are_refused_with_advice_that_works(shape: tuple[int, int], floor: float) -> None:
    layers = layers_of_shapes(shape, shape)
    needed = 2 * math.ceil(floor * math.prod(shape) - 1e-9)
    scores = random_scores(layers)
    with pytest.raises(BudgetError, match=f"needs {needed} weights, but only {needed - 1} are kept") as info:
        select(scores, layers, needed - 1, min_layer_density=floor)
    advice = re.search(r"sparsity of ([0-9.]+) or less", str(info.value))
    assert advice is not None
    keep = keep_count(total_weights(layers), float(advice[1]))
    assert select(scores, layers, keep, min_layer_density=floor).kept == keep


@quick
@given(st.integers(1, 5000), st.integers(1, 5000), st.floats(1e-6, 1))
def test_the_advised_sparsity_is_always_enough(outputs: int, inputs: int, floor: float) -> None:
    layers = layers_of_shapes((outputs, inputs), (inputs, 10))
    with pytest.raises(BudgetError) as info:
        floors(layers, floor, 0)
    advice = re.search(r"sparsity of ([0-9.e-]+) or less", str(info.value))
    assert advice is not None
    keep = keep_count(total_weights(layers), float(advice[1]))
    assert sum(floors(layers, floor, keep)) <= keep


@pytest.mark.parametrize("budget", list_budgets())
def test_selection_within_a_mask_is_nested(budget: str) -> None:
    layers = layers_of_shapes((3, 2, 3, 3), (4, 3), (2, 40))
    masks = select(random_scores(layers, 0), layers, 100, budget=budget)
    for seed, keep in enumerate((60, 59, 20, 3, 1), start=1):
        inner = select(random_scores(layers, seed), layers, keep, budget=budget, within=masks)
        assert inner.kept == keep
        assert all(not (inner[name] & ~masks[name]).any() for name in masks)
        masks = inner


def test_no_more_can_be_kept_than_lies_within() -> None:
    masks = select(random_scores(TWO), TWO, 3)
    with pytest.raises(BudgetError, match="cannot keep 4 weights out of 3"):
        select(random_scores(TWO), TWO, 4, within=masks)


@pytest.mark.parametrize("budget", list_budgets())
def test_forced_weights_are_kept_before_all_others(budget: str) -> None:
    layers = layers_of_shapes((3, 2, 3, 3), (4, 3), (2, 4))
    scores = random_scores(layers)
    forced = {name: score == score.min() for name, score in scores.items()}
    scores["l0"].view(-1)[0] = math.inf  # an unbounded score does not push a forced weight out
    for keep in (3, 4, 10):
        masks = select(scores, layers, keep, budget=budget, forced=forced)
        assert masks.kept == keep
        assert all(masks[name][forced[name]].all() for name in masks)


@pytest.mark.parametrize("budget", list_budgets())
def test_forced_weights_and_floors_that_need_too_much_are_refused(budget: str) -> None:
    scores = random_scores(TWO)
    forced = {"l0": torch.ones(2, 2, dtype=torch.bool), "l1": torch.zeros(1, 4, dtype=torch.bool)}
    with pytest.raises(BudgetError, match="connected needs 4 weights, but only 3 are kept"):
        select(scores, TWO, 3, budget=budget, forced=forced)
    # Four forced in the first layer and a floor of two in the second.
    with pytest.raises(BudgetError, match="connected needs 6 weights, but only 5 are kept"):
        select(scores, TWO, 5, budget=budget, forced=forced, min_layer_density=0.5)
    assert counts(select(scores, TWO, 6, budget=budget, forced=forced, min_layer_density=0.5)) == [4, 2]


def test_nan_scores_are_refused_by_layer() -> None:
    scores = random_scores(TWO)
    scores["l1"][0, 2] = math.nan
    with pytest.raises(AutoSparseError, match="scores of 'l1' contain NaN"):
        select(scores, TWO, 2)


def test_missing_and_misshapen_scores_are_refused_by_layer() -> None:
    with pytest.raises(AutoSparseError, match=r"'l1' have shape None, not \[1, 4\]"):
        check_scores({"l0": torch.zeros(2, 2)}, TWO)
    with pytest.raises(AutoSparseError, match=r"'l0' have shape \[4\], not \[2, 2\]"):
        check_scores({"l0": torch.zeros(4), "l1": torch.zeros(1, 4)}, TWO)


@pytest.mark.parametrize("budget", list_budgets())
def test_minus_infinity_is_the_last_to_be_kept_but_never_leaves_the_mask(budget: str) -> None:
    scores = {name: torch.full_like(score, -math.inf) for name, score in random_scores(TWO).items()}
    scores["l1"][0, 3] = 0
    assert select(scores, TWO, 1)["l1"][0, 3]
    within = {"l0": torch.tensor([[False, True], [False, True]]), "l1": torch.tensor([[False, False, True, True]])}
    masks = select(scores, TWO, 3, budget=budget, within=within)
    assert masks.kept == 3
    assert masks["l1"][0, 3]
    assert all(not (masks[name] & ~within[name]).any() for name in masks)


def test_every_registered_rule_but_global_gives_one_density_a_layer() -> None:
    for name, rule in BUDGETS.items():
        if rule is None:
            assert name == "global"
        else:
            assert rule(ERK_LAYERS, 0.2).shape == (3,)


@pytest.mark.parametrize("k", [1, 5_000, 200_000, 399_999])
@pytest.mark.parametrize("kind", ["normal", "ties", "sorted", "masked"])
def test_the_largest_of_many_are_those_of_a_sort(kind: str, k: int) -> None:
    values = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    if kind == "ties":
        values = (2 * values).round()
    elif kind == "sorted":
        values = values.sort().values
    elif kind == "masked":
        values[values < 1] = -math.inf
        values[:100] = math.inf
    kept = top_k(values, k)
    expected = torch.zeros_like(kept)
    expected[values.argsort(descending=True, stable=True)[:k]] = True
    assert torch.equal(kept, expected)


def test_each_layer_may_have_a_least_of_its_own() -> None:
    layers = layers_of_shapes((1, 4), (1, 4))
    scores = {"l0": torch.tensor([[5.0, 6.0, 7.0, 8.0]]), "l1": torch.tensor([[1.0, 4.0, 3.0, 2.0]])}
    assert counts(select(scores, layers, 3)) == [3, 0]
    masks = select(scores, layers, 3, least=[0, 2])
    assert [mask.flatten().tolist() for mask in masks.values()] == [[0, 0, 0, 1], [0, 1, 1, 0]]
    within = {"l0": torch.ones(1, 4, dtype=torch.bool), "l1": torch.tensor([[True, False, False, False]])}
    assert counts(select(scores, layers, 3, least=[0, 2], within=within)) == [2, 1]  # all that it may keep
    with pytest.raises(BudgetError, match="the least of all layers are 4 weights, but only 3 are kept"):
        select(scores, layers, 3, least=[2, 2])
