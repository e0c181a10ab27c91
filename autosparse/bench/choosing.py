"""Options of a method, chosen by validation accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from autosparse.bench.cells import Cell
from autosparse.bench.shared import Shared
from autosparse.errors import AutoSparseError, OutputExistsError
from autosparse.files import read_json, write_json

_CANDIDATE = "candidate.json"


class Validate(Protocol):
    """Runs a cell without a look at test images; its results have a ``val_accuracy``."""

    def __call__(self, cell: Cell, work: Path) -> Mapping[str, Any]: ...


def choose_options(cell: Cell, shared: Shared, validate: Validate) -> dict[str, Any]:
    """Try every candidate of ``cell`` with its ``choose_seed``; the best on the validation images, the first on a tie.

    Each candidate is shared work: cells that differ in their seed alone use the same ones, and processes that need
    them at the same time share them out.

    Returns:
        ``options``, ``val_accuracy`` and ``seed`` of the choice, and ``candidates``: the same of all, with ``error``
        where a candidate could not be run.

    Raises:
        AutoSparseError: no candidate could be run. OutputExistsError: another process has something that they need.
    """
    seed = cell.seed if cell.choose_seed is None else cell.choose_seed
    trials = [replace(cell.settled(options), seed=seed) for options in cell.candidates()]

    def keyed(trial: Cell) -> dict[str, Any]:
        return {"work": "candidate", "cell": trial.facts}

    def make(folder: Path, trial: Cell) -> None:
        try:
            found = {"val_accuracy": validate(trial, folder / "work")["val_accuracy"], "error": None}
        except AutoSparseError as error:
            # Not the candidate's fault: something it needs is being made, or the disk is full.
            if isinstance(error, OutputExistsError) or isinstance(error.__cause__, OSError):
                raise
            found = {"val_accuracy": None, "error": str(error)}
        write_json(folder / _CANDIDATE, found)

    # First those that nobody works on; then those of the others, when they are done.
    done = [shared.get_unless_busy(keyed(trial), partial(make, trial=trial)) for trial in trials]
    candidates = []
    for options, trial, found in zip(cell.candidates(), trials, done, strict=True):
        folder = found or shared.get(keyed(trial), partial(make, trial=trial))
        candidates.append({"options": options, **read_json(folder / _CANDIDATE)})
    able = [candidate for candidate in candidates if candidate["val_accuracy"] is not None]
    if not able:
        raise AutoSparseError(f"no value of {', '.join(cell.choose)} works: {candidates[0]['error']}")
    best = max(able, key=lambda candidate: candidate["val_accuracy"])
    return {
        "options": best["options"],
        "val_accuracy": best["val_accuracy"],
        "seed": seed,
        "candidates": candidates,
    }
