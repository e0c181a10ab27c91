"""GMP, GraNet, RigL and SET: the papers' formulas by hand, exact counts, and what each promises about its masks."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autosparse.budget import budget_counts
from autosparse.criteria import score
from autosparse.errors import AutoSparseError, BudgetError, DivergedError, UnknownNameError
from autosparse.layers import layers_of, prunable, total_weights
from autosparse.masks import Masks
from autosparse.triggers.base import HeldMasks, MaskSchedule, Target
from autosparse.triggers.prune_regrow import (
    GMP,
    GRANET,
    GRANET_SPARSE,
    RIGL,
    SET,
    PruneAndRegrow,
    cosine,
    cubic,
)

Chain = Callable[..., nn.Sequential]
ROWS = {"gmp": GMP, "granet": GRANET, "granet-sparse": GRANET_SPARSE, "rigl": RIGL, "set": SET}
magnitude = partial(score, "magnitude")

# The formulas -------------------------------------------------------------------------------------------------------


def test_the_cubic_path_by_hand() -> None:
    # Sparsity 0 to 0.9: 0.9 (1 - (1 - u)^3).
    assert [cubic(0, 0.9, u) for u in (0, 0.25, 0.5, 1)] == pytest.approx([0, 0.5203125, 0.7875, 0.9])
    # The same as densities, and from half the weights.
    assert [cubic(1, 0.1, u) for u in (0, 0.5, 1)] == pytest.approx([1, 0.2125, 0.1])
    assert cubic(0.5, 0.1, 0.5) == pytest.approx(0.15)
    assert [cubic(1, 0.1, u) for u in (-1, 2)] == [1, 0.1]


def test_the_drop_fraction_by_hand() -> None:
    assert [cosine(0.5, 0.005, u) for u in (0, 0.5, 1)] == pytest.approx([0.5, 0.2525, 0.005])
    # RigL's alpha / 2 (1 + cos(pi t / T_end)).
    assert [cosine(0.3, 0, u) for u in (1 / 3, 2 / 3, 2)] == pytest.approx([0.225, 0.075, 0])


# One event on four weights ------------------------------------------------------------------------------------------


def four(weights: list[float], grads: list[float]) -> nn.Linear:
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weights).view(2, 2))
    model.weight.grad = torch.tensor(grads, dtype=torch.float64).view(2, 2)
    return model


def event(model: nn.Linear, mask: list[int], settings: PruneAndRegrow, density: float, seed: int = 0) -> list[int]:
    """The mask after the first of four steps, from ``mask``."""
    target = Target(layers_of(model), density, steps=4, steps_per_epoch=2, seed=seed)
    schedule = settings.schedule(target, scores=magnitude)
    schedule.start(model)
    before = {"masks.weight": torch.tensor(mask, dtype=torch.bool).view(2, 2)}
    schedule.restore(model, before, schedule.facts())
    weights = model.weight.detach().clone()
    masks = schedule.after_step(model, 1)
    assert torch.equal(model.weight, weights)  # the loop applies masks, the schedule only chooses them
    assert masks is schedule.masks or masks is None
    assert schedule.masks is not None
    return schedule.masks["weight"].flatten().int().tolist()


HALF = dataclasses.replace(RIGL, drop=0.5, drop_path="constant")


def test_rigl_drops_the_smallest_and_regrows_by_gradient() -> None:
    model = four([3, 0, -1, 0], [9, 1, -1.5, -2])
    assert event(model, [1, 0, 1, 0], HALF, density=0.5) == [1, 0, 0, 1]


def test_a_dropped_weight_whose_gradient_is_largest_stays() -> None:
    model = four([3, 0, -1, 0], [0, 1, -5, -2])
    assert event(model, [1, 0, 1, 0], HALF, density=0.5) == [1, 0, 1, 0]


def test_granet_prunes_drops_and_regrows() -> None:
    # Half way to density 0.5 by the cubic path 0.5625, which is round(2.25) = 2 of the 4: -3 and 4 are left; of these
    # -3 is dropped; among the zeros the largest gradient is that of 2.
    model = four([4, -3, 2, 1], [0, 1, -3, 2])
    settings = dataclasses.replace(GRANET, prune_end=0.5, drop_path="constant")
    assert event(model, [1, 1, 1, 1], settings, density=0.5) == [1, 0, 1, 0]


def test_gmp_only_prunes() -> None:
    model = four([4, -3, 2, 1], [0, 1, -3, 2])
    assert event(model, [1, 1, 1, 1], dataclasses.replace(GMP, prune_end=0.5), density=0.5) == [1, 1, 0, 0]


def test_set_regrows_uniformly_by_its_seed() -> None:
    settings = dataclasses.replace(SET, drop=0.5)

    def grown(seed: int) -> list[int]:
        return event(four([3, 0, -1, 0], [0, 9, 0, 0]), [1, 0, 1, 0], settings, density=0.5, seed=seed)

    counts = Counter(tuple(grown(seed)) for seed in range(300))
    assert counts.keys() == {(1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)}  # also the weight that was dropped
    assert all(70 < count < 130 for count in counts.values())
    assert grown(5) == grown(5)


def test_gmp_prunes_over_the_whole_network_unless_a_budget_says_otherwise() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        for layer, values in zip(model, ([1.0, 2, 3, 4], [5.0, 6, 7, 8]), strict=True):
            layer.weight.copy_(torch.tensor(values).view(2, 2))  # type: ignore[operator]
    at_once = dataclasses.replace(GMP, prune_end=0.0)
    kept = {}
    for budget in ("global", "uniform"):
        schedule = at_once.schedule(Target(layers_of(model), 0.5, 4, 2), scores=magnitude, budget=budget)
        schedule.start(model)
        masks = schedule.after_step(model, 1)
        assert masks is not None
        kept[budget] = [int(mask.sum()) for mask in masks.values()]
    assert kept == {"global": [0, 4], "uniform": [2, 2]}


# A whole training ---------------------------------------------------------------------------------------------------


def simulate(
    settings: PruneAndRegrow, model: nn.Module, density: float, steps: int, **arguments: Any
) -> Iterator[tuple[int, Masks, MaskSchedule]]:
    """Step, masks and schedule after every step of a regression with momentum and weight decay."""
    target = Target(layers_of(model), density, steps, steps_per_epoch=10, seed=3)
    schedule = settings.schedule(target, **{"scores": magnitude, **arguments})
    optimizer = torch.optim.SGD(model.parameters(), 0.02, 0.9, weight_decay=1e-3, nesterov=True)
    held = HeldMasks(model, optimizer, schedule)
    schedule.start(model)
    held.hold(schedule.masks)
    noise = torch.Generator().manual_seed(0)
    for step in range(1, steps + 1):
        x = torch.randn(16, 8, generator=noise)
        optimizer.zero_grad()
        (model(x) - x[:, :4]).square().mean().backward()
        optimizer.step()
        held.after_step(step)
        assert schedule.masks is not None
        yield step, schedule.masks, schedule


@pytest.mark.parametrize("density", [0.05, 0.3])
@pytest.mark.parametrize("name", ROWS)
def test_counts_are_exact_at_every_step_and_removed_weights_are_zero(name: str, density: float, chain: Chain) -> None:
    settings, model = ROWS[name], chain(8, 20, 20, 4)
    total, steps = 640, 200
    first = {"gmp": 0.0, "granet": 0.0, "granet-sparse": 0.5}.get(name, 1 - density)  # sparsity s_i
    every, last = 3, 138  # 200 // 62 steps, round(0.6875 * 200)
    expected = round(total * (1 - first))
    changes = 0
    for step, masks, schedule in simulate(settings, model, density, steps):
        if step % every == 0 or step == last:
            final = 1 - density
            sparsity = final + (first - final) * (1 - min(step / last, 1)) ** 3
            changes += expected != round(total * (1 - sparsity))
            expected = round(total * (1 - sparsity))
        assert masks.kept == expected
        for key, weight in prunable(model).items():
            assert not weight[~masks[key]].any()
        assert len(schedule.facts()["pruned"]) == changes
    assert masks.kept == round(density * total)
    if name in ("gmp", "granet", "granet-sparse"):
        assert changes > 20
        step, density_then = schedule.facts()["pruned"][-1]
        assert 0.8 * last < step <= last  # the path is flat at its end: its last fractions of a weight round to none
        assert density_then == masks.density
    assert json.loads(json.dumps(schedule.facts())) == schedule.facts()


@pytest.mark.parametrize("sign", [1, -1], ids=["magnitude", "smallest first"])
def test_masks_of_gmp_are_nested_whatever_the_criterion(sign: int, chain: Chain) -> None:
    def scores(model: nn.Module) -> dict[str, Tensor]:
        return {key: sign * value for key, value in magnitude(model).items()}

    before: Masks | None = None
    for _, masks, schedule in simulate(GMP, chain(8, 20, 4), 0.1, 60, scores=scores):
        assert schedule.facts()["regrown"] == schedule.facts()["exchanges"] == 0
        if before is not None:
            assert not any((mask & ~before[key]).any() for key, mask in masks.items())
        before = masks


@pytest.mark.parametrize(
    ("settings", "last"),
    # SET exchanges as many until 150 steps are done; RigL's 0.15 (1 + cos(pi t / 150)) of the largest layer's 56
    # weights is less than half a weight after step 132.
    [(SET, 147), (RIGL, 132)],
    ids=["set", "rigl"],
)
def test_layer_counts_stay_and_weights_move_until_three_quarters(
    settings: PruneAndRegrow, last: int, chain: Chain
) -> None:
    model, moved, regrown = chain(8, 20, 20, 4), [], 0
    layers = layers_of(model)
    expected = budget_counts(layers, 128, "erk")
    before: Masks | None = None
    for step, masks, schedule in simulate(settings, model, 0.2, 200):
        assert {key: int(mask.sum()) for key, mask in masks.items()} == expected
        if before is not None and before is not masks:
            moved.append(step)
            regrown += sum(int((mask & ~before[key]).sum()) for key, mask in masks.items())
        assert schedule.facts()["regrown"] == regrown
        before = masks
    assert (moved[0], moved[-1]) == (3, last)
    assert all(step % 3 == 0 for step in moved)
    assert regrown > 100


def test_random_starts_spread_their_weights_by_erk_and_by_their_seed(chain: Chain) -> None:
    model = chain(8, 20, 20, 4)
    layers = layers_of(model)

    def masks(seed: int, settings: PruneAndRegrow = RIGL, density: float = 0.2) -> Masks:
        schedule = settings.schedule(Target(layers, density, 100, 10, seed), scores=magnitude)
        schedule.start(model)
        assert schedule.masks is not None
        return schedule.masks

    assert all(torch.equal(mask, masks(1)[key]) for key, mask in masks(1).items())
    assert not all(torch.equal(mask, masks(2)[key]) for key, mask in masks(1).items())
    assert masks(0, GRANET_SPARSE).kept == 320
    assert masks(0, GRANET_SPARSE, density=0.8).kept == 512  # already above half
    assert masks(0, GMP).kept == 640


@pytest.mark.parametrize(
    ("steps", "start", "end", "expected"),
    [
        (200, 0.0, 0.0, [1]),  # at once
        (200, 0.5, 0.5, [100]),
        (10, 0.1, 0.5, [2, 3, 4, 5]),  # every step of a short training
        (1, 0.0, 1.0, [1]),
    ],
)
def test_pruning_happens_between_start_and_end(
    steps: int, start: float, end: float, expected: list[int], chain: Chain
) -> None:
    settings = dataclasses.replace(GMP, start=start, prune_end=end)
    *_, (_, masks, schedule) = simulate(settings, chain(8, 20, 4), 0.1, steps)
    assert [step for step, _ in schedule.facts()["pruned"]] == expected
    assert masks.kept == 24


def test_a_floor_holds_in_every_layer(chain: Chain) -> None:
    *_, (_, masks, _) = simulate(GMP, chain(8, 20, 20, 4), 0.1, 50, min_layer_density=0.09)
    assert masks.kept == 64
    assert min(masks.layer_densities().values()) >= 0.09
    layers = layers_of(chain(8, 4))
    with pytest.raises(BudgetError, match=r"a layer density of at least 0\.5 needs 16 weights, but only 8 are kept"):
        GMP.schedule(Target(layers, 0.25, 10, 10), scores=magnitude, min_layer_density=0.5)


def test_weights_and_gradients_that_are_not_finite_name_their_layer(chain: Chain) -> None:
    for spoilt, message in (("weight", "scores of '0.weight'"), ("grad", "gradients of '0.weight'")):
        model = chain(8, 4)
        weight = prunable(model)["0.weight"]
        weight.grad = torch.zeros_like(weight)
        schedule = RIGL.schedule(Target(layers_of(model), 0.5, 100, 10), scores=magnitude)
        schedule.start(model)
        with torch.no_grad():
            {"weight": weight, "grad": weight.grad}[spoilt][0, 0] = math.nan
        with pytest.raises(DivergedError, match=f"{message} are no longer finite after step 1: try a smaller --lr"):
            schedule.after_step(model, 1)


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial_density": 1.5}, r"initial_density is 1.5: give a number in \[0, 1\]"),
        ({"drop": math.nan}, "drop is nan"),
        ({"prune_end": -0.1}, "prune_end is -0.1"),
        ({"start": 0.8}, "start 0.8 comes after prune_end 0.6875"),
        ({"drop": 0.1, "drop_floor": 0.2}, "drop_floor 0.2 is above drop 0.1"),
        ({"updates": 0}, "updates is 0: give 1 or more"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoSparseError, match=message):
        PruneAndRegrow(**settings)


@pytest.mark.parametrize("settings", [{"regrow": "gradiant"}, {"drop_path": "cosin"}, {"initial_budget": "ekr"}])
def test_unknown_names_suggest_the_nearest(settings: dict[str, Any]) -> None:
    with pytest.raises(UnknownNameError, match="did you mean"):
        PruneAndRegrow(**settings)


def test_targets_are_checked(chain: Chain) -> None:
    layers = layers_of(chain(8, 4))
    assert total_weights(layers) == 32
    with pytest.raises(BudgetError, match=r"density 1.5 is outside \(0, 1\]"):
        Target(layers, 1.5, 10, 10)
    with pytest.raises(BudgetError, match=r"density 0.01 keeps none of 32 weights: the least is 0.03125"):
        Target(layers, 0.01, 10, 10)
    with pytest.raises(AutoSparseError, match="a training of 0 steps, 10 an epoch, cannot prune on its way"):
        Target(layers, 0.5, 0, 10)


@pytest.mark.parametrize("name", ROWS)
def test_settings_and_identity_are_json(name: str, chain: Chain) -> None:
    target = Target(layers_of(chain(8, 4)), 0.25, 10, 5, seed=7)
    identity = ROWS[name].schedule(target, scores=magnitude).identity
    assert json.loads(json.dumps(identity)) == identity
    run = {"density": 0.25, "steps": 10, "steps_per_epoch": 5, "seed": 7}
    assert identity == {"trigger": "PruneAndRegrow", **dataclasses.asdict(ROWS[name]), **run}
