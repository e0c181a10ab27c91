"""Channels that are removed while a network trains."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kills import KilledError, StopAfter, StopAtStep
from torch import nn

from autosparse.channels.coupling import couple
from autosparse.channels.groups import Coupling
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError
from autosparse.masks import Masks
from autosparse.models import seeded_model
from autosparse.training import Callback, EpochRecord, TrainConfig, train
from autosparse.triggers.narrowing import Narrowing, narrow_

CONFIG = TrainConfig(epochs=4, batch_size=128, lr=0.05, precision="fp32")


class AfterEpoch(Narrowing):
    """Keeps the filters of largest norm, half of each group, once ``epoch`` epochs are over."""

    def __init__(self, model: nn.Module, epoch: int, fail: bool = False) -> None:
        self.coupling = couple(model, torch.zeros(1, 3, 8, 8))
        self.identity = {"epoch": epoch}
        self._epoch = epoch
        self._fail = fail
        self._looks: list[int] = []

    def start(self, model: nn.Module) -> bool:
        return self._now(model, 0)

    def after_epoch(self, model: nn.Module, epoch: int) -> bool:
        return self._now(model, epoch)

    def facts(self) -> dict[str, Any]:
        return {"looks": list(self._looks)}

    def restore_facts(self, facts: Mapping[str, Any]) -> None:
        self._looks = list(facts["looks"])

    def _now(self, model: nn.Module, epoch: int) -> bool:
        self._looks.append(epoch)
        if epoch != self._epoch:
            return False
        if self._fail:
            raise KilledError
        self.kept = halves(model, self.coupling)
        return True


def halves(model: nn.Module, coupling: Coupling) -> dict[str, np.ndarray]:
    kept = {}
    for group in coupling:
        weight = model.get_submodule(group.members[0].module).weight
        norms = weight.detach().flatten(1).norm(dim=1)[torch.from_numpy(group.members[0].positions[:, 0])]  # type: ignore[operator]
        kept[group.name] = (norms >= norms.median()).numpy()
    return kept


def network() -> nn.Module:
    return seeded_model("resnet20", seed=0, num_classes=10, width=0.25)


def widths(model: nn.Module) -> list[int]:
    return [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]


class Widths(Callback):
    """The number of parameters after every epoch."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.seen: list[int] = []

    def on_epoch(self, history: list[EpochRecord]) -> None:
        self.seen.append(sum(parameter.numel() for parameter in self._model.parameters()))


def test_the_network_becomes_smaller_once_and_training_goes_on(tiny_data: ImageData) -> None:
    model = network()
    narrowing, seen = AfterEpoch(model, 2), Widths(model)
    dense = sum(parameter.numel() for parameter in model.parameters())
    history = train(model, tiny_data, CONFIG, narrowing=narrowing, callbacks=[seen])
    assert len(history) == 4
    assert seen.seen[0] == dense > seen.seen[1] == seen.seen[2] == seen.seen[3]
    assert narrowing.facts() == {"looks": [0, 1, 2]}  # it is not asked again
    assert history[3].train_loss < history[1].train_loss


def test_before_the_first_step_it_is_training_the_small_network(tiny_data: ImageData) -> None:
    early, small = network(), network()
    train(early, tiny_data, CONFIG, narrowing=AfterEpoch(early, 0), validate=False)
    from autosparse.channels.surgery import shrink_

    coupling = couple(small, torch.zeros(1, 3, 8, 8))
    shrink_(small, coupling, halves(small, coupling))
    train(small, tiny_data, CONFIG, validate=False)
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in early.state_dict().items())


def test_momentum_follows_the_weights_that_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images = torch.randn(5, 3, 2, 2)
    for _ in range(2):
        model(images).square().sum().backward()
        optimizer.step()
    before = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in model.named_parameters()}
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    coupling = couple(model, images)
    narrow_(model, optimizer, coupling, {"0": np.array([True, False, False, True])})
    now = {name: optimizer.state[p]["momentum_buffer"] for name, p in model.named_parameters()}
    assert torch.equal(now["0.weight"], before["0.weight"][[0, 3]])
    assert torch.equal(now["0.bias"], before["0.bias"][[0, 3]])
    reads = [0, 1, 2, 3, 12, 13, 14, 15]
    assert torch.equal(now["3.weight"], before["3.weight"][:, reads])
    assert torch.equal(now["3.bias"], before["3.bias"])
    # the next step is that of the smaller network with this momentum
    twin = copy.deepcopy(model)
    optimizer.zero_grad()
    model(images).square().sum().backward()
    gradient = model[0].bias.grad.clone()  # type: ignore[operator,union-attr]
    optimizer.step()
    expected = weights["0.bias"][[0, 3]] - 0.1 * (0.9 * before["0.bias"][[0, 3]] + gradient)
    torch.testing.assert_close(model[0].bias, expected)
    assert [p.shape for p in twin.parameters()] == [p.shape for p in optimizer.param_groups[0]["params"]]


@pytest.mark.parametrize("how", ["while dense", "at the moment of pruning", "in the epoch after", "at the end"])
def test_a_killed_run_ends_as_one_that_was_not(how: str, tiny_data: ImageData, tmp_path: Path) -> None:
    whole = network()
    expected = AfterEpoch(whole, 2)
    history = train(whole, tiny_data, CONFIG, narrowing=expected, checkpoint=tmp_path / "whole")
    killed = network()
    stops: dict[str, Callback] = {
        "while dense": StopAfter(0),
        "in the epoch after": StopAtStep(25),
        "at the end": StopAfter(3),
    }
    with pytest.raises(KilledError):
        train(
            killed,
            tiny_data,
            CONFIG,
            narrowing=AfterEpoch(killed, 2, fail=how == "at the moment of pruning"),
            checkpoint=tmp_path / "killed",
            callbacks=[stops[how]] if how in stops else [],
        )
    resumed = network()
    narrowing = AfterEpoch(resumed, 2)
    again = train(resumed, tiny_data, CONFIG, narrowing=narrowing, checkpoint=tmp_path / "killed")
    assert [(r.train_loss, r.val_accuracy) for r in again] == [(r.train_loss, r.val_accuracy) for r in history]
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())
    assert narrowing.facts() == expected.facts()
    assert narrowing.kept is not None
    assert expected.kept is not None
    assert all(np.array_equal(mask, narrowing.kept[name]) for name, mask in expected.kept.items())


def test_another_narrowing_cannot_continue_a_run(tiny_data: ImageData, tmp_path: Path) -> None:
    model = network()
    with pytest.raises(KilledError):
        train(
            model,
            tiny_data,
            CONFIG,
            narrowing=AfterEpoch(model, 1),
            checkpoint=tmp_path / "c",
            callbacks=[StopAfter(1)],
        )
    other = network()
    with pytest.raises(AutoSparseError, match=r"cannot resume from .*: narrowing.epoch was 1 and is now 2"):
        train(other, tiny_data, CONFIG, narrowing=AfterEpoch(other, 2), checkpoint=tmp_path / "c")
    assert widths(other) == widths(network())  # refused before anything was cut


def test_masks_and_a_narrowing_exclude_each_other(tiny_data: ImageData) -> None:
    model = network()
    with pytest.raises(ValueError, match="one of them"):
        train(model, tiny_data, CONFIG, masks=Masks.dense(model), narrowing=AfterEpoch(model, 1))
