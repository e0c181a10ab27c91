"""An engine that runs cells without networks: numbers come from the cell's hash, mishaps from its options.

Every execution leaves a file in the data folder, so that tests can count them.
"""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from autosparse.bench import Cell, Shared
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError, DivergedError, OutputExistsError

ERRORS = {
    "autosparse": AutoSparseError("the layers are too small"),
    "diverged": DivergedError("the loss became nan in epoch 1"),
    "memory": MemoryError(),
    "cuda": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "bug": KeyError("conv1"),
    "later": OutputExistsError("another process works on the rounds"),
    "full": OSError(28, "No space left on device"),
}


def run_cell(cell: Cell, *, data_dir: Path, device: str, work: Path, shared: Shared, test: bool) -> dict[str, Any]:
    """The result of ``cell``; its options are mishaps on demand.

    ``company``: waits until two processes have run such cells. ``steps``: so many steps of 50 ms, each kept in
    ``work``; with ``pause``, the last one waits for a file ``go-SEED`` in the data folder. ``fail``: a key of ERRORS,
    or ``nan`` for a result that JSON cannot hold. ``die``: the process kills itself so many times. ``shared``: needs
    work that all such cells share. ``quality``: the validation accuracy.
    """
    options = cell.options
    _trace(data_dir, "validated" if not test else "ran", cell)
    if "company" in options:
        _wait_for_company(data_dir)
    if "die" in options and _count(data_dir, "ran", cell) <= options["die"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if "shared" in options:
        shared.get({"work": "common"}, lambda folder: _trace(data_dir, "shared", cell))
    _steps(work / "steps.json", cell, data_dir)
    if options.get("fail") in ERRORS:
        raise ERRORS[options["fail"]]
    number = int(cell.hash[:8], 16) / 2**32
    return {
        "val_accuracy": options.get("quality", number),
        "test_accuracy": number if test else None,
        "layers": [{"name": "conv", "weights": 100, "kept": round(100 * cell.density)}],
        "numbers": [number**k for k in range(1, 4)],
        "prune_seconds": float("nan") if options.get("fail") == "nan" else 0.0,
        "threads": torch.get_num_threads(),
        "device": device,
    }


def check_cell(cell: Cell, data: ImageData) -> None:
    if cell.options.get("unfit") == cell.model:
        raise AutoSparseError(f"{cell.method} does not apply to {cell.model}: it needs batch norm")


def trainings_of(method: str, options: Mapping[str, Any], density: float, images: int) -> float:
    return 3.0 if method == "magnitude" else 1.0


def _steps(path: Path, cell: Cell, data_dir: Path) -> None:
    done, steps = json.loads(path.read_text()) if path.exists() else 0, cell.options.get("steps", 0)
    for step in range(done, steps):
        if "pause" in cell.options and step == steps - 1:
            _wait(lambda: (data_dir / f"go-{cell.seed}").exists())
        time.sleep(0.05)
        path.write_text(str(step + 1))
        _trace(data_dir, "step", cell)


def _wait_for_company(folder: Path) -> None:
    _wait(lambda: len({path.name.split("-")[2] for path in folder.glob("ran-*")}) > 1)


def _wait(moment: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not moment():
        if time.monotonic() > deadline:
            raise AutoSparseError("waited in vain")
        time.sleep(0.02)


def _trace(folder: Path, what: str, cell: Cell) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{what}-{cell.hash}-{os.getpid()}-{uuid.uuid4().hex}").touch()


def _count(folder: Path, what: str, cell: Cell) -> int:
    return len(list(folder.glob(f"{what}-{cell.hash}-*")))
