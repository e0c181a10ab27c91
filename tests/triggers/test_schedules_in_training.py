"""Schedules of masks in the training loop: what is held, and runs that are interrupted or shared by processes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from kills import KilledError, StopAfter, StopAtStep
from torch import Tensor, nn

from autosparse.budget import select
from autosparse.criteria import score
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError
from autosparse.files import load_tensors
from autosparse.layers import layers_of, prunable, total_weights
from autosparse.masks import Masks
from autosparse.training import Callback, TrainConfig, train
from autosparse.triggers.base import HeldMasks, MaskSchedule, Target
from autosparse.triggers.gradient_flow import GradientFlow
from autosparse.triggers.prune_regrow import GMP, GRANET, GRANET_SPARSE, RIGL, SET, PruneAndRegrow

Net = Callable[[int], nn.Module]
CONFIG = TrainConfig(epochs=3, batch_size=128, lr=0.1, precision="fp32")  # 10 steps an epoch
DENSITY = 0.1
magnitude = partial(score, "magnitude")
SETTINGS: dict[str, PruneAndRegrow | GradientFlow] = {
    "gmp": GMP,
    "granet": GRANET,
    "granet-sparse": GRANET_SPARSE,
    "rigl": RIGL,
    "set": SET,
    "earlycrop, settled": GradientFlow(every=0.5),
    "earlycrop, code": GradientFlow(variant="code", every=0.2, latest=0.8),
    "earlycrop, in the third epoch": GradientFlow(variant="code", latest=0.9),
}


def by_magnitude(model: nn.Module, density: float) -> Masks:
    layers = layers_of(model)
    return select(magnitude(model), layers, round(density * total_weights(layers)))


def schedule_of(name: str, model: nn.Module, density: float = DENSITY) -> MaskSchedule:
    settings = SETTINGS[name]
    target = Target(layers_of(model), density, steps=30, steps_per_epoch=10)
    if isinstance(settings, GradientFlow):
        return settings.schedule(target, prune_now=by_magnitude)
    return settings.schedule(target, scores=magnitude)


# Held masks ---------------------------------------------------------------------------------------------------------


def accumulated(optimizer: torch.optim.Optimizer, weight: Tensor) -> list[Tensor]:
    return [value for value in optimizer.state[weight].values() if value.shape == weight.shape]


@pytest.mark.parametrize(
    ("make", "buffers"),
    [(lambda p: torch.optim.SGD(p, 0.1, 0.9), 1), (lambda p: torch.optim.Adam(p, 0.1), 2)],
    ids=["sgd", "adam"],
)
def test_what_comes_back_starts_at_zero_without_momentum(
    make: Callable[..., torch.optim.Optimizer], buffers: int
) -> None:
    model = nn.Linear(2, 2, bias=False)
    nn.init.constant_(model.weight, 3.0)
    optimizer = make(model.parameters())
    held = HeldMasks(model, optimizer, None)
    held.hold(Masks({"weight": torch.tensor([[True, True], [False, False]])}))
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert model.weight.flatten()[2:].tolist() == [0, 0]
    assert all(buffer.all() for buffer in accumulated(optimizer, model.weight))  # removed weights gather momentum too
    before = [buffer.clone() for buffer in accumulated(optimizer, model.weight)]
    kept = model.weight[0, 0].item()
    held.hold(Masks({"weight": torch.tensor([[True, False], [True, False]])}))
    assert model.weight.flatten().tolist() == [kept, 0, 0, 0]
    assert len(before) == buffers
    for old, new in zip(before, accumulated(optimizer, model.weight), strict=True):
        assert new[1, 0] == 0
        assert new[0, 0] == old[0, 0]
    # The masks before are held no longer: what came back moves, what went stays.
    optimizer.step()
    assert model.weight[1, 0] != 0
    assert model.weight.flatten()[[1, 3]].tolist() == [0, 0]


def test_no_masks_hold_nothing_and_no_news_change_nothing() -> None:
    model = nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    held = HeldMasks(model, optimizer, None)
    held.hold(None)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert model.weight.all()
    held.hold(Masks({"weight": torch.tensor([[True, False], [True, True]])}))
    held.hold(None)
    optimizer.step()
    assert model.weight[0, 1] == 0


# The loop -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_training_ends_at_exactly_its_density(name: str, precision: str, tiny_data: ImageData, conv_net: Net) -> None:
    model = conv_net(0)
    schedule = schedule_of(name, model)
    changes: list[Masks | None] = [None]

    class Look(Callback):
        def on_step(self, step: int, steps: int) -> None:
            if schedule.masks is not changes[-1]:
                changes.append(schedule.masks)
            for key, weight in prunable(model).items():
                assert schedule.masks is None or not weight[~schedule.masks[key]].any()

    config = dataclasses.replace(CONFIG, precision=precision)
    train(model, tiny_data, config, schedule=schedule, callbacks=[Look()], validate=False)
    assert schedule.masks is not None
    assert schedule.masks.kept == round(DENSITY * schedule.masks.total)
    assert len(changes) > (1 if name.startswith("earlycrop") else 10)
    assert json.loads(json.dumps(schedule.facts())) == schedule.facts()


class Looks(MaskSchedule):
    """Keeps everything and looks at what it is shown."""

    def __init__(self, target: Target) -> None:
        super().__init__(GMP, target, {})
        self.seen: list[tuple[int, bool]] = []
        self._weights: list[Tensor] = []

    def start(self, model: nn.Module) -> None:
        self.seen.append((0, True))
        self._weights = [weight.detach().clone() for weight in model.parameters()]

    def after_step(self, model: nn.Module, step: int) -> None:
        weights = list(model.parameters())
        stepped = all(not torch.equal(old, new) for old, new in zip(self._weights, weights, strict=True))
        self.seen.append((step, stepped and all(weight.grad is not None for weight in weights)))
        self._weights = [weight.detach().clone() for weight in weights]


def test_a_schedule_is_asked_after_every_step_while_gradients_are_there(tiny_data: ImageData, conv_net: Net) -> None:
    model = conv_net(0)
    looks = Looks(Target(layers_of(model), DENSITY, steps=30, steps_per_epoch=10))
    train(model, tiny_data, CONFIG, schedule=looks, stop_step=14, validate=False)
    train(model, tiny_data, CONFIG, schedule=looks, start_step=14, validate=False)
    assert looks.seen == [(step, True) for step in [*range(15), 0, *range(15, 31)]]


def test_masks_and_a_schedule_exclude_each_other(tiny_data: ImageData, conv_net: Net) -> None:
    model = conv_net(0)
    with pytest.raises(ValueError, match="give masks, a schedule of masks or a narrowing"):
        train(model, tiny_data, CONFIG, masks=Masks.dense(model), schedule=schedule_of("gmp", model))


# Interruption -------------------------------------------------------------------------------------------------------


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


def told(schedule: MaskSchedule) -> tuple[dict[str, object], dict[str, list[float]]]:
    tensors = schedule.tensors()
    return schedule.facts(), {name: value.flatten().tolist() for name, value in tensors.items()}


@pytest.mark.parametrize("stop", [StopAfter(0), StopAfter(1), StopAtStep(14)], ids=["epoch 1", "epoch 2", "step 14"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_ends_bit_equal(
    name: str, stop: Callback, tmp_path: Path, tiny_data: ImageData, conv_net: Net
) -> None:
    whole, first, second = conv_net(0), conv_net(0), conv_net(9)
    expected, killed, resumed = (schedule_of(name, model) for model in (whole, first, second))
    train(whole, tiny_data, CONFIG, schedule=expected, validate=False)
    checkpoint = tmp_path / "c.safetensors"
    run = partial(train, data=tiny_data, config=CONFIG, checkpoint=checkpoint, validate=False)
    with pytest.raises(KilledError):
        run(first, schedule=killed, callbacks=[stop])
    assert not equal(first, whole)
    # Another process: other initial weights, another place in the global RNG.
    torch.manual_seed(5)
    run(second, schedule=resumed)
    assert equal(second, whole)
    assert told(resumed) == told(expected)
    # A finished run is read back, with its masks.
    again = schedule_of(name, first)
    run(first, schedule=again)
    assert told(again) == told(expected)


def test_earlycrop_is_interrupted_before_and_after_its_moment(tiny_data: ImageData, conv_net: Net) -> None:
    """The cases above cover a checkpoint that holds the reference weights and one that holds the masks."""
    moments = []
    for name in ("earlycrop, settled", "earlycrop, code", "earlycrop, in the third epoch"):
        model = conv_net(0)
        schedule = schedule_of(name, model)
        train(model, tiny_data, CONFIG, schedule=schedule, validate=False)
        moments.append(schedule.facts()["pruned_at_step"])
    assert moments[0] <= 10 < moments[2]
    assert moments[1] not in (10, 20)
    assert moments[2] == 27


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (("rigl", 0.1), ("rigl", 0.2), r"mask_schedule.density was 0.1 and is now 0.2"),
        (("granet", 0.1), ("granet-sparse", 0.1), r"mask_schedule.initial_density was 1.0 and is now 0.5"),
        (("gmp", 0.1), (None, 0.1), r"mask_schedule.density was 0.1 and is now None"),
        ((None, 0.1), ("gmp", 0.1), r"mask_schedule.density was None and is now 0.1"),
    ],
    ids=["density", "method", "without", "with"],
)
def test_resuming_with_another_schedule_names_the_difference(
    before: tuple[str | None, float],
    now: tuple[str | None, float],
    message: str,
    tmp_path: Path,
    tiny_data: ImageData,
    conv_net: Net,
) -> None:
    def run(name: str | None, density: float, *callbacks: Callback) -> None:
        model = conv_net(0)
        schedule = None if name is None else schedule_of(name, model, density)
        train(model, tiny_data, CONFIG, schedule=schedule, checkpoint=tmp_path / "c", callbacks=callbacks)

    with pytest.raises(KilledError):
        run(*before, StopAfter(0))
    with pytest.raises(AutoSparseError, match=message):
        run(*now)


# Several processes --------------------------------------------------------------------------------------------------

SHARED = """
import faulthandler
import os
import sys
from functools import partial

import torch

from autosparse.budget import select
from autosparse.criteria import score
from autosparse.data import load_data
from autosparse.layers import layers_of
from autosparse.models import seeded_model
from autosparse.training import TrainConfig, save_state, train
from autosparse.triggers.base import Target
from autosparse.triggers.gradient_flow import GradientFlow
from autosparse.triggers.prune_regrow import GRANET, SET

faulthandler.dump_traceback_later(200, exit=True)  # where each process hangs, should they ever
rank = int(os.environ["RANK"])
data = load_data("digits", image_size=8)


def of_this_process(model, density):  # a criterion that sees something else in each process
    draw = torch.Generator().manual_seed(rank)
    scores = {layer.name: torch.rand(layer.shape, generator=draw) for layer in layers_of(model)}
    return select(scores, layers_of(model), round(density * sum(layer.size for layer in layers_of(model))))


for name in ("granet", "set", "earlycrop"):
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    target = Target(layers_of(model), 0.1, steps=20, steps_per_epoch=10)
    if name == "earlycrop":
        schedule = GradientFlow(every=0.5).schedule(target, prune_now=of_this_process)
    else:
        settings = {"granet": GRANET, "set": SET}[name]
        schedule = settings.schedule(target, scores=partial(score, "magnitude"))
    config = TrainConfig(epochs=2, batch_size=128, precision="fp32")
    train(model, data, config, schedule=schedule, device="cpu", validate=False)
    schedule.masks.save(f"{sys.argv[1]}/{name}-{rank}.safetensors", {})
    weights = {key: value.detach() for key, value in model.named_parameters()}
    torch.distributed.barrier()
    save_state(f"{sys.argv[1]}/{name}-{rank}-weights.safetensors", weights, {})
torch.distributed.destroy_process_group()  # none may leave while the other still talks to it
"""


@pytest.mark.slow
def test_two_processes_take_the_same_decisions(tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text(SHARED)
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "shared.py", "."],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for name in ("granet", "set", "earlycrop"):
        masks = [Masks.load(tmp_path / f"{name}-{rank}.safetensors") for rank in (0, 1)]
        assert masks[0].kept == round(DENSITY * masks[0].total)
        assert all(torch.equal(mask, masks[1][key]) for key, mask in masks[0].items())
        weights = [load_tensors(tmp_path / f"{name}-{rank}-weights.safetensors", "state")[0] for rank in (0, 1)]
        assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
