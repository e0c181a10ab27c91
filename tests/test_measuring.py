"""Figures of networks: counted ones by hand, timed ones by a clock that the networks themselves move."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commands import call, error_of
from torch import Tensor, nn

from autosparse import measuring
from autosparse.channels.coupling import couple
from autosparse.channels.store import save_shrunk
from autosparse.channels.surgery import shrink_
from autosparse.errors import AutoSparseError
from autosparse.footprint import Footprint, footprint
from autosparse.measuring import Spread, measure
from autosparse.models import seeded_model

Capture = pytest.CaptureFixture[str]
IMAGE = (3, 8, 8)
CPU = torch.device("cpu")


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def __deepcopy__(self, memo: Any) -> Clock:
        return self


class Diary:
    """Who was called, in order; copies of a network share it."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __deepcopy__(self, memo: Any) -> Diary:
        return self


class Slow(nn.Module):
    """A network that takes given seconds an image, the last of them for ever, and writes down that it was called."""

    def __init__(self, name: str, clock: Clock, diary: Diary, *seconds: float) -> None:
        super().__init__()
        self.head = nn.Linear(192, 10)
        self.name, self.clock, self.diary, self.seconds = name, clock, diary, seconds

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            called = self.diary.names.count(self.name)
            self.clock.now += self.seconds[min(called, len(self.seconds) - 1)] * len(x)
            self.diary.names.append(self.name)
        return self.head(x.flatten(1))


class Pair(nn.Module):
    """Two linear layers, 192 -> hidden -> 10."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, hidden), nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.flatten(1)).relu())


class Killed(nn.Module):
    """As the system does when memory is short, but only in the process that measures memory."""

    def __init__(self, parent: int) -> None:
        super().__init__()
        self.head, self.parent = nn.Linear(192, 10), parent

    def forward(self, x: Tensor) -> Tensor:
        if os.getppid() == self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.head(x.flatten(1))


class Exhausting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much")
        return self.head(x.flatten(1))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=made))
    return made


# Counted and timed -------------------------------------------------------------------------------------------------


def test_a_spread_is_median_and_outer_tenths() -> None:
    assert Spread.of(range(11)) == Spread(5.0, 1.0, 9.0, 11)
    assert Spread.of([2.5]) == Spread(2.5, 2.5, 2.5, 1)


def test_counts_by_hand(tmp_path: Path) -> None:
    conv, head = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Linear(256, 10)
    with torch.no_grad():
        conv.weight[0] = 0.0
        head.bias.fill_(1.0)
    model = nn.Sequential(conv, nn.Flatten(), head)
    cost = measure({"model": model}, IMAGE, batch_sizes=(2,), seconds=0, memory=False).costs["model"]
    assert cost.params == 3 * 4 * 9 + 2560 + 10
    assert cost.nonzeros == cost.params - 27
    assert cost.flops == 2 * 64 * 3 * 4 * 9 + 2 * 2560
    save_shrunk(tmp_path, model, model, network=None, image_shape=IMAGE, facts={})
    assert 0 <= (tmp_path / "model.safetensors").stat().st_size - cost.disk < 64  # the file also names the network
    assert cost.inference_peak == {2: None}
    assert cost.step_peak is None


def test_times_and_ratios_are_those_of_the_clock(clock: Clock) -> None:
    networks = {"small": Slow("s", clock, Diary(), 1.0), "dense": Slow("d", clock, Diary(), 3.0)}
    found = measure(networks, IMAGE, batch_sizes=(1, 4), seconds=100.0, memory=False)
    assert found.costs["small"].latency == {1: Spread(1.0, 1.0, 1.0, 25), 4: Spread(4.0, 4.0, 4.0, 7)}
    assert found.costs["dense"].latency == {1: Spread(3.0, 3.0, 3.0, 25), 4: Spread(12.0, 12.0, 12.0, 7)}
    assert found.costs["dense"].step == Spread(12.0, 12.0, 12.0, 7)
    assert found.speedup is not None
    assert found.speedup.latency == {1: Spread(3.0, 3.0, 3.0, 25), 4: Spread(3.0, 3.0, 3.0, 7)}
    assert found.speedup.step.median == 3.0


def test_networks_take_turns_and_each_begins_as_often(clock: Clock) -> None:
    diary = Diary()
    networks = {"small": Slow("s", clock, diary, 1.0), "dense": Slow("d", clock, diary, 1.0)}
    measure(networks, IMAGE, batch_sizes=(1,), seconds=0, memory=False)
    inference, step = diary.names[: len(diary.names) // 2], diary.names[len(diary.names) // 2 :]
    assert "".join(inference) == "".join(step) == "sd" + "sd" + "ds" + "sd"  # once to warm up, then three times


def test_a_machine_that_slows_down_meets_both_alike(clock: Clock) -> None:
    slowing = [float(1 + index) for index in range(100)]
    small = Slow("s", clock, Diary(), *slowing)
    dense = Slow("d", clock, Diary(), *(2 * seconds for seconds in slowing))
    found = measure({"small": small, "dense": dense}, IMAGE, batch_sizes=(1,), seconds=200.0, memory=False)
    assert found.costs["small"].latency[1].high > 1.5 * found.costs["small"].latency[1].low
    assert found.speedup is not None
    assert found.speedup.latency[1] == Spread(2.0, 2.0, 2.0, found.costs["small"].latency[1].count)


def test_short_calls_are_timed_many_at_once(clock: Clock) -> None:
    found = measure({"a": Slow("a", clock, Diary(), 2**-7)}, IMAGE, batch_sizes=(1,), seconds=1.0, memory=False)
    assert found.costs["a"].latency[1] == Spread(2**-7, 2**-7, 2**-7, 19)  # repetitions of seven calls, 55 ms
    assert found.speedup is None


def test_the_result_is_json(conv_net: Callable[[int], nn.Module]) -> None:
    networks = {"a": conv_net(0), "b": conv_net(1)}
    found = measure(networks, IMAGE, batch_sizes=(1, 2), threads=1, seconds=0, memory=False)
    text = json.loads(json.dumps(found.as_dict()))
    assert list(text["costs"]) == ["a", "b"]
    assert set(text["costs"]["a"]["latency"]) == {"1", "2"}
    assert text["speedup"]["latency"]["2"]["count"] == 3
    assert (text["image_shape"], text["batch_sizes"]) == ([3, 8, 8], [1, 2])
    assert (text["device"], text["threads"]) == ("cpu", 1)


def test_everything_is_left_as_it_was(conv_net: Callable[[int], nn.Module]) -> None:
    model = conv_net(0).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    threads = torch.get_num_threads()
    measure({"model": model}, IMAGE, batch_sizes=(2,), threads=threads + 1, seconds=0, memory=False)
    assert torch.get_num_threads() == threads
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_is_measured_of_each_and_progress_is_told(
    conv_net: Callable[[int], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fake(model: nn.Module, shape: Any, batches: Any, device: Any, threads: int) -> Footprint:
        asked.append((tuple(shape), tuple(batches), device, threads))
        return Footprint({1: 10, 2: 20}, 30)

    monkeypatch.setattr(measuring, "footprint", fake)
    told: list[str] = []
    found = measure(
        {"a": conv_net(0), "b": conv_net(1)}, IMAGE, batch_sizes=(1, 2), threads=1, seconds=0, progress=told.append
    )
    assert asked == [(IMAGE, (1, 2), CPU, 1)] * 2
    assert (found.costs["b"].inference_peak, found.costs["b"].step_peak) == ({1: 10, 2: 20}, 30)
    assert told == ["latency, batch 1", "latency, batch 2", "training step, batch 2", "memory, a", "memory, b"]


# Memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of resident memory are Linux's")
def test_peaks_by_hand() -> None:
    hidden, batch = 4096, 1024
    weights = 4 * (193 * hidden + 10 * hidden + 10)  # 3.3 MB
    layer = 4 * batch * hidden  # 16.8 MB: the hidden layer, and once more behind its ReLU
    found = footprint(Pair(hidden), IMAGE, (1, batch), CPU, threads=1)
    assert found.inference[1] == pytest.approx(weights, rel=0.1)
    assert found.inference[batch] == pytest.approx(weights + 2 * layer, rel=0.05)
    # Weights and momentum; the layer behind the ReLU and the gradients on both sides of that.
    assert found.training == pytest.approx(2 * weights + 3 * layer, rel=0.05)


def test_what_cannot_be_sent_to_another_process_is_not_measured() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    model.register_forward_hook(lambda *_: None)
    assert footprint(model, IMAGE, (1, 2), CPU, threads=1) == Footprint({1: None, 2: None}, None)


@pytest.mark.slow
def test_a_process_that_the_system_stops_ran_out_of_memory() -> None:
    with pytest.raises(AutoSparseError, match="64 images do not fit into memory: give smaller batch sizes"):
        footprint(Killed(os.getpid()), IMAGE, (1, 64), CPU, threads=1)


@pytest.mark.slow
def test_mistakes_are_told_across_processes() -> None:
    with pytest.raises(AutoSparseError, match=r"Pair fails on 2 images of \[1, 8, 8\] \(.*\): give"):
        footprint(Pair(4), (1, 8, 8), (2,), CPU, threads=1)


@pytest.mark.parametrize(
    ("networks", "options", "message"),
    [
        ({}, {}, "0 networks cannot be measured"),
        (dict.fromkeys("abc", Exhausting()), {}, "3 networks cannot be measured"),
        ({"a": Exhausting()}, {"batch_sizes": ()}, "batch sizes are"),
        ({"a": Exhausting()}, {"batch_sizes": (0,)}, "batch sizes are"),
        ({"a": Exhausting()}, {"threads": 0}, "threads is 0"),
        ({"a": Exhausting()}, {"seconds": -1.0}, "seconds is -1.0"),
        ({"a": Exhausting()}, {"seconds": float("nan")}, "seconds is nan"),
        ({"a": Exhausting()}, {"batch_sizes": (1, 8)}, "8 images do not fit into memory"),
        ({"a": nn.Linear(7, 10)}, {"batch_sizes": (1,)}, r"Linear fails on 1 images of \[3, 8, 8\]"),
    ],
)
def test_what_cannot_be_measured_is_refused(networks: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoSparseError, match=message) as caught:
        measure(networks, IMAGE, **{"seconds": 0.0, "memory": False, **options})
    assert "\n" not in str(caught.value)


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def shrunk_folder(tmp_path: Path) -> Path:
    dense = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    small = copy.deepcopy(dense)
    coupling = couple(dense, torch.zeros(1, *IMAGE))
    shrink_(small, coupling, {group.name: np.arange(group.width) % 2 == 0 for group in coupling})
    network = {"model": "resnet20", "model_args": {"width": 0.25}, "num_classes": 10, "in_channels": 3}
    save_shrunk(tmp_path / "shrunk", small, dense, network=network, image_shape=IMAGE, facts={})
    return tmp_path / "shrunk"


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks take a process of their own, and are tested above."""
    monkeypatch.setattr(
        measuring, "footprint", lambda model, shape, batches, *_: Footprint(dict.fromkeys(batches), None)
    )


QUICK = ("--batch-sizes", "1,2", "--seconds", 0, "--device", "cpu", "--threads", 1)


def test_a_shrunk_network_beside_its_dense_one(
    shrunk_folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "footprint", lambda *_: Footprint({1: 2_000_000, 2: 3_000_000}, None))
    result = call(capsys, "measure", shrunk_folder, *QUICK)
    assert (result.status, result.err) == (0, "")
    rows = [line.split() for line in result.out.splitlines()]
    params = next(row for row in rows if row[:1] == ["parameters"])
    small, dense = (int(cell.replace(",", "")) for cell in params[1:3])
    assert dense == sum(p.numel() for p in seeded_model("resnet20", seed=0, num_classes=10, width=0.25).parameters())
    assert params[3] == f"{dense / small:.2f}x"
    assert [row[2:] for row in rows if row[:2] == ["peak", "memory"]] == [
        ["2.00", "MB", "2.00", "MB", "1.00x"],
        ["3.00", "MB", "3.00", "MB", "1.00x"],
        ["–", "–", "–"],
    ]
    assert "1 thread; medians of 3 repetitions" in " ".join(result.out.split())


@pytest.mark.usefixtures("no_memory")
def test_what_to_compare_with(shrunk_folder: Path, pruned_folder: Path, capsys: Capture) -> None:
    for arguments, names in (
        ((), ["resnet20, shrunk", "resnet20"]),
        (("--alone",), ["resnet20, shrunk"]),
        (("--against", "vgg11"), ["resnet20, shrunk", "vgg11"]),
        (("--against", pruned_folder), ["resnet20, shrunk", "resnet20, pruned"]),
        (("--against", shrunk_folder), ["resnet20, shrunk", f"resnet20, shrunk ({shrunk_folder})"]),
    ):
        result = call(capsys, "measure", shrunk_folder, *arguments, *QUICK, "--json")
        assert result.status == 0, result.err
        found = json.loads(result.out)
        assert list(found["costs"]) == names
        assert (found["speedup"] is None) == (len(names) == 1)
        assert found["provenance"]["versions"]["torch"] == torch.__version__


@pytest.mark.usefixtures("no_memory")
def test_a_pruned_network_alone_at_another_size(pruned_folder: Path, capsys: Capture) -> None:
    result = call(capsys, "measure", pruned_folder, *QUICK, "--image-size", 16, "--json")
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert found["image_shape"] == [3, 16, 16]
    cost = found["costs"]["resnet20, pruned"]
    summary = json.loads((pruned_folder / "summary.json").read_text())
    other = cost["params"] - summary["total"]  # of norms and biases, some of which are zero
    assert summary["kept"] <= cost["nonzeros"] <= summary["kept"] + other


@pytest.mark.slow
def test_a_whole_measurement(shrunk_folder: Path, capsys: Capture) -> None:
    options = ("--batch-sizes", "1,64", "--image-size", 32, "--seconds", 0.3, "--device", "cpu", "--json")
    result = call(capsys, "measure", shrunk_folder, *options)
    assert result.status == 0, result.err
    small, dense = json.loads(result.out)["costs"].values()
    for figure in ("params", "nonzeros", "flops", "disk", "step_peak"):
        assert 0 < small[figure] < dense[figure]
    assert 0 < small["inference_peak"]["64"] < dense["inference_peak"]["64"] < dense["step_peak"]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("nowhere",), ["nowhere holds no manifest.json"]),
        (("shrunk", "--batch-sizes", "1;2"), ["--batch-sizes is '1;2'"]),
        (("shrunk", "--batch-sizes", "0"), ["--batch-sizes is '0'"]),
        (("shrunk", "--against", "vgg12"), ["unknown model 'vgg12'", "vgg11"]),
        (("shrunk", "--alone", "--against", "vgg11"), ["--alone", "--against"]),
        (("shrunk", "--seconds", "-1"), ["--seconds"]),
        (("shrunk", "--seconds", "nan"), ["--seconds"]),
        (("shrunk", "--threads", "0"), ["--threads"]),
        (("shrunk", "--image-size", "0"), ["--image-size"]),
        (("shrunk", "--device", "tpu"), ["device 'tpu' is not usable"]),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...],
    facts: list[str],
    shrunk_folder: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(shrunk_folder.parent)
    line = error_of(call(capsys, "measure", *arguments))
    assert all(fact in line for fact in facts), line
