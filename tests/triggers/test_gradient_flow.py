"""EarlyCroP's moment: when it comes on made-up paths of weights, and when it is not waited for."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from scripted_looks import NOTHING, Scripted, moment
from torch import nn

from autosparse.errors import AutoSparseError, BudgetError, DivergedError, FileFormatError, UnknownNameError
from autosparse.layers import layers_of
from autosparse.masks import Masks
from autosparse.triggers.base import MaskSchedule, Target
from autosparse.triggers.gradient_flow import (
    GradientFlow,
    GradientFlowSettled,
    Settling,
    reference_weights,
    relative_distance,
)

DENSITY = 0.25
KEPT = torch.tensor([[True, False, False, False]])


def network() -> nn.Module:
    """Weights (3, 4, 0, 0), of norm 5."""
    model = nn.Linear(4, 1, bias=False)
    place(model, 0.0)
    return model


def place(model: nn.Module, distance: float) -> None:
    """Put the weights ``distance`` from (3, 4, 0, 0)."""
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0, 0.0, distance]]))  # type: ignore[operator]


def walk(settings: GradientFlow, distances: list[float], steps: int = 100) -> tuple[int | None, MaskSchedule]:
    """The step (4 make an epoch) at which the network is pruned whose weights move to ``distances`` after each."""
    model = network()
    moments: list[int] = []
    calls: list[float] = []

    def prune_now(pruned: nn.Module, density: float) -> Masks:
        assert pruned is model
        calls.append(density)
        return Masks({"weight": KEPT})

    schedule = settings.schedule(Target(layers_of(model), DENSITY, steps, steps_per_epoch=4), prune_now=prune_now)
    schedule.start(model)
    for step, distance in enumerate(distances, start=1):
        place(model, distance)
        masks = schedule.after_step(model, step)
        if masks is not None:
            assert masks is schedule.masks
            moments.append(step)
    assert calls == [DENSITY] * len(moments)
    assert len(moments) <= 1  # once, and for good
    moment = moments[0] if moments else None
    assert schedule.facts()["pruned_at_step"] == moment
    return moment, schedule


def epochs(*distances: float) -> list[float]:
    """Far away in the middle of an epoch, at each of ``distances`` at its end."""
    return [value for distance in distances for value in (90.0, 80.0, 70.0, distance)]


# The paper's rule: |r_t - r_(t-1)| < d, distances from the initial weights over their norm ----------------------------


def test_the_paper_prunes_when_the_change_in_an_epoch_falls_below_the_density() -> None:
    # r = 0.5, 0.9, 1.1: changes of 0.5, 0.4 and 0.2 < 0.25.
    moment, schedule = walk(GradientFlow(latest=1.0), epochs(2.5, 4.5, 5.5, 5.5))
    assert moment == 12
    assert schedule.facts()["distances"] == pytest.approx([0, 0.5, 0.9, 1.1])
    assert schedule.facts()["settled"] is True
    assert schedule.masks is not None
    assert torch.equal(schedule.masks["weight"], KEPT)


def test_the_first_epoch_may_settle_it() -> None:
    assert walk(GradientFlow(latest=1.0), epochs(1.2, 9.0))[0] == 4


def test_a_way_back_counts_as_change() -> None:
    assert walk(GradientFlow(latest=1.0), epochs(2.5, 0.0, 0.0))[0] == 12


def test_finer_measurements_compare_the_change_per_epoch() -> None:
    # Every half epoch: 0.2, 0.2 and 0.1 against 0.25 / 2.
    steps = [0, 1.0, 0, 2.0, 0, 2.5]
    assert walk(GradientFlow(every=0.5, latest=1.0), steps)[0] == 6
    assert walk(GradientFlow(every=0.5, latest=1.0), [0, 1.0, 0, 2.0, 0, 2.7])[0] is None


def test_an_interval_is_a_step_at_least() -> None:
    moment, schedule = walk(GradientFlow(every=0.01, latest=1.0), [0.5, 0.9, 1.1])
    assert schedule.facts()["interval"] == 1
    assert moment == 3  # 0.04 < 0.25 / 4


# The released code's rule: distances from the weights after the first epoch, tau = r_1 d ------------------------------


def test_the_code_compares_with_its_first_change() -> None:
    # W_ref = (3, 4, 0, 0) after epoch 1; r_1 = 1, so tau = 0.25; then changes of 0.5, 0.3 and 0.2.
    moment, schedule = walk(GradientFlow(variant="code", latest=1.0), epochs(0, 5, 7.5, 9.0, 10.0))
    assert moment == 20
    assert schedule.facts()["distances"] == pytest.approx([0, 1, 1.5, 1.8, 2.0])


def test_the_code_cannot_prune_before_the_third_epoch() -> None:
    assert walk(GradientFlow(variant="code", latest=1.0), epochs(0, 1e-3, 1e-3))[0] == 12
    assert walk(GradientFlow(variant="code", latest=1.0), epochs(0, 0, 0))[0] is None  # nothing moved: no scale


# The cap ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_the_cap_prunes_a_network_that_never_settles(variant: str) -> None:
    restless = [10.0 * step for step in range(1, 41)]
    moment, schedule = walk(GradientFlow(variant=variant, latest=0.3), restless, steps=40)
    assert moment == 12
    assert schedule.facts()["settled"] is False
    assert walk(GradientFlow(variant=variant, latest=0.35), restless, steps=40)[0] == 14  # also inside an epoch
    assert walk(GradientFlow(variant=variant, latest=0.0), restless, steps=40)[0] == 1


# State --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("cut", [2, 5, 9, 13, 17])
def test_a_restored_watch_decides_as_the_whole_one(variant: str, cut: int) -> None:
    path = epochs(2.5, 5, 7.5, 8.0, 8.2, 8.2)
    settings = GradientFlow(variant=variant, latest=1.0)
    moment, whole = walk(settings, path)
    assert moment is not None
    model = network()
    target = Target(layers_of(model), DENSITY, 100, 4)
    parts = [settings.schedule(target, prune_now=lambda *_: Masks({"weight": KEPT})) for _ in range(2)]
    parts[0].start(model)
    for step, distance in enumerate(path, start=1):
        if step == cut:
            facts = json.loads(json.dumps(parts[0].facts()))
            parts[1].restore(model, {name: value.clone() for name, value in parts[0].tensors().items()}, facts)
        place(model, distance)
        masks = parts[step >= cut].after_step(model, step)
        assert (masks is not None) == (step == moment)
    assert parts[1].facts() == whole.facts()
    assert set(parts[1].tensors()) == {"masks.weight"}  # the reference is needed no longer


def test_weights_that_are_not_finite_are_no_settled_ones() -> None:
    with pytest.raises(DivergedError, match="the weights are no longer finite after step 4: try a smaller --lr"):
        walk(GradientFlow(latest=1.0), epochs(math.nan))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0.0}, "every is 0.0: give a positive number of epochs"),
        ({"every": math.inf}, "every is inf"),
        ({"latest": 1.5}, r"latest is 1.5: give a number in \[0, 1\]"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoSparseError, match=message):
        GradientFlow(**settings)


def test_unknown_variants_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean paper"):
        GradientFlow(variant="papers")


def test_identity_is_json() -> None:
    settings = GradientFlow(variant="code", every=0.5)
    identity = walk(settings, [])[1].identity
    run = {"density": DENSITY, "steps": 100, "steps_per_epoch": 4, "seed": 0}
    assert json.loads(json.dumps(identity)) == identity
    assert identity == {"trigger": "GradientFlow", **dataclasses.asdict(settings), **run}


def test_a_checkpoint_written_before_the_decision_had_a_class_of_its_own_is_read() -> None:
    facts = {"interval": 4, "distances": [0.0, 0.5, 0.9], "pruned_at_step": None, "settled": False}
    model = network()
    schedule = GradientFlow(latest=1.0).schedule(
        Target(layers_of(model), DENSITY, 100, 4), prune_now=lambda *_: Masks({"weight": KEPT})
    )
    schedule.restore(model, {"reference.weight": torch.tensor([[3.0, 4.0, 0.0, 0.0]])}, facts)
    assert schedule.facts() == facts
    place(model, 5.5)
    assert schedule.after_step(model, 12) is not None  # 1.1 - 0.9 < 0.25
    assert schedule.facts()["distances"] == pytest.approx([0, 0.5, 0.9, 1.1])


def test_damaged_distances_are_refused() -> None:
    model = network()
    schedule = GradientFlow().schedule(Target(layers_of(model), DENSITY, 100, 4), prune_now=lambda *_: Masks({}))
    for distances, message in [(None, "is no list"), ([0.0, math.nan], "contains nan"), ([0.5], "the first of")]:
        with pytest.raises(FileFormatError, match=message):
            schedule.restore(model, {}, {**schedule.facts(), "distances": distances})


# Distances and the decision by themselves -----------------------------------------------------------------------------


def test_distance_by_hand() -> None:
    model = nn.Linear(2, 1).double()  # the bias counts, too
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 0.0]]))
        model.bias.copy_(torch.tensor([1.5]))
    reference = reference_weights(model)
    assert relative_distance(model, reference) == 0
    with torch.no_grad():
        model.weight.add_(torch.tensor([[0.0, 3.0]]))
        model.bias.add_(4.0)
    assert relative_distance(model, reference) == pytest.approx(5 / 2.5)  # ||(0, 3, 4)|| / ||(2, 0, 1.5)||


def test_distances_are_the_same_bit_by_bit_from_a_reference_that_was_stored() -> None:
    for seed in range(5):
        rng = torch.Generator().manual_seed(seed)
        model = nn.Conv2d(64, 64, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            model.weight.copy_(torch.randn(64, 64, 3, 3, generator=rng))
            model.bias.copy_(10 * torch.randn(64, generator=rng))
        reference = reference_weights(model)
        stored = dict(sorted(load(save(reference)).items()))  # the order of a file is not that of the model
        with torch.no_grad():
            model.weight.add_(torch.randn(64, 64, 3, 3, generator=rng))
        assert relative_distance(model, reference) == relative_distance(model, stored)


def decisions(settling: Settling, distances: list[float]) -> list[bool]:
    return [settling.update(r) for r in distances]


def test_a_fixed_threshold() -> None:
    settling = Settling(0.25)
    assert decisions(settling, [0, 0.5, 0.75, 0.9, 0.6, 0.6]) == [False, False, False, True, False, True]
    assert settling.changes == pytest.approx([0.5, 0.25, 0.15, 0.3, 0])
    assert settling.tau == 0.25  # a change of just as much is not below it


def test_a_threshold_relative_to_the_first_change() -> None:
    settling = Settling(0.5, relative=True)
    taus = [settling.tau]
    assert decisions(settling, [0, 2]) == [False, False]
    assert [*taus, settling.tau] == [None, 1.0]
    assert decisions(settling, [3, 3.5]) == [False, True]
    assert decisions(Settling(1.0, relative=True), [0, 2]) == [False, False]  # no change is smaller than itself
    assert decisions(Settling(-0.1, relative=True), [0, 2, 2, 2]) == [False] * 4


# Channels: asked once an epoch ----------------------------------------------------------------------------------------


def at(*distances: float) -> list[Scripted]:
    return [Scripted(distance=r) for r in distances]


def test_channels_go_when_the_change_in_an_epoch_falls_below_the_density() -> None:
    trigger = GradientFlowSettled().watch(epochs=20, density=DENSITY)
    assert trigger.reference_epoch == 0
    assert moment(trigger, at(0.5, 0.9, 1.1)) == 3
    facts = trigger.facts()
    assert facts["distances"] == [0, 0.5, 0.9, 1.1]
    assert facts["values"] == pytest.approx([0.5, 0.4, 0.2])
    assert (facts["threshold"], facts["settled"]) == (DENSITY, True)


def test_channels_and_weights_go_at_the_same_moment_by_the_rule_of_the_paper() -> None:
    for distances in ([1.2], [2.5, 4.5, 5.5], [2.5, 0.0, 0.0], [9.0, 8.9]):
        weights = walk(GradientFlow(latest=1.0), epochs(*distances))[0]
        trigger = GradientFlowSettled().watch(epochs=20, density=DENSITY)
        assert weights is not None
        assert moment(trigger, at(*(r / 5 for r in distances))) == weights / 4


def test_the_code_leaves_a_margin_for_channels() -> None:
    trigger = GradientFlowSettled(variant="code").watch(epochs=20, density=0.35)
    assert trigger.reference_epoch == 1
    # after epoch 1 the weights are the reference: no distance is asked for
    path = [NOTHING, *at(1.0, 1.5, 1.8, 2.0)]
    # tau = 1 (0.35 - 0.1): changes of 0.5, 0.3 and 0.2
    assert moment(trigger, path) == 5
    facts = trigger.facts()
    assert facts["distances"] == [0, 1, 1.5, 1.8, 2]
    assert facts["values"] == pytest.approx([None, 1, 0.5, 0.3, 0.2])
    assert facts["threshold"] == pytest.approx(0.25)


def test_the_code_cannot_remove_channels_before_the_third_epoch() -> None:
    trigger = GradientFlowSettled(variant="code").watch(epochs=20, density=0.35)
    assert moment(trigger, [NOTHING, *at(0.1, 0.1)]) == 3
    with pytest.raises(AutoSparseError, match="prunes after epoch 3 at the earliest"):
        GradientFlowSettled(variant="code").watch(epochs=3, density=0.35)


@pytest.mark.parametrize("rho", [0.9, 0.95])
def test_the_code_never_leaves_a_tenth_of_the_channels_unless_a_cap_does(rho: float) -> None:
    with pytest.raises(AutoSparseError, match=r"variant code never prunes when 0\.(1|05) of the channels .*cap"):
        GradientFlowSettled(variant="code").watch(epochs=20, density=1 - rho)
    trigger = GradientFlowSettled(variant="code", cap=7).watch(epochs=20, density=1 - rho)
    assert moment(trigger, [NOTHING, *at(*[0.5] * 10)]) == 7  # nothing moves after the second epoch
    assert trigger.facts()["settled"] is False
    trigger = GradientFlowSettled().watch(epochs=20, density=1 - rho)
    assert moment(trigger, at(0.5, 0.5)) == 2


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_weights_that_diverged_do_not_settle(variant: str) -> None:
    trigger = GradientFlowSettled(variant=variant).watch(epochs=20, density=DENSITY)
    with pytest.raises(DivergedError, match="the weights are no longer finite after epoch 2: try a smaller --lr"):
        moment(trigger, at(0.5, math.inf))


def test_settings_for_channels_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="did you mean code"):
        GradientFlowSettled(variant="codes")
    with pytest.raises(AutoSparseError, match="cap is 0"):
        GradientFlowSettled(cap=0)
    for density in (0.0, 1.5):
        with pytest.raises(BudgetError, match=rf"density {density} is outside \(0, 1\]"):
            GradientFlowSettled().watch(epochs=20, density=density)
