"""One cell from its lock to its record."""

from __future__ import annotations

import errno
import gc
import importlib
import json
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autosparse.bench.cells import Cell
from autosparse.bench.choosing import choose_options
from autosparse.bench.store import DONE, FAILED, Store
from autosparse.errors import AutoSparseError, OutputExistsError

#: ``run(cell, *, data_dir, device, work, shared, test)`` -> the JSON-able result of a cell. OutputExistsError when it
#: has to be asked for later, because another process does something that the cell needs.
RunCell = Callable[..., dict[str, Any]]

BUSY, STOP = "busy", "stop"
OUT_OF_MEMORY, DIED = "OutOfMemory", "WorkerDied"

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@dataclass(frozen=True)
class Job:
    """What all cells of a benchmark have in common.

    Args:
        run: ``package.module:function`` of a :data:`RunCell`; a name, which can be sent to another process.
    """

    results: Path
    data_dir: Path
    run: str

    def function(self) -> RunCell:
        """The function; AutoSparseError if it is not there."""
        module, _, name = self.run.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise AutoSparseError(f"cannot run cells ({error}): is everything installed where they run?") from None


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt.

    Args:
        status: ``done``; ``failed``; ``busy``, another process has the cell or what it needs; or ``stop``, no cell
            can be run and recorded any more.
        message: the accuracy, or what was wrong.
        elsewhere: another process had recorded the cell before.
        broken: what went wrong may have left its mark on this process.
    """

    status: str
    message: str = ""
    elsewhere: bool = False
    broken: bool = False


def attempt(cell: Cell, job: Job, device: str) -> Outcome:
    """Run ``cell`` unless it is recorded or another process runs it, and record what came of it."""
    with ExitStack() as held:
        try:
            store = Store(job.results)
            try:
                held.enter_context(store.lock(cell))
            except OutputExistsError:
                return Outcome(BUSY)
            if (status := store.status(cell)) is not None:
                return Outcome(status, elsewhere=True)
            return _run(cell, job, device, store)
        except AutoSparseError as error:  # of the results folder or the installation, not of the cell
            return Outcome(STOP, str(error))
        finally:
            _release(device)


def _run(cell: Cell, job: Job, device: str, store: Store) -> Outcome:
    began = time.perf_counter()
    function = job.function()

    def run(cell: Cell, work: Path, test: bool = False) -> dict[str, Any]:
        work.mkdir(parents=True, exist_ok=True)
        return function(cell, data_dir=job.data_dir, device=device, work=work, shared=store.shared, test=test)

    try:
        if cell.choose:
            chosen = choose_options(cell, store.shared, run)
            result = {**run(cell.settled(chosen["options"]), store.work(cell), True), "chosen": chosen}
        else:
            result = run(cell, store.work(cell), True)
        json.dumps(result, allow_nan=False)
    except OutputExistsError:  # another process does what this cell needs
        return Outcome(BUSY)
    except Exception as error:  # whatever it is, the other cells go on
        if _no_room(error):
            return Outcome(STOP, str(error))
        found = describe(error)
        scarce = found["type"] == OUT_OF_MEMORY
        if not scarce:  # what failed by its own fault is not to go on from its damaged state
            store.discard_work(cell)
        store.write(cell, seconds=time.perf_counter() - began, error=found)
        return Outcome(FAILED, found["message"], broken=not (scarce or isinstance(error, AutoSparseError)))
    store.write(cell, seconds=time.perf_counter() - began, result=result)
    accuracy = result.get("test_accuracy")
    return Outcome(DONE, f"{accuracy:.1%}" if isinstance(accuracy, float) else "")


def _release(device: str) -> None:
    """Give the memory of the last cell back to the other processes that share the device."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _no_room(error: Exception) -> bool:
    """Whether nothing can be written any more."""
    return any(isinstance(e, OSError) and e.errno in _NO_ROOM for e in (error, error.__cause__))


def describe(error: Exception) -> dict[str, str]:
    """``type`` and ``message`` of an error for a cell's record; a ``traceback`` of one that is not the user's."""
    text = " ".join(str(error).split())
    out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )
    if out_of_memory:
        reason = f" ({text[:200]})" if text else ""
        message = f"out of memory{reason}: use fewer --jobs or a smaller batch_size, then --retry-failed"
        return {"type": OUT_OF_MEMORY, "message": message}
    found = {"type": type(error).__name__, "message": text or type(error).__name__}
    if not isinstance(error, AutoSparseError):
        found["traceback"] = "".join(traceback.format_exception(error))
    return found


def record_death(cell: Cell, store: Store, why: str) -> Outcome:
    """Record that the processes which ran ``cell`` died, unless another one has it now."""
    message = f"its process {why} twice, perhaps because memory ran out: use fewer --jobs, then --retry-failed"
    try:
        with store.lock(cell):
            if (status := store.status(cell)) is not None:
                return Outcome(status, elsewhere=True)
            store.write(cell, seconds=0.0, error={"type": DIED, "message": message})
    except OutputExistsError:
        return Outcome(BUSY)
    return Outcome(FAILED, message)
