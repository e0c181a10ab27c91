"""``autosparse.shrink`` from Python, and the methods by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Batch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autosparse.channels.recipes import CHANNEL_RECIPES, ChannelRecipe, channel_recipe_of, list_channel_methods
from autosparse.channels.request import ShrinkRequest
from autosparse.errors import AutoSparseError, BudgetError, UnknownNameError
from autosparse.models import seeded_model
from autosparse.recipes import list_methods
from autosparse.shrinking import plan_shrink, shrink
from autosparse.triggers.epi import ArchitectureStable
from autosparse.triggers.init import AtInit

AT_INIT = [name for name in list_channel_methods() if isinstance(CHANNEL_RECIPES.get(name).when, AtInit)]
UNTRAINED = [name for name in AT_INIT if name not in ("bn-scale", "preconfig")]


def flops(model: nn.Module, image: torch.Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(image)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("method", UNTRAINED)
@pytest.mark.parametrize("name", ["resnet20", "mobilenetv2"])
def test_every_method_meets_its_budget(name: str, method: str, two_batches: list[Batch]) -> None:
    model = seeded_model(name, seed=0, num_classes=10, width=0.25)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan = plan_shrink(model, two_batches, method=method, flops=0.5)
    small = plan.apply(model)
    image = two_batches[0][0][:1]
    reached = flops(small, image) / flops(model, image)
    assert reached == pytest.approx(plan.summary.reached["flops"], rel=1e-9)
    assert reached <= 0.5
    assert reached > 0.49 or plan.summary.note
    assert plan.summary.params == (
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in small.parameters()),
    )
    assert small(two_batches[0][0]).shape == (32, 10)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if name == "resnet20":
        again = shrink(model, two_batches, method=method, flops=0.5)
        assert all(torch.equal(value, small.state_dict()[key]) for key, value in again.state_dict().items())


def test_preconfig_holds_two_budgets_and_may_widen(two_batches: list[Batch]) -> None:
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.5)
    plan = plan_shrink(model, two_batches, method="preconfig", params=0.5, flops=1.0)
    assert plan.summary.reached["params"] <= 0.5
    assert plan.summary.reached["flops"] <= 1.0
    assert any(group.after > group.before for group in plan.summary.groups)
    assert plan.apply(model)(two_batches[0][0]).shape == (32, 10)
    with pytest.raises(BudgetError, match=r"'preconfig' may widen.*give two, such as params=0.8"):
        plan_shrink(model, two_batches, method="preconfig", flops=1.0)


def test_the_shape_of_the_images_is_enough_for_widths_alone(two_batches: list[Batch]) -> None:
    model = seeded_model("resnet20", seed=0, num_classes=10)
    image = torch.zeros(1, 3, 32, 32)
    assert plan_shrink(model, example=image, flops=0.5).summary.method == "precrop"
    with pytest.raises(AutoSparseError, match="needs"):
        plan_shrink(model, example=image, method="taylor", flops=0.5)
    with pytest.raises(AutoSparseError, match=r"images are unknown: pass data=.* or example="):
        plan_shrink(model, flops=0.5)


def test_what_is_fixed_and_what_becomes_of_every_group_is_told(two_batches: list[Batch]) -> None:
    model = seeded_model("resnet20", seed=0, num_classes=10)
    plan = plan_shrink(model, two_batches, method="l1", flops=0.5, keep=["conv"], options={"normalise": "none"})
    summary = plan.summary.as_dict()
    assert summary["fixed"]["conv"] == "conv is to be kept"
    assert summary["fixed"]["classifier"] == "the network returns them"
    assert {group["name"]: group["before"] for group in summary["groups"]} == plan.coupling.widths
    assert all(0 < group["after"] <= group["before"] for group in summary["groups"])
    assert plan.apply(model).conv.out_channels == 16  # type: ignore[union-attr]


def test_a_coarse_rounding_explains_itself(two_batches: list[Batch]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )
    plan = plan_shrink(model, two_batches, method="l1", flops=0.4, round_to=32)
    assert "below the budget: channel counts go in steps (round-to 32)" in plan.summary.note
    assert {group.after for group in plan.summary.groups} == {32}


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({}, BudgetError, "no budget was given"),
        ({"flops": 0.0}, BudgetError, r"flops of 0.0 is outside \(0, 1\]"),
        ({"flops": 1.5}, BudgetError, r"flops of 1.5 is outside"),
        ({"flops": 0.5, "method": "precorp"}, UnknownNameError, "did you mean precrop"),
        ({"flops": 0.5, "method": "l1", "options": {"nromalise": "max"}}, UnknownNameError, "did you mean normalise"),
        ({"flops": 0.5, "method": "precrop", "options": {"rounds": 3}}, UnknownNameError, "unknown option"),
        ({"flops": 0.5, "method": "epi"}, AutoSparseError, "'epi' does not prune at initialisation but early"),
        ({"flops": 0.5, "spread": "erk"}, UnknownNameError, "unknown spread of channels 'erk'"),
        ({"flops": 0.5, "spread": "global"}, AutoSparseError, "a global threshold needs a criterion"),
        ({"flops": 0.5, "round_to": 0}, AutoSparseError, "round-to is 0"),
        ({"flops": 0.5, "criterion": "l3"}, UnknownNameError, "did you mean"),
        ({"flops": 0.5, "when": "epi"}, AutoSparseError, "draws fresh weights"),
        ({"flops": 0.5, "method": "l1", "when": "eip"}, UnknownNameError, "did you mean epi"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_done(
    request_: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ShrinkRequest(**request_).check()


def test_a_network_without_channels_is_refused() -> None:
    with pytest.raises(AutoSparseError, match="Linear has no channels that could be removed: the network returns them"):
        plan_shrink(nn.Linear(8, 10), example=torch.zeros(1, 8), flops=0.5)


def test_an_unreachable_budget_names_the_smallest(two_batches: list[Batch]) -> None:
    model = seeded_model("resnet20", seed=0, num_classes=10)
    for method in ("precrop", "l1"):
        with pytest.raises(BudgetError, match=r"FLOPs of 0.0001 cannot be reached: .* 0.0\d+ of them"):
            plan_shrink(model, two_batches, method=method, flops=0.0001)


def test_names_of_methods_are_unique_over_weights_and_channels() -> None:
    assert not set(list_methods()) & set(list_channel_methods())
    assert channel_recipe_of("snip") == channel_recipe_of("snip-s") == ChannelRecipe("snip")


def test_axes_can_be_exchanged_one_by_one() -> None:
    assert channel_recipe_of("precrop").changed(criterion="l1") == ChannelRecipe("l1", "synexp")
    assert channel_recipe_of("preconfig").changed(spread="uniform").widen is False
    epi = channel_recipe_of("l1").changed(when="epi")
    assert epi.with_options({})[0].when == ArchitectureStable(threshold=0.983)
    assert epi.changed(criterion="taylor").with_options({"cap": 9})[0].when == ArchitectureStable(0.944, cap=9)
    assert epi.changed(criterion="snip").with_options({"threshold": 0.9})[0].when == ArchitectureStable(0.9)


def test_epi_needs_a_threshold_where_the_authors_give_none_and_widths_that_can_change() -> None:
    epi = channel_recipe_of("l1").changed(when="epi")
    with pytest.raises(AutoSparseError, match="threshold"):
        epi.changed(criterion="snip").with_options({})
    with pytest.raises(AutoSparseError, match="spread uniform fixes the widths"):
        epi.changed(spread="uniform")


def test_every_method_says_what_it_is_and_where_it_comes_from() -> None:
    for name in list_channel_methods():
        recipe = CHANNEL_RECIPES.get(name)
        assert recipe.line.endswith("."), name
        assert recipe.source or name in ("uniform-width", "random-s", "magnitude-s"), name
