"""Structured early pruning: triggers in real trainings."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Batch
from kills import KilledError, StopAfter
from torch import nn

from autosparse.channels.plan import Selection
from autosparse.channels.request import ShrinkRequest
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError
from autosparse.models import seeded_model
from autosparse.shrinking import Shrinker
from autosparse.training import TrainConfig, train
from autosparse.triggers.early import EarlyNarrowing

CONFIG = TrainConfig(epochs=5, batch_size=128, lr=0.05, precision="fp32")

REQUESTS = {
    "epi": {"method": "epi", "options": {"window": 1, "lookback": 1, "threshold": 0.5}},
    "epi, taylor": {"method": "epi-taylor", "options": {"window": 1, "lookback": 0, "threshold": 0.3}},
    "early-bird": {"method": "early-bird", "options": {"cap": 3}},
    "earlycrop-s": {"method": "earlycrop-s", "options": {"cap": 2}},
    "at an epoch": {"method": "l1", "when": "epoch", "options": {"epoch": 2}},
    "at epoch 0": {"method": "l1", "when": "epoch"},
}


def network() -> nn.Module:
    return seeded_model("resnet20", seed=0, num_classes=10, width=0.25)


def narrowing(model: nn.Module, batches: list[Batch], request: dict[str, Any], epochs: int = 5) -> EarlyNarrowing:
    shrinker = Shrinker(model, ShrinkRequest(flops=0.5, **request), batches)
    trigger = shrinker.recipe.when.watch(epochs=epochs, density=shrinker.channel_share)  # type: ignore[union-attr]
    return EarlyNarrowing(shrinker.coupling, trigger, shrinker.select, shrinker.imagine, {"request": request})


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_channels_go_at_the_trigger_and_a_resumed_run_ends_alike(
    request_: dict[str, Any], tiny_data: ImageData, two_batches: list[Batch], tmp_path: Path
) -> None:
    whole = network()
    dense = parameters(whole)
    expected = narrowing(whole, two_batches, request_)
    history = train(whole, tiny_data, CONFIG, narrowing=expected)
    facts = expected.facts()
    epoch = facts["pruned_at_epoch"]
    assert 0 <= epoch < 5
    assert parameters(whole) < dense
    for stop in {0, max(0, epoch - 1), min(3, epoch)}:  # dense, just before, and just after
        killed, checkpoint = network(), tmp_path / str(stop)
        with pytest.raises(KilledError):
            train(
                killed,
                tiny_data,
                CONFIG,
                narrowing=narrowing(killed, two_batches, request_),
                checkpoint=checkpoint,
                callbacks=[StopAfter(stop)],
            )
        resumed = network()
        again = narrowing(resumed, two_batches, request_)
        records = train(resumed, tiny_data, CONFIG, narrowing=again, checkpoint=checkpoint)
        assert again.facts() == facts
        assert [record.train_loss for record in records] == [record.train_loss for record in history]
        state = resumed.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())


def test_what_a_trigger_watches_is_not_rounded_and_what_stays_is(
    tiny_data: ImageData, two_batches: list[Batch]
) -> None:
    model = seeded_model("resnet20", seed=0, num_classes=10)
    watched = narrowing(model, two_batches, {"method": "epi", "options": {"cap": 2}}, epochs=3)
    train(model, tiny_data, TrainConfig(epochs=3, batch_size=128, precision="fp32"), narrowing=watched, validate=False)
    facts = watched.facts()
    assert facts["settled"] is False
    assert any(count % 2 for counts in facts["counts"].values() for count in counts)
    assert watched.kept is not None
    assert all(int(mask.sum()) % 2 == 0 for mask in watched.kept.values())


def test_a_trigger_that_never_fires_says_so(tiny_data: ImageData, two_batches: list[Batch]) -> None:
    model = network()
    shrinker = Shrinker(model, ShrinkRequest("epi", {"window": 1, "lookback": 0}, flops=0.5), two_batches)
    trigger = shrinker.recipe.when.watch(epochs=5, density=0.5)  # type: ignore[union-attr]
    looks = itertools.count()

    def restless(_: nn.Module) -> Selection:
        part = 1 + next(looks) % 2
        return Selection({name: width // part for name, width in shrinker.coupling.widths.items()}, None)

    undecided = EarlyNarrowing(shrinker.coupling, trigger, shrinker.select, restless, {})
    with pytest.raises(AutoSparseError, match=r"never was up to epoch 4.*give a cap"):
        train(model, tiny_data, CONFIG, narrowing=undecided)


def test_a_run_too_short_for_its_trigger_is_refused_before_it_begins(two_batches: list[Batch]) -> None:
    with pytest.raises(AutoSparseError, match=r"prunes after epoch 11 at the earliest.*train longer, or give a cap"):
        narrowing(network(), two_batches, {"method": "epi"})


def test_the_share_of_channels_behind_a_budget_of_flops(two_batches: list[Batch]) -> None:
    shrinker = Shrinker(network(), ShrinkRequest("l1", flops=0.25), two_batches)
    assert 0.45 < shrinker.channel_share < 0.55  # FLOPs fall with the square of the widths
    counted = Shrinker(network(), ShrinkRequest("l1", channels=0.25), two_batches)
    assert counted.channel_share == pytest.approx(0.25, abs=0.01)
    assert np.isclose(sum(counted.coupling.widths.values()), 112)
