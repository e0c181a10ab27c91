"""Peak memory of using and of training a network.

On the CPU that is resident memory, and a process that has lived for a while cannot tell: what its allocator has kept
of earlier work hides what a network needs. It is measured in a process of its own, which returns to the system whatever
is freed, so that what is resident is what is in use: the same figures in every run, to about 0.2 MB of what the system
counts late. On CUDA the allocator counts.
"""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from autosparse._torchvision import ensure_torchvision
from autosparse.cost import measured
from autosparse.errors import AutoSparseError
from autosparse.workload import Workload, too_large

_MAPPED = 2**16  # bytes of a block that glibc maps by itself, and so returns when it is freed
_STEPS = 2  # the second training step has the momentum of the first in memory


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak, weights and buffers included, images not; ``None``: not measurable here.

    Args:
        inference: for each batch size.
        training: of a step of SGD with momentum, at the largest batch size.
    """

    inference: dict[int, int | None]
    training: int | None


def footprint(
    model: nn.Module, image_shape: Sequence[int], batch_sizes: Sequence[int], device: torch.device, threads: int
) -> Footprint:
    """Measure ``model``, which may lie anywhere and is left as it was.

    ``None`` on other devices than CPU (Linux) and CUDA, and on the CPU for a network that cannot be pickled, such as
    one with a lambda inside.

    Raises:
        AutoSparseError: a batch does not fit into memory, or the network fails on it.
    """
    if device.type == "cuda":
        return _measure(model, image_shape, batch_sizes, device)
    nothing = Footprint(dict.fromkeys(batch_sizes), None)
    if device.type != "cpu":
        return nothing
    job = io.BytesIO()
    try:
        torch.save((model, tuple(image_shape), tuple(batch_sizes), threads), job)
    except (pickle.PicklingError, AttributeError, TypeError):
        return nothing
    found = _in_another_process(job.getvalue(), max(batch_sizes))
    return Footprint({int(batch): peak for batch, peak in found["inference"].items()}, found["training"])


def _in_another_process(job: bytes, largest: int) -> dict[str, Any]:
    paths = [os.path.abspath(path) for path in sys.path]  # the network's classes must be importable there too
    settings = {
        "PYTHONPATH": os.pathsep.join(paths),
        "MALLOC_MMAP_THRESHOLD_": str(_MAPPED),
        "MALLOC_TRIM_THRESHOLD_": str(_MAPPED),
    }
    command = [sys.executable, "-m", "autosparse.footprint"]
    command += ["torchvision"] if "torchvision" in sys.modules else []  # the network may be one of its own, or timm's
    done = subprocess.run(command, input=job, capture_output=True, env={**os.environ, **settings})
    if done.returncode < 0:  # stopped by a signal, as the system does when memory is short
        raise AutoSparseError(too_large(largest))
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = done.stderr.decode(errors="replace").splitlines()[-1:]
        raise AutoSparseError(f"peak memory could not be measured ({''.join(last)})") from None
    if "error" in found:
        raise AutoSparseError(found["error"])
    return found


def _main() -> None:
    """Measure the network that the parent process sends, and answer in JSON."""
    if "torchvision" in sys.argv:
        ensure_torchvision()
    job = io.BytesIO(sys.stdin.buffer.read())
    # No file but a pipe from our own parent, which sends a live network: nothing safer than a pickle can hold one.
    model, image_shape, batch_sizes, threads = torch.load(job, weights_only=False)
    del job
    torch.set_num_threads(threads)
    try:
        answer: dict[str, Any] = asdict(_measure(model, image_shape, batch_sizes, torch.device("cpu")))
    except AutoSparseError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


def _measure(
    model: nn.Module, image_shape: Sequence[int], batch_sizes: Sequence[int], device: torch.device
) -> Footprint:
    work, largest = Workload(model, image_shape, device), max(batch_sizes)

    def inference(batch: int) -> Callable[[], Callable[[], object]]:
        return lambda: work.inference(batch)

    def steps() -> Callable[[], object]:
        step = work.training(largest)
        return lambda: [step() for _ in range(_STEPS)]

    return Footprint(
        {batch: _peak(work, inference(batch), device) for batch in batch_sizes}, _peak(work, steps, device)
    )


def _peak(work: Workload, begin: Callable[[], Callable[[], object]], device: torch.device) -> int | None:
    """The weights, and what comes on top while what ``begin`` returns runs for the first time."""
    begin()()  # libraries are loaded, kernels chosen
    run = begin()
    gc.collect()
    with measured(device) as cost:
        run()
    return None if cost.peak_bytes is None else work.weights + cost.peak_bytes


if __name__ == "__main__":
    _main()
