"""What running something costs: seconds, peak memory, and images to learn from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Images:
    """How many images went forward through a network with gradients recorded; one that is shown twice counts twice.

    That is what learning from images costs on any machine: divided by the batch size, it is steps of training.
    """

    count: int = 0


@dataclass
class Cost:
    """What a piece of work took.

    Args:
        seconds: wall time.
        peak_bytes: at the peak above what was held before; ``None``: not measurable here.
        images: as :class:`Images` counts them; ``None``: not known.
    """

    seconds: float = 0.0
    peak_bytes: int | None = None
    images: int | None = 0

    def after(self, earlier: Cost) -> Cost:
        """The cost of both, one after the other."""
        known = self.images is not None and earlier.images is not None
        return Cost(
            self.seconds + earlier.seconds,
            max(self.peak_bytes or 0, earlier.peak_bytes or 0) or None,
            (self.images or 0) + (earlier.images or 0) if known else None,
        )


@contextmanager
def counted_images(told: Callable[[int], object] = lambda count: None) -> Iterator[Images]:
    """Count what any network is called with inside the block; parts of a network that it calls itself do not count.

    Args:
        told: is called with the number of images of every call.
    """
    images = Images()
    depth = 0

    def enter(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal depth
        depth += 1
        if depth == 1 and torch.is_grad_enabled() and arguments and isinstance(arguments[0], Tensor):
            images.count += len(arguments[0])
            told(len(arguments[0]))

    def leave(module: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
        nonlocal depth
        depth -= 1

    hooks = [
        module_hooks.register_module_forward_pre_hook(enter),
        module_hooks.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield images
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def measured(device: torch.device | str = "cpu") -> Iterator[Cost]:
    """A :class:`Cost` that is filled in when the block ends.

    Memory is that of the accelerator's allocator for a CUDA ``device``, and the process's resident memory on Linux
    otherwise; freed memory that the allocator had not returned before can hide a small peak.
    """
    cost = Cost()
    cuda = torch.device(device).type == "cuda"
    before = _reset_cuda(device) if cuda else _reset_resident()
    began = time.perf_counter()
    try:
        yield cost
    finally:
        if cuda:
            torch.cuda.synchronize(device)
        cost.seconds = time.perf_counter() - began
        after = torch.cuda.max_memory_allocated(device) if cuda else _status("VmHWM")
        if before is not None and after is not None:
            cost.peak_bytes = max(0, after - before)


def _reset_cuda(device: torch.device | str) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _reset_resident() -> int | None:
    """Set the peak back to what is resident now; ``None`` where the system does not allow that."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")]
    return found[0] if found else None


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """torch computes with ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
