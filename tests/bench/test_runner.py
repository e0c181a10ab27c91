"""Cells in processes: mishaps stay in their cell, a death of everything costs nothing, ray gives the same."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autosparse.bench.attempt import Job, Outcome, attempt
from autosparse.bench.cells import Cell
from autosparse.bench.choosing import choose_options
from autosparse.bench.grid import Grid
from autosparse.bench.ray_runner import require_cluster, run_on_ray
from autosparse.bench.runner import cores, run_local, threads_of
from autosparse.bench.schedule import Schedule
from autosparse.bench.shared import Shared
from autosparse.bench.store import Store
from autosparse.errors import AutoSparseError, DivergedError

GRID = Grid.model_validate(
    {"models": ["resnet20"], "datasets": ["digits"], "methods": ["snip"], "densities": [0.1], "seeds": [1]},
    context={"methods": ["snip"]},
)
PLAIN = Cell(model="resnet20", dataset="digits", method="snip", density=0.1, seed=1)


def cell(seed: int = 1, **options: Any) -> Cell:
    return replace(PLAIN, seed=seed, options=options)


def job_in(folder: Path) -> Job:
    return Job(folder / "results", folder / "traces", "fake_cells:run_cell")


def store_in(folder: Path) -> Store:
    store = Store(folder / "results")
    store.begin(GRID)
    return store


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The files of cells by hash, without what differs from run to run."""
    found = {}
    for path in (folder / "results" / "cells").glob("*.json"):
        content = json.loads(path.read_text())
        del content["seconds"], content["provenance"]
        found[path.stem] = content
    return found


def traces(folder: Path, what: str) -> Counter[str]:
    """How often each cell left a trace of this kind."""
    return Counter(path.name.split("-")[1] for path in (folder / "traces").glob(f"{what}-*"))


def number_of(cell: Cell) -> float:
    """The accuracy of a fake cell."""
    return int(cell.hash[:8], 16) / 2**32


class Reports(list[tuple[Cell, Outcome]]):
    def __call__(self, cell: Cell, outcome: Outcome) -> None:
        self.append((cell, outcome))


def run(cells: Sequence[Cell], folder: Path, **settings: Any) -> Reports:
    reports = Reports()
    schedule = Schedule(cells, store_in(folder), reports)
    run_local(schedule, job_in(folder), **{"jobs": 1, "devices": ["cpu"], **settings})
    return reports


# Local processes ---------------------------------------------------------------------------------------------------


def test_what_befalls_a_cell_stays_with_it(tmp_path: Path) -> None:
    deadly, buggy, diverging = cell(die=9), cell(fail="bug"), cell(fail="diverged")
    good = [cell(seed) for seed in range(3)]
    cells = [deadly, buggy, diverging, *good]
    reports = run(cells, tmp_path, jobs=2)
    assert sorted(cell.hash for cell, _ in reports) == sorted(cell.hash for cell in cells)
    found = records(tmp_path)
    for fine in good:
        assert found[fine.hash]["status"] == "done"
        assert found[fine.hash]["result"]["test_accuracy"] == number_of(fine)
    assert [found[cell.hash]["error"]["type"] for cell in (buggy, diverging)] == ["KeyError", "DivergedError"]
    error = found[deadly.hash]["error"]
    assert error["type"] == "WorkerDied"
    assert error["message"].startswith("its process was killed by SIGKILL twice, perhaps because memory ran out")
    assert traces(tmp_path, "ran") == Counter({cell.hash: 1 for cell in cells}) + Counter([deadly.hash])


def test_recorded_cells_are_not_run_again_and_devices_are_shared_out(tmp_path: Path) -> None:
    cells = [cell(seed, steps=8) for seed in range(4)]
    store_in(tmp_path)
    attempt(cells[0], job_in(tmp_path), "first")
    reports = run(cells, tmp_path, jobs=2, devices=["second", "third"])
    assert [outcome.elsewhere for cell, outcome in reports if cell.hash == cells[0].hash] == [True]
    assert set(traces(tmp_path, "ran").values()) == {1}
    devices = [records(tmp_path)[cell.hash]["result"]["device"] for cell in cells]
    assert devices[0] == "first"
    assert set(devices[1:]) == {"second", "third"}


def test_processes_share_the_cores_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [threads_of(jobs) for jobs in (1, 8)] == [3, 3]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads_of(1) == cores()
    assert threads_of(10_000) == 1


# One cell ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "message", "broken"),
    [
        ("autosparse", "AutoSparseError", "the layers are too small", False),
        ("diverged", "DivergedError", "the loss became nan in epoch 1", False),
        (
            "memory",
            "OutOfMemory",
            "out of memory: use fewer --jobs or a smaller batch_size, then --retry-failed",
            False,
        ),
        ("cuda", "OutOfMemory", "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB): use fewer", False),
        ("bug", "KeyError", "'conv1'", True),
        ("nan", "ValueError", "Out of range float values are not JSON compliant", True),
    ],
)
def test_an_error_is_recorded(name: str, kind: str, message: str, broken: bool, tmp_path: Path) -> None:
    store, failing = store_in(tmp_path), cell(fail=name, steps=1)
    outcome = attempt(failing, job_in(tmp_path), "cpu")
    assert (outcome.status, outcome.broken) == ("failed", broken)
    record = records(tmp_path)[failing.hash]
    assert (record["status"], record["result"], record["error"]["type"]) == ("failed", None, kind)
    assert record["error"]["message"].startswith(message)
    assert ("run_cell" in record["error"].get("traceback", "")) == (name == "bug")
    # With more memory it may go on; a state that made it fail would make it fail again.
    assert store.work(failing).exists() == (kind == "OutOfMemory")


def test_a_cell_of_another_process_is_left_to_it(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    with store.lock(PLAIN):
        assert attempt(PLAIN, job_in(tmp_path), "cpu").status == "busy"
    assert attempt(PLAIN, job_in(tmp_path), "cpu") == Outcome("done", f"{number_of(PLAIN):.1%}")
    assert attempt(PLAIN, job_in(tmp_path), "cpu") == Outcome("done", elsewhere=True)
    assert traces(tmp_path, "ran") == {PLAIN.hash: 1}


@pytest.mark.parametrize("choose", [{}, {"t": [1, 2]}])
def test_a_cell_that_needs_what_another_process_makes_is_tried_later(choose: dict[str, Any], tmp_path: Path) -> None:
    store_in(tmp_path)
    assert attempt(replace(cell(fail="later"), choose=choose), job_in(tmp_path), "cpu").status == "busy"
    assert records(tmp_path) == {}
    assert traces(tmp_path, "validated" if choose else "ran").total() == 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fake_cells:run_cell", "No space left on device"),
        ("fake_cells:no_such", "cannot run cells (module 'fake_cells' has no attribute 'no_such')"),
        ("no_such_module:run_cell", "cannot run cells (No module named 'no_such_module')"),
    ],
)
def test_what_would_befall_every_cell_stops_the_benchmark(function: str, message: str, tmp_path: Path) -> None:
    failing = cell(fail="full")
    schedule = Schedule([failing], store_in(tmp_path), Reports())
    assert schedule.next() is failing
    outcome = attempt(failing, replace(job_in(tmp_path), run=function), "cpu")
    assert outcome.status == "stop"
    with pytest.raises(AutoSparseError, match="then repeat the command: it goes on from here") as raised:
        schedule.settle(failing, outcome)
    assert message in str(raised.value)
    assert records(tmp_path) == {}


# The schedule ------------------------------------------------------------------------------------------------------


def test_a_cell_is_begun_once_more_after_a_death_and_then_recorded(tmp_path: Path) -> None:
    cells, reports = [cell(1), cell(2)], Reports()
    schedule = Schedule(cells, store_in(tmp_path), reports)
    first = schedule.next()
    assert first is cells[0]
    schedule.died(first, "was killed by SIGKILL")
    assert (reports, schedule.left) == ([], 2)
    assert schedule.next() is first
    schedule.died(first, "was killed by SIGKILL")
    assert [(cell, outcome.status) for cell, outcome in reports] == [(first, "failed")]
    second = schedule.next()
    assert second is cells[1]
    assert (schedule.next(), schedule.over) == (None, False)
    schedule.settle(second, Outcome("done"))
    assert schedule.over


def test_cells_of_others_are_asked_for_again_when_nothing_else_is_left(tmp_path: Path) -> None:
    cells, reports = [cell(1), cell(2)], Reports()
    schedule = Schedule(cells, store_in(tmp_path), reports)
    schedule.settle(schedule.next() or PLAIN, Outcome("busy"))
    assert schedule.next() is cells[1]
    schedule.settle(cells[1], Outcome("done"))
    assert (len(reports), schedule.over) == (1, False)
    assert schedule.next() is cells[0]
    schedule.settle(cells[0], Outcome("busy"))
    assert schedule.next() is None  # not without a pause
    assert not schedule.over


# Choosing ----------------------------------------------------------------------------------------------------------


class Validation:
    """Validation accuracies by the option ``t``; an exception is raised."""

    def __init__(self, accuracies: dict[int, float | Exception]) -> None:
        self.accuracies = accuracies
        self.asked: list[tuple[int, int]] = []

    def __call__(self, cell: Cell, work: Path) -> dict[str, Any]:
        assert not cell.choose
        self.asked.append((cell.options["t"], cell.seed))
        found = self.accuracies[cell.options["t"]]
        if isinstance(found, Exception):
            raise found
        return {"val_accuracy": found, "test_accuracy": None}


def choosing(seed: int, *values: int) -> Cell:
    return replace(cell(seed), choose={"t": list(values)}, choose_seed=7)


def test_the_best_candidate_is_chosen_once_for_all_seeds(tmp_path: Path) -> None:
    shared = Shared(tmp_path)
    validation = Validation({1: 0.5, 2: 0.75, 3: 0.75})
    chosen = choose_options(choosing(1, 1, 2, 3), shared, validation)
    assert chosen == {
        "options": {"t": 2},
        "val_accuracy": 0.75,
        "seed": 7,
        "candidates": [
            {"options": {"t": value}, "val_accuracy": accuracy, "error": None}
            for value, accuracy in ((1, 0.5), (2, 0.75), (3, 0.75))
        ],
    }
    assert choose_options(choosing(2, 1, 2, 3), shared, validation) == chosen
    assert validation.asked == [(1, 7), (2, 7), (3, 7)]
    assert choose_options(choosing(2, 3, 1), shared, validation)["options"] == {"t": 3}
    assert len(validation.asked) == 3


def test_candidates_that_cannot_be_run_are_not_chosen(tmp_path: Path) -> None:
    validation = Validation({1: DivergedError("nan in epoch 2"), 2: 0.1})
    chosen = choose_options(choosing(1, 1, 2), Shared(tmp_path), validation)
    assert chosen["options"] == {"t": 2}
    assert chosen["candidates"][0] == {"options": {"t": 1}, "val_accuracy": None, "error": "nan in epoch 2"}
    with pytest.raises(AutoSparseError, match="no value of t works: nan in epoch 2"):
        choose_options(choosing(1, 1), Shared(tmp_path), validation)


def test_a_bug_or_a_full_disk_is_not_the_candidates_fault(tmp_path: Path) -> None:
    full = AutoSparseError("no space left")
    full.__cause__ = OSError(28, "No space left on device")
    for error in (full, KeyError("bug"), MemoryError()):
        with pytest.raises(type(error)):
            choose_options(choosing(1, 1), Shared(tmp_path), Validation({1: error}))
    assert choose_options(choosing(1, 1), Shared(tmp_path), Validation({1: 0.5}))["options"] == {"t": 1}


def test_a_cell_with_a_choice_runs_with_the_chosen_option_and_candidates_see_no_test_image(tmp_path: Path) -> None:
    cells = [
        replace(PLAIN, seed=seed, choose={"quality": [0.25, 0.75]}, choose_seed=1, options={"shared": True})
        for seed in (1, 2)
    ]
    store_in(tmp_path)
    for cell in cells:
        attempt(cell, job_in(tmp_path), "cpu")
        result = records(tmp_path)[cell.hash]["result"]
        assert result["chosen"]["options"] == {"quality": 0.75}
        assert result["test_accuracy"] == number_of(cell.settled({"quality": 0.75}))
    candidates = [replace(cells[0].settled({"quality": quality}), seed=1).hash for quality in (0.25, 0.75)]
    assert traces(tmp_path, "validated") == Counter(candidates)
    assert traces(tmp_path, "ran") == Counter(cell.settled({"quality": 0.75}).hash for cell in cells)
    assert traces(tmp_path, "shared").total() == 1


# ray ---------------------------------------------------------------------------------------------------------------

NO_RAY = importlib.util.find_spec("ray") is None


@pytest.mark.slow
@pytest.mark.skipif(NO_RAY, reason="ray is not installed")
def test_ray_gives_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cells = [cell(), cell(2), cell(fail="diverged"), replace(cell(3), choose={"t": [1, 2]}, choose_seed=1)]
    store_in(tmp_path / "local")
    for each in cells:
        attempt(each, job_in(tmp_path / "local"), "cpu")
    deadly = cell(die=9)
    reports = Reports()
    schedule = Schedule([*cells, deadly], store_in(tmp_path / "ray"), reports)
    run_on_ray(schedule, job_in(tmp_path / "ray"), address="local", device="auto", threads=1)
    found = records(tmp_path / "ray")
    assert found.pop(deadly.hash)["error"]["type"] == "WorkerDied"
    assert traces(tmp_path / "ray", "ran")[deadly.hash] == 2
    assert found == records(tmp_path / "local")
    assert len(reports) == 5


@pytest.mark.skipif(NO_RAY, reason="ray is not installed")
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no ray cluster answers at '127.0.0.1:1' ([Errno 111] Connection refused): start one"),
        ("127.0.0.1:99999", "no ray cluster answers"),
        ("no.such.host.invalid:6379", "no ray cluster answers"),
        ("cluster", "--ray cluster is neither auto, local nor HOST:PORT"),
    ],
)
def test_a_cluster_that_does_not_answer_is_told(address: str, message: str) -> None:
    with pytest.raises(AutoSparseError, match=re.escape(message)):
        require_cluster(address)


def test_without_ray_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AutoSparseError, match=r"pip install 'autosparse\[ray\]', or use --jobs"):
        require_cluster("local")
