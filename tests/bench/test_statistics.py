"""Statistics against values worked out by hand or in closed form."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, friedmanchisquare

from autosparse.bench.statistics import estimate, holm, paired_difference, rank

#: The 97.5 % quantile of Student's t with 2 degrees of freedom, whose distribution function has a closed form.
T_2 = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))


def test_interval_of_three_numbers() -> None:
    found = estimate([1.0, 2.0, 6.0])
    # mean 3, squared deviations 4 + 1 + 9 = 14, variance 14 / 2 = 7
    assert (found.n, found.mean) == (3, 3.0)
    assert found.std == pytest.approx(math.sqrt(7))
    assert found.half_width == pytest.approx(T_2 * math.sqrt(7 / 3))
    assert found.interval == pytest.approx((3 - T_2 * math.sqrt(7 / 3), 3 + T_2 * math.sqrt(7 / 3)))


def test_confidence_chooses_the_quantile() -> None:
    # With 1 degree of freedom t is Cauchy: its 95 % quantile is tan(0.45 pi). s = sqrt(2), s / sqrt(2) = 1.
    assert estimate([0.0, 2.0], confidence=0.9).half_width == pytest.approx(math.tan(0.45 * math.pi))


def test_one_value_has_no_interval() -> None:
    found = estimate([0.7])
    assert (found.n, found.mean, found.std, found.half_width, found.interval) == (1, 0.7, None, None, None)


def test_equal_values_have_an_interval_without_width() -> None:
    found = estimate([0.1, 0.1, 0.1])
    assert (found.std, found.half_width) == (0.0, 0.0)


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to estimate"):
        estimate([])


def test_paired_difference_by_hand() -> None:
    found = paired_difference({3: 11.0, 4: 12.0, 5: 13.0, 9: 0.0}, {5: 10.0, 4: 10.0, 3: 10.0, 8: 0.0})
    assert found is not None
    # differences 1, 2, 3: mean 2, s 1, t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2)
    assert (found.estimate.n, found.estimate.mean) == (3, 2.0)
    assert found.estimate.half_width == pytest.approx(T_2 / math.sqrt(3))
    assert found.p == pytest.approx(1 - 2 * math.sqrt(3) / math.sqrt(14))


def test_pairing_takes_out_what_seeds_share() -> None:
    """Seeds that differ by far more than the methods: the difference is still known exactly enough."""
    shared = {0: 0.1, 1: 0.5, 2: 0.9}
    ours = {seed: value + 0.01 * (1 + seed) for seed, value in shared.items()}
    found = paired_difference(ours, shared)
    assert found is not None
    assert found.estimate.mean == pytest.approx(0.02)
    assert found.estimate.std == pytest.approx(0.01)


def test_swapping_turns_the_sign_only() -> None:
    ours, theirs = {0: 0.5, 1: 0.7, 2: 0.6}, {0: 0.4, 1: 0.65, 2: 0.62}
    forth, back = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert forth is not None
    assert back is not None
    assert back.estimate.mean == pytest.approx(-forth.estimate.mean)
    assert back.p == pytest.approx(forth.p)


def test_differences_that_cannot_be_tested() -> None:
    assert paired_difference({0: 0.5}, {1: 0.5}) is None
    single = paired_difference({0: 0.5, 1: 0.6}, {1: 0.5})
    assert single is not None
    assert (single.estimate.n, single.p) == (1, None)
    # 0.7 - 0.6 and 0.8 - 0.7 are not the same float: rounding is no spread
    constant = paired_difference({0: 0.7, 1: 0.8}, {0: 0.6, 1: 0.7})
    assert constant is not None
    assert (constant.estimate.std, constant.p) == (0.0, None)
    nothing = paired_difference({0: 0.1, 1: 0.1}, {0: 0.1, 1: 0.1})
    assert nothing is not None
    assert (nothing.estimate.mean, nothing.p) == (0.0, 1.0)


def test_holm_by_hand() -> None:
    # sorted: 0.005 * 4 = 0.02, 0.01 * 3 = 0.03, 0.03 * 2 = 0.06, 0.04 * 1 = 0.04 and so 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_out_what_was_not_tested_and_stops_at_one() -> None:
    assert holm([None, 0.02, None, 0.6, 0.7]) == [None, pytest.approx(0.06), None, 1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    adjusted = [corrected for corrected in holm(p_values) if corrected is not None]
    for p, corrected in zip(p_values, adjusted, strict=True):
        assert p <= corrected <= min(1.0, len(p_values) * p)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    assert [adjusted[index] for index in order] == sorted(adjusted)
    assert adjusted[order[0]] == min(1.0, len(p_values) * min(p_values))


def test_ranks_with_ties_by_hand() -> None:
    found = rank({"a": [0.5, 0.6], "b": [0.5, 0.4], "c": [0.1, 0.7]})
    assert found is not None
    # first block: a and b share ranks 1 and 2, c is 3; second: c 1, a 2, b 3
    assert found.mean_ranks == {"a": 1.75, "b": 2.25, "c": 2.0}
    assert found.blocks == 2


def test_friedman_without_ties_is_its_formula() -> None:
    table = {"a": [9.0, 8.0, 9.0, 7.0], "b": [5.0, 6.0, 4.0, 8.0], "c": [1.0, 2.0, 3.0, 2.0]}
    found = rank(table)
    assert found is not None
    # rank sums 5, 7, 12 of N = 4 blocks and k = 3: 12 / (4 * 3 * 4) * (25 + 49 + 144) - 3 * 4 * 4 = 6.5
    assert found.mean_ranks == {"a": 1.25, "b": 1.75, "c": 3.0}
    assert found.p == pytest.approx(chi2.sf(6.5, 2))
    assert found.p == pytest.approx(friedmanchisquare(*table.values()).pvalue)


def test_friedman_with_ties_agrees_with_scipy() -> None:
    table = {"a": [0.5, 0.6, 0.7, 0.1], "b": [0.5, 0.4, 0.7, 0.1], "c": [0.1, 0.7, 0.2, 0.1], "d": [0.0, 0.1, 0.2, 0.3]}
    found = rank(table)
    assert found is not None
    assert found.p == pytest.approx(friedmanchisquare(*table.values()).pvalue)


def test_critical_difference_of_a_published_example() -> None:
    """Four classifiers on fourteen data sets in Demšar 2006: q = 2.569, critical difference 1.25."""
    found = rank({name: [float((block * (place + 1)) % 7) for block in range(14)] for place, name in enumerate("abcd")})
    assert found is not None
    assert found.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3)


@pytest.mark.parametrize(
    "table",
    [
        {"a": [1.0, 2.0, 3.0], "b": [3.0, 1.0, 2.0]},
        {"a": [1.0], "b": [2.0], "c": [3.0]},
        {"a": [0.1, 0.2], "b": [0.1, 0.2], "c": [0.1, 0.2]},
    ],
    ids=["two names", "one block", "all tied"],
)
def test_ranks_without_a_test(table: dict[str, list[float]]) -> None:
    found = rank(table)
    assert found is not None
    assert (found.p, found.critical_difference) == (None, None)
    assert sum(found.mean_ranks.values()) == pytest.approx(len(table) * (len(table) + 1) / 2)


def test_ranks_of_nothing() -> None:
    assert rank({}) is None
    assert rank({"a": [], "b": []}) is None
    with pytest.raises(ValueError, match="one value a block"):
        rank({"a": [1.0], "b": []})
