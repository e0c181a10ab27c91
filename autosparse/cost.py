"""What running something costs: seconds and peak memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """Wall time in seconds, and bytes at the peak above what was held before (``None``: not measurable here)."""

    seconds: float = 0.0
    peak_bytes: int | None = None


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
