"""``autosparse bench`` from its grid to its files, through kills, Ctrl-C and company."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Result, call, error_of, finish, interrupt, snapshot, stop_at

from autosparse.bench.attempt import Job, attempt
from autosparse.bench.cells import Cell, cells_of
from autosparse.bench.grid import read_grid
from autosparse.bench.store import Store
from autosparse.cli import bench
from autosparse.errors import OutputExistsError
from autosparse.recipes import list_methods

Capture = pytest.CaptureFixture[str]
Bench = Callable[..., Result]

GRID = """\
models: [resnet20]
datasets: [{name: digits, image_size: 8}]
methods:
  - dense
  - {name: magnitude, args: {steps: 4}}
  - {name: random, args: {shared: true, steps: 4}}
densities: [0.1, 0.02]
seeds: [1, 2]
train: {epochs: 1, batch_size: 32}
reference: dense
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture
def run(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The command in this process, with fake cells that leave their traces in ``traces``."""
    monkeypatch.setattr(bench, "ENGINE", "fake_cells")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        return call(capsys, "bench", "grid.yaml", "--out", "out", "--device", "cpu", "--data-dir", "traces", *arguments)

    return run


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """The same as a process of its own."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs hand on that it is ignored

    script = Path(__file__).with_name("fake_command.py")
    words = ["bench", "grid.yaml", "--out", "out", "--device", "cpu", "--data-dir", "traces", *arguments]
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, words)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def cells_in(folder: Path) -> list[Cell]:
    return cells_of(read_grid(folder / "grid.yaml", ["dense", *list_methods()])[0])


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """The files of cells by hash, without times and provenance."""
    found = {}
    for path in (folder / "out" / "cells").glob("*.json"):
        content = json.loads(path.read_text())
        del content["seconds"], content["provenance"]
        found[path.stem] = content
    return found


def traces(folder: Path, what: str = "ran") -> Counter[str]:
    """How often each cell left a trace of this kind."""
    return Counter(path.name.split("-")[1] for path in (folder / "traces").glob(f"{what}-*"))


# A whole grid ------------------------------------------------------------------------------------------------------


def test_a_grid_is_run_once_and_may_grow(grid: Path, run: Bench, tmp_path: Path) -> None:
    result = run()
    assert (result.status, result.err) == (0, "")
    assert result.out == "10 cells: 10 done, 0 failed; results in out; next: autosparse show out\n"
    cells = cells_in(tmp_path)
    assert {cell.hash: cell.label for cell in cells} == {key: r["label"] for key, r in records(tmp_path).items()}
    assert traces(tmp_path) == Counter(cell.hash for cell in cells)
    assert traces(tmp_path, "shared").total() == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cells", "grid.json", "shared", "work"]
    assert list((tmp_path / "out" / "work").iterdir()) == []

    before = snapshot(tmp_path / "out" / "cells")
    result = run()
    assert (result.status, snapshot(tmp_path / "out" / "cells")) == (0, before)
    assert "10 done, 0 failed, 10 of them skipped as recorded before;" in result.out

    grid.write_text(GRID.replace("[1, 2]", "[2, 3]").replace("- dense", "- {name: dense, label: whole}").replace(
        "reference: dense", ""))  # fmt: skip
    result = run()
    assert (result.status, result.err) == (0, "")
    assert "10 done, 0 failed, 5 of them skipped" in result.out
    assert len(records(tmp_path)) == 15
    assert set(traces(tmp_path).values()) == {1}
    assert {r["cell"]["seed"] for r in records(tmp_path).values() if r["label"] == "whole"} == {2, 3}


def test_failures_are_told_kept_and_tried_again_when_asked(grid: Path, run: Bench, tmp_path: Path) -> None:
    grid.write_text(GRID.replace("{steps: 4}", "{fail: diverged}").replace("[1, 2]", "[1]"))
    result = run()
    assert result.status == 1
    assert "5 cells: 3 done, 2 failed;" in result.out
    assert result.err.splitlines() == [
        f"autosparse: warning: failed: magnitude, fail=diverged on resnet20, digits, density {density}, seed 1: "
        "the loss became nan in epoch 1"
        for density in (0.1, 0.02)
    ]
    failed = Counter(key for key, record in records(tmp_path).items() if record["status"] == "failed")
    assert len(failed) == 2
    result = run()
    assert (result.status, result.err) == (1, "")
    assert "3 done, 2 failed (--retry-failed runs them again), 5 of them skipped" in result.out
    assert run("--retry-failed").status == 1
    assert traces(tmp_path) == Counter(records(tmp_path).keys()) + failed


# Kills, Ctrl-C, company --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_whatever_stops_it_the_results_are_the_same(grid: Path, run: Bench, tmp_path: Path) -> None:
    grid.write_text(GRID.replace("steps: 4", "steps: 4, pause: true"))
    cells = cells_in(tmp_path)

    def paused(seed: int) -> bool:
        """Whether the first cell of ``seed`` with steps has all but the last behind it."""
        cell = next(cell for cell in cells if cell.seed == seed and cell.options)
        return traces(tmp_path, "step")[cell.hash] == 3 and (tmp_path / "out" / "work" / cell.hash).exists()

    process = start(tmp_path)
    stop_at(process, lambda: paused(1))
    line = error_of(interrupt(process, signal.SIGINT), status=130)
    assert line.startswith("autosparse: error: interrupted; ")
    assert len(records(tmp_path)) == 2

    (tmp_path / "traces" / "go-1").touch()
    process = start(tmp_path)
    stop_at(process, lambda: paused(2))
    assert interrupt(process, signal.SIGKILL).status == -signal.SIGKILL
    wait_until_free(tmp_path, cells)  # the workers have noticed
    assert len(records(tmp_path)) == 6

    (tmp_path / "traces" / "go-2").touch()
    assert run().status == 0
    found = records(tmp_path)
    assert set(traces(tmp_path, "step").values()) == {4}  # none was repeated
    assert list((tmp_path / "out" / "work").iterdir()) == []
    shutil.rmtree(tmp_path / "out")
    Store(tmp_path / "out").begin(read_grid(grid, ["dense", *list_methods()])[0])
    for cell in cells:
        attempt(cell, Job(tmp_path / "out", tmp_path / "traces", "fake_cells:run_cell"), "cpu")
    assert found == records(tmp_path)


def wait_until_free(folder: Path, cells: list[Cell]) -> None:
    store = Store(folder / "out")
    for cell in cells:
        for _ in range(200):
            try:
                with store.lock(cell):
                    break
            except OutputExistsError:
                time.sleep(0.05)
        else:
            pytest.fail("workers outlive their parent")


@pytest.mark.slow
def test_two_at_once_share_the_cells(grid: Path, run: Bench, tmp_path: Path) -> None:
    grid.write_text(GRID.replace("steps: 4", "company: true"))
    cells = cells_in(tmp_path)
    process = start(tmp_path)
    mine, theirs = run(), finish(process)
    assert (mine.status, mine.err, theirs.status, theirs.err) == (0, "", 0, "")
    assert traces(tmp_path) == Counter(cell.hash for cell in cells)
    assert traces(tmp_path, "shared").total() == 1
    assert {record["status"] for record in records(tmp_path).values()} == {"done"}
    skipped = [re.search(r"10 done, 0 failed, (\d+) of them skipped", result.out) for result in (mine, theirs)]
    assert all(skipped)
    assert sum(int(match[1]) for match in skipped if match) == len(cells)


# Looking before running --------------------------------------------------------------------------------------------


def test_a_dry_run_tells_what_is_left_and_how_long_it_takes(
    grid: Path, run: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autosparse.cli.bench.console.width", 150, raising=False)
    result = run("--dry-run", "--jobs", 2)
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].split() == ["model", "dataset", "method", "densities", "seeds", "trainings", "time"]
    shown = [re.split(r"  +", line.strip()) for line in lines[1:4]]
    assert [row[2:6] for row in shown] == [
        ["dense", "1", "1, 2", "2"],
        ["magnitude, steps=4", "0.1, 0.02", "1, 2", "12"],
        ["random, shared=True, steps=4", "0.1, 0.02", "1, 2", "4"],
    ]
    assert re.match(r"10 of 10 cells left, 18 trainings: about \d+ s on \d threads?, \d+ s with 2 jobs;", lines[4])
    assert not (tmp_path / "out").exists()
    assert traces(tmp_path).total() == 0


def test_a_dry_run_leaves_out_what_is_finished_and_counts_candidates(
    grid: Path, run: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autosparse.cli.bench.console.width", 150, raising=False)
    store = Store(tmp_path / "out")
    store.begin(read_grid(grid, ["dense", *list_methods()])[0])
    for cell in cells_in(tmp_path)[:8]:
        store.write(cell, seconds=0.0, result={})
    before = snapshot(tmp_path / "out")
    chosen = "- {name: magnitude, choose: {quality: [1, 2, 3]}}\n  - dense"
    grid.write_text(GRID.replace("- dense", chosen))
    result = run("--dry-run")
    # Three candidates a density and three trainings each, beside the two seeds of the cells themselves.
    assert "6 of 14 cells left, 32 trainings" in result.out
    assert snapshot(tmp_path / "out") == before


# Mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "facts"),
    [
        ("magnitude", "magnitud", ["grid.yaml:5:", "unknown method 'magnitud'", "did you mean magnitude"]),
        ("{steps: 4}", "{unfit: resnet20}", ["grid.yaml:5:", "magnitude does not apply to resnet20: it"]),
        (
            "{steps: 4}}",
            "{}, choose: {unfit: [a, resnet20]}}",
            ["grid.yaml:5:", "magnitude does not apply to resnet20"],
        ),
        ("name: digits", 'name: "imagefolder:absent"', ["grid.yaml:2:", "imagefolder:absent", "absent"]),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    before: str, after: str, facts: list[str], grid: Path, run: Bench, tmp_path: Path
) -> None:
    grid.write_text(GRID.replace(before, after, 1))
    line = error_of(run())
    for fact in facts:
        assert fact in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (("--jobs", 2, "--ray", "auto"), "either --jobs or --ray"),
        (("--jobs", 0), "--jobs"),
        (("--device", "gpu"), "device 'gpu' is not usable here"),
        (("--ray", "local", "--device", "cuda:1"), "--device cuda:1 does not go with --ray"),
        (("--ray", "127.0.0.1:1"), "no ray cluster answers at '127.0.0.1:1'"),
    ],
)
def test_options_that_cannot_be(options: tuple[object, ...], fact: str, grid: Path, run: Bench, tmp_path: Path) -> None:
    if "--ray" in options:
        pytest.importorskip("ray")
    assert fact in error_of(run(*options))
    assert not (tmp_path / "out").exists()


def test_somebody_elses_folder_is_left_alone(grid: Path, run: Bench, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert "out is not of 'autosparse bench'" in error_of(run())
    assert list(snapshot(tmp_path / "out")) == ["thesis.txt"]
