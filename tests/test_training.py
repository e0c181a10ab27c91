"""Training: it learns, it is deterministic, and an interrupted run ends bit-equal to one that was not."""

from __future__ import annotations

import dataclasses
import json
import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import KilledError, StopAfter, StopAtStep
from torch import Tensor, nn

from autosparse.budget import select
from autosparse.criteria import score
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError, DivergedError, FileFormatError, UnknownNameError
from autosparse.files import load_tensors
from autosparse.layers import layers_of, prunable
from autosparse.masks import Masks
from autosparse.models import seeded_model
from autosparse.training import (
    SCHEDULES,
    Callback,
    EpochRecord,
    JsonlLog,
    TrainConfig,
    evaluate,
    load_state,
    resolve_precision,
    save_state,
    train,
)
from autosparse.training.checkpoint import load_checkpoint, save_checkpoint

Net = Callable[..., nn.Module]
CONFIG = TrainConfig(epochs=3, batch_size=128, lr=0.1, precision="fp32")


def network(seed: int = 0) -> nn.Module:
    return seeded_model("resnet20", seed=seed, num_classes=10, width=0.25)


def equal(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][k]) for k, value in states[0].items()
    )


def told(history: list[EpochRecord]) -> list[dict[str, Any]]:
    """The history without the clock."""
    return [{key: value for key, value in record.as_dict().items() if key != "seconds"} for record in history]


class Steps(Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_step(self, step: int, steps: int) -> None:
        self.seen.append((step, steps))


def masks_for(model: nn.Module) -> Masks:
    layers = layers_of(model)
    return select(score("magnitude", model), layers, sum(layer.size for layer in layers) // 5)


# Learning -----------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_validation_accuracy_rises(tiny_data: ImageData) -> None:
    model = network()
    before = evaluate(model, tiny_data.val)
    history = train(model, tiny_data, dataclasses.replace(CONFIG, epochs=6, batch_size=64))
    assert [record.epoch for record in history] == list(range(6))
    assert history[-1].train_loss < 0.6 * history[0].train_loss
    assert history[-1].train_accuracy > history[0].train_accuracy
    assert history[-1].val_accuracy == evaluate(model, tiny_data.val, precision="fp32")
    assert evaluate(model, tiny_data.val) > before + 0.3


def test_one_seed_gives_one_result_and_leaves_the_global_rng_alone(tiny_data: ImageData) -> None:
    first, again, other = network(), network(), network()
    config = dataclasses.replace(CONFIG, epochs=1)
    torch.manual_seed(0)
    rng = torch.get_rng_state()
    train(first, tiny_data, config)
    assert torch.equal(torch.get_rng_state(), rng)
    torch.manual_seed(1)
    train(again, tiny_data, config)
    train(other, tiny_data, dataclasses.replace(config, seed=1))
    assert equal(first, again)
    assert not equal(first, other)


def test_masked_weights_stay_at_zero(tiny_data: ImageData) -> None:
    model = network()
    masks = masks_for(model)
    start = {name: weight.detach().clone() for name, weight in prunable(model).items()}

    class Look(Callback):
        def on_step(self, step: int, steps: int) -> None:
            for name, weight in prunable(model).items():
                assert not weight[~masks[name]].any()

    train(model, tiny_data, dataclasses.replace(CONFIG, epochs=2), masks=masks, callbacks=[Look()])
    moved = sum(int((weight != start[name])[masks[name]].sum()) for name, weight in prunable(model).items())
    assert moved > 0.9 * masks.kept


def test_the_model_stays_a_plain_module_in_its_place(tiny_data: ImageData) -> None:
    model = network()
    parameters = list(model.parameters())
    train(model, tiny_data, dataclasses.replace(CONFIG, epochs=1))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert not any(key.startswith("module.") for key in model.state_dict())


def test_no_epochs_train_nothing(tiny_data: ImageData) -> None:
    model = network()
    assert train(model, tiny_data, dataclasses.replace(CONFIG, epochs=0)) == []
    assert equal(model, network())


def test_validation_can_be_left_out(tiny_data: ImageData) -> None:
    history = train(network(), tiny_data, dataclasses.replace(CONFIG, epochs=1), validate=False)
    assert history[0].val_accuracy is None


def test_fewer_images_than_a_batch_are_refused(tiny_data: ImageData) -> None:
    with pytest.raises(AutoSparseError, match="digits has 1295 training images, less than one batch of 2000"):
        train(network(), tiny_data, dataclasses.replace(CONFIG, batch_size=2000))


# Interruption -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stop", [StopAfter(0), StopAfter(1), StopAtStep(14)])
def test_a_resumed_run_ends_bit_equal(tmp_path: Path, tiny_data: ImageData, masked: bool, stop: Callback) -> None:
    masks = masks_for(network()) if masked else None
    whole, first, second = network(), network(), network(seed=9)
    expected = train(whole, tiny_data, CONFIG, masks=masks)
    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(KilledError):
        train(first, tiny_data, CONFIG, masks=masks, checkpoint=checkpoint, callbacks=[stop])
    assert not equal(first, whole)
    # Another process: other initial weights, another place in the global RNG.
    torch.manual_seed(5)
    history = train(second, tiny_data, CONFIG, masks=masks, checkpoint=checkpoint)
    assert equal(second, whole)
    assert told(history) == told(expected)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, tiny_data: ImageData) -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    first, again, steps = network(), network(seed=9), Steps()
    expected = train(first, tiny_data, config, checkpoint=tmp_path / "c")
    found = train(again, tiny_data, config, checkpoint=tmp_path / "c", callbacks=[steps])
    assert steps.seen == []
    assert equal(first, again)
    assert found == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.05}, r"lr was 0\.1 and is now 0\.05"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"epochs": 4}, "epochs was 3 and is now 4"),
        ({"schedule": "cosine"}, "schedule was 'one-cycle' and is now 'cosine'"),
        ({"precision": "bf16"}, "precision was 'fp32' and is now 'bf16'"),
    ],
)
def test_resuming_with_other_settings_names_the_difference(
    tmp_path: Path, tiny_data: ImageData, change: dict[str, Any], message: str
) -> None:
    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(KilledError):
        train(network(), tiny_data, CONFIG, checkpoint=checkpoint, callbacks=[StopAfter(0)])
    with pytest.raises(AutoSparseError, match=f"cannot resume from .*c.safetensors: {message}"):
        train(network(), tiny_data, dataclasses.replace(CONFIG, **change), checkpoint=checkpoint)


def test_resuming_with_another_identity_or_window_names_the_difference(tmp_path: Path, tiny_data: ImageData) -> None:
    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(KilledError):
        train(network(), tiny_data, CONFIG, checkpoint=checkpoint, identity={"data": "a"}, callbacks=[StopAfter(0)])
    with pytest.raises(AutoSparseError, match="data was 'a' and is now 'b'"):
        train(network(), tiny_data, CONFIG, checkpoint=checkpoint, identity={"data": "b"})
    with pytest.raises(AutoSparseError, match="data was 'a' and is now None"):
        train(network(), tiny_data, CONFIG, checkpoint=checkpoint)
    with pytest.raises(AutoSparseError, match="stop_step was None and is now 12"):
        train(network(), tiny_data, CONFIG, checkpoint=checkpoint, identity={"data": "a"}, stop_step=12)


# A window of the schedule -------------------------------------------------------------------------------------------


def test_only_the_steps_of_the_window_are_trained(tiny_data: ImageData) -> None:
    # 1295 images make 10 steps an epoch: 30 in all.
    steps = Steps()
    history = train(network(), tiny_data, CONFIG, start_step=8, stop_step=23, callbacks=[steps])
    assert steps.seen == [(step, 23) for step in range(9, 24)]
    assert [record.epoch for record in history] == [0, 1, 2]
    assert [record.lr for record in history] == [CONFIG.learning_rate(step, 30) for step in (9, 19, 22)]


def test_training_up_to_a_step_is_the_beginning_of_the_whole(tiny_data: ImageData) -> None:
    part, whole = network(), network()
    train(part, tiny_data, CONFIG, stop_step=14)
    with pytest.raises(KilledError):
        train(whole, tiny_data, CONFIG, callbacks=[StopAtStep(14)])
    assert equal(part, whole)


def test_training_from_a_step_sees_the_rest_of_the_same_data(tiny_data: ImageData) -> None:
    """Without momentum the state is the weights alone, so two parts must add up to the whole."""
    config = dataclasses.replace(CONFIG, momentum=0.0, epochs=2)
    parts, whole = network(), network()
    train(parts, tiny_data, config, stop_step=14)
    train(parts, tiny_data, config, start_step=14)
    train(whole, tiny_data, config)
    assert equal(parts, whole)


def test_a_resumed_window_that_begins_late_ends_bit_equal(tmp_path: Path, tiny_data: ImageData) -> None:
    whole, first, second = network(), network(), network()
    expected = train(whole, tiny_data, CONFIG, start_step=12)
    with pytest.raises(KilledError):
        train(first, tiny_data, CONFIG, start_step=12, checkpoint=tmp_path / "c", callbacks=[StopAfter(1)])
    history = train(second, tiny_data, CONFIG, start_step=12, checkpoint=tmp_path / "c")
    assert [record.epoch for record in history] == [1, 2]
    assert told(history) == told(expected)
    assert equal(second, whole)


# A loss that is not finite ------------------------------------------------------------------------------------------


def test_divergence_names_epoch_and_advice(tiny_data: ImageData) -> None:
    model = network()

    class Poison(Callback):
        def on_epoch(self, history: list[EpochRecord]) -> None:
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)

    with pytest.raises(DivergedError, match=r"the loss became nan in epoch 2 of 3, by step \d+: try a smaller --lr"):
        train(model, tiny_data, CONFIG, callbacks=[Poison()])


def test_a_diverged_epoch_is_not_checkpointed(tmp_path: Path, tiny_data: ImageData) -> None:
    with pytest.raises(DivergedError, match="epoch 1 of 3"):
        train(network(), tiny_data, dataclasses.replace(CONFIG, lr=1e30), checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists()


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "epochs is -1: give 0 or more"),
        ({"batch_size": 1}, "batch-size is 1: give 2 or more"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": math.inf}, "lr is inf"),
        ({"lr": math.nan}, "lr is nan"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"weight_decay": -1e-4}, "weight-decay is -0.0001"),
        ({"weight_decay": math.nan}, "weight-decay is nan"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean cosine"),
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoSparseError, match=message):
        TrainConfig(**settings)


def test_schedules_by_hand() -> None:
    one_cycle, cosine, constant = (TrainConfig(lr=1.0, schedule=name) for name in ("one-cycle", "cosine", "constant"))
    assert SCHEDULES == ("one-cycle", "cosine", "constant")
    assert [constant.learning_rate(step, 100) for step in (0, 50, 99)] == [1, 1, 1]
    assert [cosine.learning_rate(step, 100) for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    assert cosine.learning_rate(25, 100) == pytest.approx(0.5 + math.sqrt(0.5) / 2)
    assert one_cycle.learning_rate(0, 100) == pytest.approx(0.04)
    assert one_cycle.learning_rate(15, 100) == pytest.approx(0.52)  # half way up from 0.04
    assert one_cycle.learning_rate(30, 100) == pytest.approx(1)
    assert one_cycle.learning_rate(65, 100) == pytest.approx(0.5)  # half way down
    assert one_cycle.learning_rate(100, 100) == pytest.approx(0, abs=1e-12)
    assert one_cycle.learning_rate(0, 1) == pytest.approx(0.04)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rates_are_positive_and_at_most_the_peak(schedule: str) -> None:
    config = TrainConfig(lr=0.3, schedule=schedule)
    for steps in (1, 2, 3, 10, 97):
        assert all(0 < config.learning_rate(step, steps) <= 0.3 for step in range(steps))


def test_a_precision_that_is_asked_for_is_taken() -> None:
    device = torch.device("cpu")
    assert [resolve_precision(name, device) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert resolve_precision("auto", device) in ("fp32", "bf16")
    assert resolve_precision("auto", torch.device("meta")) == "fp32"


# Evaluation, files and logs -----------------------------------------------------------------------------------------


class Constant(nn.Module):
    """Answers ``answer`` whatever it sees, and refuses to be asked in training mode."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(nn.functional.one_hot(torch.tensor(answer), 10).float())
        self.part = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        assert not self.part.training
        assert not torch.is_grad_enabled()
        return self.logits.expand(len(x), -1)


def test_accuracy_by_hand_and_flags_restored(tiny_data: ImageData) -> None:
    labels = torch.cat([y for _, y in tiny_data.val.batches(50)])
    for answer in (0, 7):
        model = Constant(answer)
        model.train()
        model.part.eval()
        expected = float((labels == answer).double().mean())
        assert evaluate(model, tiny_data.val, batch_size=64) == pytest.approx(expected)
        assert (model.training, model.part.training) == (True, False)


def test_an_exception_restores_the_flags_too(tiny_data: ImageData) -> None:
    model = Constant(0)

    def fail(module: nn.Module, arguments: object) -> None:
        raise KilledError

    model.register_forward_pre_hook(fail)
    with pytest.raises(KilledError):
        evaluate(model, tiny_data.val)
    assert model.training
    assert model.part.training


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True), lambda p: torch.optim.AdamW(p)]
)
def test_checkpoints_round_trip(tmp_path: Path, conv_net: Net, make: Callable[..., torch.optim.Optimizer]) -> None:
    x, y = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.eval()(x), y).backward()
        optimizer.step()

    model, other = conv_net(0), conv_net(1)
    optimizer, fresh = make(model.parameters()), make(other.parameters())
    step(model, optimizer)
    save_checkpoint(tmp_path / "c", model, optimizer, {"epoch": 3})
    assert load_checkpoint(tmp_path / "c", other, fresh) == {"epoch": 3}
    assert equal(model, other)
    step(model, optimizer)
    step(other, fresh)
    assert equal(model, other)


def test_checkpoints_hold_no_pickle(tmp_path: Path, tiny_data: ImageData) -> None:
    path = tmp_path / "c.safetensors"
    train(network(), tiny_data, dataclasses.replace(CONFIG, epochs=1), checkpoint=path)
    content = path.read_bytes()
    assert content[8:9] == b"{"  # safetensors: the length of a JSON header, and the header
    json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    with pytest.raises(ValueError, match=r"."):
        list(pickletools.genops(content))
    tensors, metadata = load_tensors(path, "checkpoint")
    assert any(name.startswith("model.") for name in tensors)
    assert any(name.endswith("momentum_buffer") for name in tensors)
    assert metadata["identity"]["lr"] == 0.1
    assert len(metadata["history"]) == 1


def test_states_round_trip_and_misfits_are_named(tmp_path: Path) -> None:
    first, second = network(0), network(1)
    save_state(tmp_path / "s", first.state_dict(), {"note": "x"})
    assert load_state(tmp_path / "s", second) == {"note": "x"}
    assert equal(first, second)
    wide = seeded_model("resnet20", seed=0, num_classes=10, width=0.5)
    with pytest.raises(FileFormatError, match=r"does not fit .*: '.*' is \[.*\] in the model, \[.*\] in the file"):
        load_state(tmp_path / "s", wide)
    with pytest.raises(FileFormatError, match=r"is None in the model|None in the file"):
        load_state(tmp_path / "s", nn.Linear(2, 2))
    with pytest.raises(FileFormatError, match="no checkpoint file"):
        load_checkpoint(tmp_path / "s", first, torch.optim.SGD(first.parameters(), 0.1))


def test_the_log_has_one_line_an_epoch_also_after_resuming(tmp_path: Path, tiny_data: ImageData) -> None:
    log = tmp_path / "log" / "train.jsonl"
    history: list[EpochRecord] = []
    with pytest.raises(KilledError):
        train(network(), tiny_data, CONFIG, checkpoint=tmp_path / "c", callbacks=[JsonlLog(log), StopAfter(1)])
    log.write_text(log.read_text() + '{"epoch": 2, "lr"')  # killed in the middle of a line
    history = train(network(), tiny_data, CONFIG, checkpoint=tmp_path / "c", callbacks=[JsonlLog(log)])
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines == [record.as_dict() for record in history]
    assert [line["epoch"] for line in lines] == [0, 1, 2]


def test_unknown_schedules_are_unknown_names() -> None:
    with pytest.raises(UnknownNameError) as info:
        TrainConfig(schedule="one-cycl")
    assert info.value.near == ["one-cycle"]
