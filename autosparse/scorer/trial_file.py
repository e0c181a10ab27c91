"""Trials of a search on disk: JSON, a line each, appended as they are made."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autosparse.errors import AutoSparseError, FileFormatError
from autosparse.files import check_schema, exclusive, write_errors, write_text
from autosparse.provenance import provenance
from autosparse.scorer.search import SearchConfig, Trial

_KIND = "autosparse-trials"
_SCHEMA_VERSION = 1
_MAX_BYTES = 64 * 2**20
_ALWAYS_BEFORE = {"epochs": 1}  # what files of a task that had no such setting were made with


class TrialFile:
    """The trials of one search, in a file that grows.

    A process killed while it appends leaves a line without an end, which does not count.

    Raises:
        FileFormatError: something else is in the file. AutoSparseError: trials of another search are.
    """

    def __init__(self, path: Path, config: SearchConfig) -> None:
        self.path = Path(path)
        self._config = config
        self._header: dict[str, Any] = {}
        self._complete = 0  # bytes of whole lines
        self.trials: list[Trial] = []
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        if self.path.stat().st_size > _MAX_BYTES:
            raise FileFormatError(f"{self.path} is larger than {_MAX_BYTES >> 20} MiB: give a file of search-scorer")
        content = self.path.read_bytes()
        self._complete = content.rfind(b"\n") + 1
        for number, line in enumerate(content[: self._complete].splitlines(), 1):
            try:
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise TypeError("no JSON object")
                if number == 1:
                    self._check(found)
                else:
                    self.trials.append(_trial(found, self._config))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise FileFormatError(
                    f"{self.path}:{number}: no {'header' if number == 1 else 'trial'} of search-scorer ({error}): "
                    "restore or remove the file"
                ) from None

    def _check(self, header: dict[str, Any]) -> None:
        check_schema(self.path, _KIND, header.get("kind"), header.get("schema_version"), _SCHEMA_VERSION)
        before, now = header["search"], _facts(self._config)
        before["tasks"] = [{**_ALWAYS_BEFORE, **task} for task in before["tasks"]]
        known = {**now, "tasks": now["tasks"][: len(before["tasks"])]}
        if different := [key for key in known if before.get(key) != known[key]]:
            raise AutoSparseError(
                f"{self.path} holds the trials of another search, whose {' and '.join(different)} differ: give another "
                "file, or the settings that it was made with"
            )
        self._header = header

    @property
    def _tasks(self) -> int:
        """How many the header knows."""
        return len(self._header["search"]["tasks"]) if self._header else 0

    @contextmanager
    def growing(self, images: Sequence[Mapping[str, Any]]) -> Iterator[TrialFile]:
        """Hold the only right to append.

        Args:
            images: a description of each task's images.

        Raises:
            OutputExistsError: another process has that right. AutoSparseError: the trials were made on other images.
        """
        described = json.loads(json.dumps(list(images)))
        if self._header and self._header.get("images") != described[: self._tasks]:
            raise AutoSparseError(f"{self.path} holds trials on other images: give another file, or those images")
        with exclusive(self.path):
            if self._complete:
                with write_errors(self.path):
                    os.truncate(self.path, self._complete)
            if self._tasks < len(described):
                self._begin(described)
            yield self

    def _begin(self, images: list[Mapping[str, Any]]) -> None:
        """Write the header, before the trials that there are."""
        trials = self.path.read_text(encoding="utf-8").partition("\n")[2] if self._complete else ""
        header = {
            "kind": _KIND,
            "schema_version": _SCHEMA_VERSION,
            "search": _facts(self._config),
            "images": images,
            "provenance": self._header.get("provenance") or provenance(),  # of the first trials
        }
        write_text(self.path, json.dumps(header, allow_nan=False) + "\n" + trials)
        self._header = header

    def in_order(self) -> list[Trial]:
        """Those of the search's generations, by generation, candidate and task: they are written as they end."""
        made = sorted(self.trials, key=lambda trial: (trial.generation, trial.candidate, trial.task))
        return made[: self._config.trials]

    def append(self, trial: Trial) -> None:
        """Write a trial down; it is on disk when this returns."""
        with write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(trial), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.trials.append(trial)


def _facts(config: SearchConfig) -> dict[str, Any]:
    """What fixes the trials. More generations or tasks continue the same search; images go by their description."""
    facts = json.loads(json.dumps(asdict(config), allow_nan=False))
    del facts["generations"]
    for task in facts["tasks"]:
        del task["dataset"]
    return {**facts, "features": list(config.names)}


def _trial(found: dict[str, Any], config: SearchConfig) -> Trial:
    """A trial as it was written; ValueError for one that this search cannot have made."""
    weights: Sequence[float] = found["weights"]
    trial = Trial(
        int(found["generation"]), int(found["candidate"]), int(found["task"]), int(found["seed"]),
        tuple(float(weight) for weight in weights), float(found["loss"]),
    )  # fmt: skip
    whole = len(trial.weights) == len(config.names) and all(map(math.isfinite, (*trial.weights, trial.loss)))
    if not whole or not 0 <= trial.task < len(config.tasks):
        raise ValueError("its weights, its loss or its task are out of range")
    return trial
