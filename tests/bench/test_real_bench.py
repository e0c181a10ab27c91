"""``autosparse bench`` with real cells: killed and resumed, and on a local ray instance, it gives the same numbers."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import finish, interrupt, start, stop_at

GRID = """
models: [{name: resnet20, args: {width: 0.25}}]
datasets: [{name: digits, image_size: 8}]
methods: [dense, snip, gmp, {name: ltr, args: {fraction: 0.3}}, magnitude-after-training]
densities: [0.1]
seeds: [1]
train: {epochs: 2}
score_images: 128
"""
CELLS = 5
_TIMES = {"seconds", "prune_seconds", "train_seconds", "prune_peak_bytes"}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in _TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def numbers(results: Path) -> dict[str, Any]:
    """What the cells measured, by their file names, but for times and memory."""
    cells = {path.name: json.loads(path.read_text()) for path in sorted((results / "cells").glob("*.json"))}
    assert all(cell["status"] == "done" for cell in cells.values())
    return {name: without_times({key: cell[key] for key in ("cell", "result")}) for name, cell in cells.items()}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "grid.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def uninterrupted(grid: Path) -> dict[str, Any]:
    """The results of a benchmark that nothing happened to."""
    done = finish(start("bench", grid, "--out", "whole", "--jobs", 2, "--device", "cpu", cwd=grid.parent))
    assert done.status == 0, done.err
    found = numbers(grid.parent / "whole")
    assert len(found) == CELLS
    return found


@pytest.mark.slow
def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(
    grid: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    command = ("bench", grid, "--out", "results", "--jobs", 2, "--device", "cpu")
    process = start(*command, cwd=tmp_path)
    stop_at(process, lambda: len(list((tmp_path / "results" / "cells").glob("*.json"))) >= 1)
    interrupt(process, signal.SIGKILL)
    assert len(list((tmp_path / "results" / "cells").glob("*.json"))) < CELLS
    done = finish(start(*command, cwd=tmp_path))
    assert done.status == 0, done.err
    assert f"{CELLS} done, 0 failed" in done.out
    assert numbers(tmp_path / "results") == uninterrupted


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install '.[ray]'")
def test_a_local_ray_instance_gives_the_same_numbers(grid: Path, uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    done = finish(
        start(
            "bench", grid, "--out", "results", "--ray", "local", "--device", "cpu",
            cwd=tmp_path, env={"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", **os.environ},
        )
    )  # fmt: skip
    assert done.status == 0, done.err
    assert numbers(tmp_path / "results") == uninterrupted


@pytest.mark.slow
def test_a_cell_is_what_its_command_gives(grid: Path, uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    for path in sorted((grid.parent / "whole" / "cells").glob("*.json")):
        cell = json.loads(path.read_text())
        if cell["cell"]["method"] not in ("gmp", "ltr"):
            continue
        words = cell["command"].split()
        out = tmp_path / path.stem
        words[words.index("--out") + 1] = str(out)
        done = finish(start(*words[1:], "--device", "cpu", cwd=tmp_path))
        assert done.status == 0, done.err
        summary = json.loads((out / "summary.json").read_text())
        assert summary["test_accuracy"] == cell["result"]["test_accuracy"]
        assert summary["history"][-1]["train_loss"] == cell["result"]["history"][-1]["train_loss"]
