"""The folder of results, and work that is shared below it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autosparse.bench import Cell, Grid, Shared, Store
from autosparse.errors import AutoSparseError, FileFormatError, OutputExistsError

CELL = Cell(model="resnet20", dataset="digits", method="snip", density=0.1, seed=1, label="SNIP")
GRID = Grid.model_validate(
    {"models": ["resnet20"], "datasets": ["digits"], "methods": ["snip"], "densities": [0.1], "seeds": [1]},
    context={"methods": ["snip"]},
)
# A forked child has torch imported already; a spawned one would take seconds.
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "results")
    store.begin(GRID)
    return store


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


# Cells -------------------------------------------------------------------------------------------------------------


def test_a_finished_cell_says_what_it_is_and_what_came_of_it(store: Store) -> None:
    assert store.status(CELL) is None
    store.work(CELL).mkdir(parents=True)
    store.write(CELL, seconds=2.5, result={"test_accuracy": 0.9})
    assert store.status(CELL) == "done"
    content = read(store.folder / "cells" / f"{CELL.hash}.json")
    assert content.pop("provenance")["versions"]
    assert content == {
        "kind": "autosparse-cell",
        "schema_version": 1,
        "hash": CELL.hash,
        "status": "done",
        "label": "SNIP",
        "cell": CELL.as_dict(),
        "result": {"test_accuracy": 0.9},
        "error": None,
        "command": CELL.command(f"runs/{CELL.hash}"),
        "seconds": 2.5,
    }
    assert Cell(**content["cell"]).hash == CELL.hash
    assert not store.work(CELL).exists()


def test_a_failed_cell_keeps_its_error_until_it_is_forgotten(store: Store) -> None:
    store.write(CELL, seconds=0.1, error={"type": "BudgetError", "message": "too few"})
    assert store.status(CELL) == "failed"
    assert read(store.path(CELL))["error"] == {"type": "BudgetError", "message": "too few"}
    assert read(store.path(CELL))["result"] is None
    store.forget_failure(CELL)
    assert store.status(CELL) is None
    store.write(CELL, seconds=0.1, result={})
    store.forget_failure(CELL)
    assert store.status(CELL) == "done"


def test_a_chosen_option_is_part_of_the_command(store: Store) -> None:
    cell = Cell(
        model="resnet20", dataset="digits", method="grasp", density=0.1, seed=1, choose={"t": [1, 200]}, choose_seed=1
    )
    store.write(cell, seconds=0.0, result={"chosen": {"options": {"t": 200}}})
    assert "--method-arg t=200" in read(store.path(cell))["command"]


def test_a_finished_cell_takes_the_newest_label(store: Store) -> None:
    store.write(CELL, seconds=0.0, result={"test_accuracy": 0.9})
    before = read(store.path(CELL))
    renamed = Cell(**{**CELL.as_dict(), "label": "connection sensitivity"})
    store.relabel(renamed)
    label = {"label": "connection sensitivity"}
    assert read(store.path(CELL)) == {**before, **label, "cell": {**before["cell"], **label}}


def test_one_process_at_a_time_has_a_cell(store: Store) -> None:
    with store.lock(CELL), pytest.raises(OutputExistsError), store.lock(CELL):
        pass
    with store.lock(CELL):
        pass


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("{", "remove it to run its cell again"),
        ("[]", "remove it to run its cell again"),
        ({"kind": "something"}, "is no autosparse-cell file"),
        ({"schema_version": 2}, "schema version 2, newer than 1"),
        ({"hash": "0" * 32}, "is damaged: remove it to run its cell again"),
        ({"status": "half done"}, "is damaged: remove it to run its cell again"),
    ],
    ids=["cut", "list", "kind", "newer", "hash", "status"],
)
def test_a_damaged_cell_is_named(content: str | dict[str, object], fact: str, store: Store) -> None:
    store.write(CELL, seconds=0.0, result={})
    path = store.path(CELL)
    path.write_text(content if isinstance(content, str) else json.dumps({**read(path), **content}))
    with pytest.raises(FileFormatError) as raised:
        store.status(CELL)
    assert str(path) in str(raised.value)
    assert fact in str(raised.value)


# The folder --------------------------------------------------------------------------------------------------------


def test_the_folder_notes_the_grid_it_was_last_asked_for(store: Store) -> None:
    Store(store.folder).begin(GRID.model_copy(update={"seeds": [1, 2]}))
    content = read(store.folder / "grid.json")
    assert (content["kind"], content["schema_version"], content["seeds"]) == ("autosparse-grid", 1, [1, 2])
    assert content["methods"][0]["label"] == "snip"


def test_a_look_at_a_folder_makes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    assert store.status(CELL) is None
    assert not store.folder.exists()


def somebodys(folder: Path) -> None:
    (folder / "thesis.txt").write_text("years of work")


def newer(folder: Path) -> None:
    (folder / "grid.json").write_text(json.dumps({"kind": "autosparse-grid", "schema_version": 2}))


def foreign(folder: Path) -> None:
    (folder / "grid.json").write_text("{}")


@pytest.mark.parametrize(
    ("fill", "fact"),
    [(somebodys, "not of 'autosparse bench'"), (newer, "version 2, newer than 1"), (foreign, "is no autosparse")],
)
def test_other_folders_are_refused(fill: Callable[[Path], None], fact: str, tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(FileFormatError, match=fact):
        Store(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AutoSparseError, match=r"cannot write .*file"):
        Store(tmp_path / "file")


def test_a_folder_that_was_only_begun_is_free(tmp_path: Path) -> None:
    (tmp_path / ".grid.json.123.tmp").touch()
    Store(tmp_path).begin(GRID)
    Store(tmp_path)


# Shared work -------------------------------------------------------------------------------------------------------


def test_shared_work_is_done_once_whatever_the_order_of_its_key(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("contents")

    shared = Shared(tmp_path / "shared")
    found = shared.get({"a": 1, "b": 2}, make)
    assert (found / "file").read_text() == "contents"
    assert shared.get({"b": 2, "a": 1}, make) == found
    assert len(made) == 1
    assert shared.get({"a": 1, "b": 3}, make) != found
    assert read(found / "key.json")["key"] == {"a": 1, "b": 2}


def test_work_that_fails_is_not_there_and_goes_on_where_it_was(tmp_path: Path) -> None:
    shared = Shared(tmp_path)
    places = []

    def make(folder: Path) -> None:
        places.append(folder)
        with (folder / "steps").open("a") as file:
            file.write("step ")
        if len(places) == 1:
            raise ValueError("not yet")

    with pytest.raises(ValueError, match="not yet"):
        shared.get({"a": 1}, make)
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".work", ".lock")] == []
    assert (shared.get({"a": 1}, make) / "steps").read_text() == "step step "
    assert places[0] == places[1]


def slow(folder: Path) -> None:
    begun = folder.parent / f"begun-{os.getpid()}"
    begun.touch()
    while not (folder.parent / "go on").exists():
        time.sleep(0.01)
    (folder / "by").write_text(str(os.getpid()))


def get_slowly(folder: Path) -> None:
    Shared(folder).get({"a": 1}, slow)


def begun(folder: Path) -> list[Path]:
    return list(folder.glob("begun-*"))


def wait_for(moment: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not moment():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_wait_for_the_one_that_does_the_work(tmp_path: Path) -> None:
    processes = [FORK.Process(target=get_slowly, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    wait_for(lambda: begun(tmp_path))
    assert Shared(tmp_path).get_unless_busy({"a": 1}, slow) is None
    (tmp_path / "go on").touch()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(begun(tmp_path)) == 1
    assert (Shared(tmp_path).get({"a": 1}, slow) / "by").read_text() in [str(process.pid) for process in processes]


def test_the_work_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    victim, heir = (FORK.Process(target=get_slowly, args=(tmp_path,)) for _ in range(2))
    victim.start()
    wait_for(lambda: begun(tmp_path))
    heir.start()
    os.kill(victim.pid or 0, signal.SIGKILL)
    wait_for(lambda: len(begun(tmp_path)) == 2)
    (tmp_path / "go on").touch()
    heir.join(60)
    victim.join(60)
    assert (heir.exitcode, victim.exitcode) == (0, -signal.SIGKILL)
    assert (Shared(tmp_path).get({"a": 1}, slow) / "by").read_text() == str(heir.pid)
