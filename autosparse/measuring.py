"""What a network costs to keep, to use and to train, and how that compares with another one's.

Two networks are timed in turn, a repetition of one after a repetition of the other: what else happens on a shared
machine meets both alike, and the ratio of neighbouring repetitions says more than that of two separate runs.
"""

from __future__ import annotations

import math
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from autosparse.cost import torch_threads
from autosparse.errors import AutoSparseError
from autosparse.files import save_tensors
from autosparse.footprint import Footprint, footprint
from autosparse.seeding import global_stream
from autosparse.workload import Workload

_LEAST = 3  # repetitions, however long one takes
_LEAST_ALONE = 11  # where a single figure decides: on a busy machine, half of them may be off
_MOST = 2000
_WARM_UP = 0.1  # of the time for a figure
_BLOCK = 0.05  # seconds of a repetition, longer than the slices in which a busy machine lets a process run


@dataclass(frozen=True)
class Spread:
    """Repetitions: their median, their 10th and 90th percentile, and how many there were."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        low, median, high = np.quantile(np.asarray(values, dtype=np.float64), (0.1, 0.5, 0.9)).tolist()
        return cls(median, low, high, len(values))


@dataclass(frozen=True)
class NetworkCost:
    """What one network costs.

    Args:
        params: numbers in all parameters; ``nonzeros`` of them are not zero.
        flops: of one image; a multiplication and an addition are two.
        disk: bytes of ``model.safetensors``.
        latency: seconds of inference, by batch size.
        inference_peak: bytes of memory at the peak of inference, by batch size, weights included; ``None`` where that
            cannot be measured (see :func:`~autosparse.footprint.footprint`).
        step: seconds of one training step at the largest batch size: forward, backward, SGD with momentum.
        step_peak: bytes of memory at its peak.
    """

    params: int
    nonzeros: int
    flops: int
    disk: int
    latency: dict[int, Spread]
    inference_peak: dict[int, int | None]
    step: Spread
    step_peak: int | None


@dataclass(frozen=True)
class Speedup:
    """Time of the other network over that of this one, from neighbouring repetitions."""

    latency: dict[int, Spread]
    step: Spread


@dataclass(frozen=True)
class Measurement:
    """The costs of networks by name (one, or two of which the second is what the first is compared with).

    Args:
        speedup: ``None`` for one network.
        device, threads, processor: where it was measured.
    """

    costs: dict[str, NetworkCost]
    speedup: Speedup | None
    image_shape: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    device: str
    threads: int
    processor: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; batch sizes become strings."""
        return _with_text_keys(asdict(self))


def measure(
    networks: Mapping[str, nn.Module],
    image_shape: Sequence[int],
    *,
    batch_sizes: Sequence[int] = (1, 128),
    device: torch.device | str = "cpu",
    threads: int | None = None,
    seconds: float = 3.0,
    memory: bool = True,
    progress: Callable[[str], None] = lambda what: None,
) -> Measurement:
    """Measure one network, or two against each other; they are left as they were.

    Networks are used in eval mode and trained in their own precision, on random images. After a warm-up, repetitions
    alternate between the networks, and each of the two is as often the first. A repetition is the mean of as many calls
    as take 50 ms, one where it takes longer: on a busy machine both networks then wait for the same share of the time.

    Args:
        networks: by name; of two, the second is the one to compare with.
        image_shape: ``[C, H, W]``.
        batch_sizes: of inference; the training step takes the largest.
        threads: of the CPU; ``None`` for as many as torch uses now.
        seconds: repetitions of one figure go on for so long, all networks together; there are at least three of each.
        memory: measure peak memory too. On the CPU that takes a process of its own for every network.
        progress: told what is measured next.

    Raises:
        AutoSparseError: arguments out of range, a batch that does not fit into memory, or a network that fails on it.
    """
    batch_sizes, device = tuple(dict.fromkeys(batch_sizes)), torch.device(device)
    _check(networks, image_shape, batch_sizes, threads, seconds)
    threads = threads or torch.get_num_threads()
    largest, latency = max(batch_sizes), {}
    with torch_threads(threads), global_stream(0, "measure"):
        work = [Workload(model, image_shape, device) for model in networks.values()]
        flops = [workload.flops() for workload in work]
        for batch in batch_sizes:
            progress(f"latency, batch {batch}")
            latency[batch] = _in_turn([workload.inference(batch) for workload in work], seconds, device)
        progress(f"training step, batch {largest}")
        steps = _in_turn([workload.training(largest) for workload in work], seconds, device)
    costs = {}
    for index, (name, model) in enumerate(networks.items()):
        peaks = Footprint(dict.fromkeys(batch_sizes), None)
        if memory:
            progress(f"memory, {name}")
            peaks = footprint(model, image_shape, batch_sizes, device, threads)
        costs[name] = NetworkCost(
            params=sum(parameter.numel() for parameter in model.parameters()),
            nonzeros=sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
            flops=flops[index],
            disk=_disk(model),
            latency={batch: Spread.of(times[index]) for batch, times in latency.items()},
            inference_peak=peaks.inference,
            step=Spread.of(steps[index]),
            step_peak=peaks.training,
        )
    speedup = None
    if len(networks) == 2:
        ratios = {batch: Spread.of(times[1] / times[0]) for batch, times in latency.items()}
        speedup = Speedup(ratios, Spread.of(steps[1] / steps[0]))
    return Measurement(costs, speedup, tuple(image_shape), batch_sizes, str(device), threads, _processor(device))


def latency_share(
    small: nn.Module,
    dense: nn.Module,
    image_shape: Sequence[int],
    *,
    batch: int,
    device: torch.device | str = "cpu",
    seconds: float = 3.0,
) -> Spread:
    """The latency of ``small`` over that of ``dense``, from neighbouring repetitions; see :func:`measure`."""
    device = torch.device(device)
    _check({"small": small, "dense": dense}, image_shape, (batch,), None, seconds)
    with global_stream(0, "measure"):
        runs = [Workload(model, image_shape, device).inference(batch) for model in (small, dense)]
        times = _in_turn(runs, seconds, device, _LEAST_ALONE)
    return Spread.of(times[0] / times[1])


def _check(
    networks: Mapping[str, nn.Module],
    image_shape: Sequence[int],
    batch_sizes: Sequence[int],
    threads: int | None,
    seconds: float,
) -> None:
    if not 1 <= len(networks) <= 2:
        raise AutoSparseError(f"{len(networks)} networks cannot be measured: give one, or two to compare")
    if not batch_sizes or min(batch_sizes) < 1:
        raise AutoSparseError(f"batch sizes are {list(batch_sizes)}: give one or more, each at least 1")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise AutoSparseError(f"the image shape is {list(image_shape)}: give channels, height and width")
    if threads is not None and threads < 1:
        raise AutoSparseError(f"threads is {threads}: give 1 or more")
    if not 0 <= seconds < float("inf"):
        raise AutoSparseError(f"seconds is {seconds}: give 0 or more")


def _in_turn(
    runs: Sequence[Callable[[], None]], seconds: float, device: torch.device, least: int = _LEAST
) -> np.ndarray:
    """The time of every repetition of every run: ``[runs, repetitions]`` seconds a call."""
    fastest = np.full(len(runs), np.inf)
    began = time.perf_counter()
    while True:  # warm-up: at least once each
        fastest = np.minimum(fastest, [_seconds(run, 1, device) for run in runs])
        if time.perf_counter() - began >= _WARM_UP * seconds:
            break
    block = min(_BLOCK, seconds / (2 * least * len(runs)))
    calls = [max(1, math.ceil(block / each)) for each in fastest]
    both = list(zip(runs, calls, strict=True))
    times: list[list[float]] = []
    began = time.perf_counter()
    while len(times) < least or (len(times) < _MOST and time.perf_counter() - began < seconds):
        forwards = len(times) % 2 == 0
        found = [_seconds(run, count, device) for run, count in (both if forwards else both[::-1])]
        times.append(found if forwards else found[::-1])
    return np.array(times).T


def _seconds(run: Callable[[], None], calls: int, device: torch.device) -> float:
    """Of one call, on average over ``calls``; each has ended when the next begins."""
    began = time.perf_counter()
    for _ in range(calls):
        run()
        _synchronise(device)
    return (time.perf_counter() - began) / calls


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _disk(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_tensors(path, "state", model.state_dict(), {})
        return path.stat().st_size


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_text_keys(entry) for key, entry in value.items()}
    return value
