"""Whole widths within a budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import GATED

from autosparse.channels.costs import Bilinear, costs_of
from autosparse.channels.coupling import couple
from autosparse.channels.groups import ChannelGroup, Coupling, Member
from autosparse.channels.widths import (
    Budget,
    best,
    budgets_of,
    channel_count,
    fill,
    priorities_of_scores,
    priorities_of_widths,
    steps_of,
    wider_steps_of,
)
from autosparse.errors import AutoSparseError, BudgetError
from autosparse.models import create_model


def group(name: str, width: int, unit: int = 1) -> ChannelGroup:
    positions = np.arange(width * unit).reshape(width, unit)
    return ChannelGroup(name, (Member(name, "out", positions), Member(f"{name}-next", "in", positions)))


def coupling(**widths: int) -> Coupling:
    return Coupling(tuple(group(name, width) for name, width in widths.items()), {})


@pytest.mark.parametrize(
    ("width", "unit", "round_to", "expected"),
    [
        (64, 1, 8, [8, 16, 24, 32, 40, 48, 56, 64]),
        (70, 1, 8, [8, 16, 24, 32, 40, 48, 56, 64, 70]),  # the full width is always there
        (32, 1, 8, [4, 8, 12, 16, 20, 24, 28, 32]),  # too narrow for eight multiples of 8
        (16, 1, 8, [2, 4, 6, 8, 10, 12, 14, 16]),
        (5, 1, 8, [1, 2, 3, 4, 5]),
        (3, 192, 8, [1, 2, 3]),  # a head of 3 x 64 outputs is a multiple already
        (64, 2, 8, [4 * i for i in range(1, 17)]),  # 4 channels of 2 outputs are 8
        (4, 1, 1, [1, 2, 3, 4]),
        (1, 1, 8, [1]),
        (64, 1, 32, [32, 64]),
        (70, 1, 128, [70]),
    ],
)
def test_widths_that_a_group_may_have(width: int, unit: int, round_to: int, expected: list[int]) -> None:
    assert steps_of(Coupling((group("g", width, unit),), {}), round_to)["g"].tolist() == expected


def test_scores_are_taken_best_first_and_a_group_keeps_one() -> None:
    pair = coupling(a=3, b=3)
    scores = {"a": np.array([5.0, 9.0, 1.0]), "b": np.array([0.1, 0.3, 0.2])}
    steps = steps_of(pair, 1)
    priorities = priorities_of_scores(scores, steps)
    assert {name: values.tolist() for name, values in priorities.items()} == {"a": [9, 5, 1], "b": [0.3, 0.2, 0.1]}
    for count, expected in {2: (1, 1), 3: (2, 1), 4: (3, 1), 5: (3, 2), 6: (3, 3)}.items():
        widths = fill(pair, [Budget("channels", channel_count(pair), count / 6)], steps, priorities)
        assert tuple(widths.values()) == expected


def test_a_step_counts_the_mean_of_what_it_adds() -> None:
    pair = coupling(a=16)
    scores = {"a": np.arange(16.0)}
    assert priorities_of_scores(scores, steps_of(pair, 8))["a"].tolist() == [14.5, 12.5, 10.5, 8.5, 6.5, 4.5, 2.5, 0.5]


def test_a_step_that_does_not_fit_leaves_room_for_smaller_ones() -> None:
    pair = coupling(a=2, b=3)
    cost = Bilinear(("a", "b"), np.ones(1), np.array([[0.0, 10, 1]]), np.array([[1.0, 0, 0]]))  # 10 a + b
    priorities = {"a": np.array([9.0, 8.0]), "b": np.array([3.0, 2.0, 1.0])}
    widths = fill(pair, [Budget("size", cost, 13 / 23)], steps_of(pair, 1), priorities)
    assert widths == {"a": 1, "b": 3}


def test_wanted_widths_are_approached_together() -> None:
    pair = coupling(a=8, b=8)
    cost = channel_count(pair)
    steps = steps_of(pair, 1)
    priorities = priorities_of_widths({"a": 2.0, "b": 6.0}, steps)
    assert fill(pair, [Budget("channels", cost, 0.5)], steps, priorities) == {"a": 2, "b": 6}
    assert fill(pair, [Budget("channels", cost, 0.25)], steps, priorities) == {"a": 1, "b": 3}


def test_all_budgets_hold() -> None:
    model, image = create_model("resnet20"), torch.zeros(1, 3, 32, 32)
    network = couple(model, image)
    costs = costs_of(model, network, image)
    rng = np.random.default_rng(0)
    steps = steps_of(network)
    priorities = priorities_of_scores({g.name: rng.random(g.width) for g in network}, steps)
    budgets = budgets_of(network, costs, params=0.3, flops=0.5, channels=0.9)
    assert [budget.name for budget in budgets] == ["channels", "parameters", "FLOPs"]
    widths = fill(network, budgets, steps, priorities)
    shares = [budget.cost(widths) / budget.cost(network.widths) for budget in budgets]
    assert all(share <= budget.share for share, budget in zip(shares, budgets, strict=True))
    assert 0.29 < shares[1] <= 0.3
    assert all(width in steps[name] for name, width in widths.items())


def test_everything_is_kept_by_a_budget_of_everything() -> None:
    pair = coupling(a=5, b=9)
    scores = {"a": np.zeros(5), "b": np.zeros(9)}
    steps = steps_of(pair)
    widths = fill(pair, [Budget("channels", channel_count(pair), 1.0)], steps, priorities_of_scores(scores, steps))
    assert widths == {"a": 5, "b": 9}


def test_the_best_stay_and_the_earlier_one_on_a_tie() -> None:
    pair = coupling(a=4)
    kept = best(pair, {"a": np.array([1.0, 2.0, 1.0, 1.0])}, {"a": 2})
    assert kept["a"].tolist() == [True, True, False, False]


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_outside_of_its_range_is_refused(share: float) -> None:
    pair = coupling(a=4)
    with pytest.raises(BudgetError, match=r"channels of .* is outside \(0, 1\]"):
        Budget("channels", channel_count(pair), share)


def test_the_smallest_share_is_named() -> None:
    pair = coupling(a=64, b=64)
    steps = steps_of(pair)
    priorities = priorities_of_widths({"a": 1.0, "b": 1.0}, steps)
    with pytest.raises(BudgetError, match=r"channels of 0.1 .* narrowest network has 0.125 of them \(see --round-to\)"):
        fill(pair, [Budget("channels", channel_count(pair), 0.1)], steps, priorities)


def test_scores_that_are_no_scores_are_refused() -> None:
    pair = coupling(a=2)
    for scores in (np.array([1.0]), np.array([1.0, np.nan])):
        with pytest.raises(AutoSparseError, match="scores of channel group 'a' are not 2 numbers"):
            priorities_of_scores({"a": scores}, steps_of(pair, 1))


def test_round_to_must_be_positive() -> None:
    with pytest.raises(AutoSparseError, match="round-to is 0"):
        steps_of(coupling(a=4), 0)


def test_outputs_are_multiples_where_channels_are_several() -> None:
    model, image = GATED(), torch.zeros(1, 3, 8, 8)
    assert steps_of(couple(model, image), 4)["conv"].tolist() == [1, 2, 3, 4]


def test_what_may_grow_may_reach_twice_what_is_wanted() -> None:
    assert wider_steps_of(coupling(a=64, b=4), {"a": 70.0, "b": 0.3}) == {
        "a": pytest.approx(np.arange(8, 145, 8)),
        "b": pytest.approx(np.array([1.0])),
    }


def test_a_step_of_minus_infinity_is_never_taken() -> None:
    pair = coupling(a=2, b=2)
    priorities = {"a": np.array([1.0, -np.inf]), "b": np.array([2.0, 1.0])}
    assert fill(pair, [Budget("channels", channel_count(pair), 1.0)], steps_of(pair, 1), priorities) == {"a": 1, "b": 2}
