"""Which channels stay: rounds, spreads, and the scores of what is left."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from autosparse.channels.costs import costs_of
from autosparse.channels.coupling import couple
from autosparse.channels.groups import Coupling
from autosparse.channels.plan import select_channels
from autosparse.channels.recipes import ChannelRecipe
from autosparse.channels.widths import Budget, budgets_of, channel_count
from autosparse.errors import AutoSparseError, BudgetError
from autosparse.models import seeded_model
from autosparse.triggers.init import AtInit

IMAGE = torch.zeros(1, 3, 16, 16)


def network() -> tuple[nn.Module, Coupling]:
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.5)
    return model, couple(model, IMAGE)


def norms(model: nn.Module, coupling: Coupling) -> dict[str, np.ndarray]:
    """The L2 norms of the first layer's filters."""
    found = {}
    for group in coupling:
        weight = model.get_submodule(group.name).weight.detach()  # type: ignore[operator]
        found[group.name] = weight.flatten(1).norm(dim=1).double().numpy()
    return found


def test_one_threshold_keeps_the_best_channels_of_all() -> None:
    model, coupling = network()
    budget = Budget("channels", channel_count(coupling), 0.5)
    chosen = select_channels(model, coupling, [budget], ChannelRecipe("l2"), norms, round_to=1)
    assert chosen.kept is not None
    scores = norms(model, coupling)
    # every group keeps one; beyond that, no channel that goes is better than one that stays
    rest = [np.sort(values)[::-1][1:] for values in scores.values()]
    stays = np.concatenate([np.sort(scores[name][mask])[::-1][1:] for name, mask in chosen.kept.items()])
    assert len(stays) + len(coupling) == sum(coupling.widths.values()) // 2 == sum(chosen.widths.values())
    assert stays.min() >= np.sort(np.concatenate(rest))[::-1][len(stays) - 1]


def test_rounds_score_what_is_left_and_never_take_back() -> None:
    model, coupling = network()
    seen: list[dict[str, int]] = []

    def scoring(small: nn.Module, left: Coupling) -> Mapping[str, np.ndarray]:
        seen.append(left.widths)
        for group in left:  # the network has these widths indeed
            assert small.get_submodule(group.name).weight.shape[0] == group.width  # type: ignore[index]
        return norms(small, left)

    budget = Budget("channels", channel_count(coupling), 0.25)
    recipe = ChannelRecipe("l2", when=AtInit(rounds=4))
    chosen = select_channels(model, coupling, [budget], recipe, scoring, round_to=1)
    total = sum(coupling.widths.values())
    assert [sum(widths.values()) for widths in seen] == [total, *(int(total * 0.25 ** (k / 4)) for k in (1, 2, 3))]
    assert all(later[name] <= width for a, later in itertools.pairwise(seen) for name, width in a.items())
    assert sum(chosen.widths.values()) == total // 4
    assert coupling.widths == {group.name: group.width for group in couple(model, IMAGE)}  # the model is untouched


@pytest.mark.parametrize("spread", ["uniform", "synexp"])
def test_a_spread_fixes_the_widths_and_the_criterion_says_which(spread: str) -> None:
    model, coupling = network()
    costs = costs_of(model, coupling, IMAGE)
    budgets = budgets_of(coupling, costs, flops=0.5)
    chosen = select_channels(model, coupling, budgets, ChannelRecipe("l2", spread), norms, round_to=1)
    widths = select_channels(model, coupling, budgets, ChannelRecipe(None, spread), norms, round_to=1)
    assert chosen.widths == widths.widths
    assert widths.kept is None
    assert chosen.kept is not None
    for name, mask in chosen.kept.items():
        scores = norms(model, coupling)[name]
        assert scores[mask].min() >= scores[~mask].max(initial=-1)
    if spread == "uniform":
        shares = [width / coupling.widths[name] for name, width in chosen.widths.items()]
        assert max(shares) - min(shares) < 2 / min(coupling.widths.values())  # whole channels, and a filled budget
    assert 0.49 < costs.flops(chosen.widths) / costs.flops(coupling.widths) <= 0.5


def test_widening_may_exceed_the_dense_widths_within_the_budgets() -> None:
    model, coupling = network()
    costs = costs_of(model, coupling, IMAGE)
    budgets = budgets_of(coupling, costs, params=0.5, flops=1.0)
    recipe = ChannelRecipe(None, "synexp", widen=True)
    widths = select_channels(model, coupling, budgets, recipe, norms, round_to=1).widths
    assert any(width > coupling.widths[name] for name, width in widths.items())
    assert costs.params(widths) <= 0.5 * costs.params(coupling.widths)
    assert costs.flops(widths) <= costs.flops(coupling.widths)


def test_scores_that_say_nothing_are_refused() -> None:
    model, coupling = network()
    budget = Budget("channels", channel_count(coupling), 0.5)

    def flat(_: nn.Module, left: Coupling) -> Mapping[str, np.ndarray]:
        return {name: np.ones(width) for name, width in left.widths.items()}

    with pytest.raises(AutoSparseError, match="bn-scale gives every channel the same score here"):
        select_channels(model, coupling, [budget], ChannelRecipe("bn-scale"), flat)


def test_a_budget_below_one_channel_each_is_refused() -> None:
    model, coupling = network()
    budget = Budget("channels", channel_count(coupling), 0.01)
    with pytest.raises(BudgetError, match=r"channels of 0.01 cannot be reached"):
        select_channels(model, coupling, [budget], ChannelRecipe("l2"), norms, round_to=1)
