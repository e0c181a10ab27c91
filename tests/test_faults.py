"""Kills, Ctrl-C, a second process, a full disk: nothing is half written, and what can go on goes on bit-equal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import h5py
import pytest
from commands import TINY, Result, call, error_of, finish, interrupt, run, snapshot, start, stop_at

from autosparse.files import load_tensors, work_folder

Capture = pytest.CaptureFixture[str]

# A file is seen by a moment's test some milliseconds after it appears: every epoch must last longer than that.
GENERATE = (
    "generate", *TINY, "--rounds", 3, "--epochs", 2, "--batch-size", 32, "--score-images", 128, "--precision", "fp32",
)  # fmt: skip
TRAIN = ("train", "--device", "cpu", "--epochs", 4, "--batch-size", 32, "--precision", "fp32")


@contextmanager
def frozen(moment: Callable[[], bool], *arguments: object, cwd: Path) -> Iterator[Popen[str]]:
    """The command, stopped at a moment; killed at the latest when the block ends."""
    process = start(*arguments, cwd=cwd)
    try:
        stop_at(process, moment)
        yield process
    finally:
        process.kill()
        finish(process)


def kill(process: Popen[str]) -> None:
    assert interrupt(process, signal.SIGKILL).status == -signal.SIGKILL


# generate ----------------------------------------------------------------------------------------------------------


def contents(path: Path) -> dict[str, Any]:
    """Every dataset and attribute of an IRP file, but for the time that rounds took."""
    found: dict[str, Any] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        found[name] = dict(item.attrs)
        if isinstance(item, h5py.Dataset):
            values = item[()]
            if name.endswith("/rounds"):
                values["seconds"] = 0
            found[name]["data"] = (values.dtype, values.shape, values.tobytes())

    with h5py.File(path) as file:
        found[""] = dict(file.attrs)
        file.visititems(visit)
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    result = run(*GENERATE, "--out", "runs.h5", cwd=folder)
    assert (result.status, result.err) == (0, "")
    return contents(folder / "runs.h5")


def rounds_done(work: Path) -> int:
    progress = work / "progress.safetensors"
    return len(load_tensors(progress, "irp-progress")[1]["rounds"]) if progress.exists() else 0


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "before the first epoch ends": lambda work: (work / "setup.safetensors").exists(),
    "within the second round": lambda work: (work / "round-00001.safetensors").exists(),
    "after the second round": lambda work: rounds_done(work) == 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", list(MOMENTS))
def test_a_killed_generate_ends_bit_equal_when_resumed(
    moment: str, uninterrupted: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "runs.h5"
    with frozen(lambda: MOMENTS[moment](work_folder(out)), *GENERATE, "--out", out, cwd=tmp_path) as process:
        kill(process)
    assert not out.exists()
    done = rounds_done(work_folder(out))
    result = call(capsys, *GENERATE, "--out", out, "--resume")
    assert (result.status, result.err) == (0, "")
    assert [line.split()[1] for line in result.out.splitlines() if line.startswith("round")] == [
        f"{index + 1}/3" for index in range(done, 3)
    ]
    assert contents(out) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["runs.h5"]


@pytest.mark.slow
def test_an_interrupted_generate_says_how_to_continue(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "runs.h5"
    moment = MOMENTS["within the second round"]
    with frozen(lambda: moment(work_folder(out)), *GENERATE, "--out", out, cwd=tmp_path) as process:
        line = error_of(interrupt(process, signal.SIGINT), status=130)
    assert line == "autosparse: error: interrupted; repeat the command with --resume to continue"
    assert [path.name for path in tmp_path.iterdir()] == ["runs.h5.work"]
    result = run(*GENERATE, "--out", out, "--resume", cwd=tmp_path)
    assert (result.status, result.err) == (0, "")
    assert contents(out) == uninterrupted


@pytest.mark.slow
def test_two_processes_do_not_share_an_output(uninterrupted: dict[str, Any], tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "runs.h5"
    moment = MOMENTS["before the first epoch ends"]
    with frozen(lambda: moment(work_folder(out)), *GENERATE, "--out", out, cwd=tmp_path) as process:
        before = snapshot(tmp_path)
        for option in ((), ("--resume",), ("--force",)):
            line = error_of(call(capsys, *GENERATE, "--out", out, *option))
            assert f"another process is writing {out}" in line
        assert snapshot(tmp_path) == before
        kill(process)
    refused = error_of(call(capsys, *GENERATE, "--out", out))  # the lock has died with its holder
    assert "holds an unfinished run: continue it with --resume or discard it with --force" in refused
    changed = error_of(call(capsys, *GENERATE, "--out", out, "--resume", "--lr", 0.05))
    assert "config.train.lr was 0.2 and is now 0.05" in changed
    changed = error_of(call(capsys, *GENERATE, "--out", out, "--resume", "--split-seed", 3))
    assert "data." in changed
    assert call(capsys, *GENERATE, "--out", out, "--force").status == 0
    assert contents(out) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["runs.h5"]


@pytest.mark.slow
def test_a_kill_between_writing_and_cleaning_up_is_mended(
    uninterrupted: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    out, kept = tmp_path / "runs.h5", tmp_path / "kept"
    moment = MOMENTS["after the second round"]
    with frozen(lambda: moment(work_folder(out)), *GENERATE, "--out", out, cwd=tmp_path) as process:
        kill(process)
    shutil.copytree(work_folder(out), kept)
    assert call(capsys, *GENERATE, "--out", out, "--resume").status == 0
    shutil.move(kept, work_folder(out))  # as if the process had died before it removed the folder
    other = call(capsys, *GENERATE, "--seed", 1, "--out", out, "--resume")
    assert "exists" in error_of(other)  # another run: neither the file nor the work is touched
    assert (work_folder(out) / "setup.safetensors").exists()
    assert call(capsys, *GENERATE, "--out", out, "--resume").status == 0
    assert contents(out) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["runs.h5"]


# train -------------------------------------------------------------------------------------------------------------


def log_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{**json.loads(line), "seconds": None} for line in lines]


@pytest.fixture(scope="module")
def trained(pruned_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    result = run(*TRAIN, "--masks", pruned_folder, "--out", "out", cwd=folder)
    assert (result.status, result.err) == (0, "")
    return folder / "out"


def assert_same_training(out: Path, expected: Path) -> None:
    assert (out / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert (out / "curve.png").read_bytes() == (expected / "curve.png").read_bytes()
    assert log_of(out) == log_of(expected)
    assert len(log_of(out)) == 4
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (out, expected))
    for key in one.keys() - {"seconds", "history"}:
        assert one[key] == other[key], key


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_training_ends_bit_equal_when_resumed(
    number: signal.Signals, trained: Path, pruned_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    command = (*TRAIN, "--masks", pruned_folder, "--out", out)
    with frozen(lambda: len(log_of(work_folder(out))) == 2, *command, cwd=tmp_path) as process:
        assert "another process is writing" in error_of(call(capsys, *command, "--resume"))
        result = interrupt(process, number)
    if number is signal.SIGINT:
        line = error_of(result, status=130)
        assert line == "autosparse: error: interrupted; repeat the command with --resume to continue"
        assert [path.name for path in tmp_path.iterdir()] == ["out.work"]
    assert not out.exists()
    assert "continue it with --resume, or start anew with --force" in error_of(call(capsys, *command))
    assert "lr was 0.1 and is now 0.3" in error_of(call(capsys, *command, "--resume", "--lr", 0.3))
    assert "data." in error_of(call(capsys, *command, "--resume", "--split-seed", 1))
    resumed = call(capsys, *command, "--resume")
    assert (resumed.status, resumed.err) == (0, "")
    assert_same_training(out, trained)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_killed_overwriting_training_leaves_the_old_one_until_it_ends(
    trained: Path, pruned_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert call(capsys, *TRAIN, "--epochs", 1, "--masks", pruned_folder, "--out", out).status == 0
    old = snapshot(out)
    command = (*TRAIN, "--masks", pruned_folder, "--out", out, "--force")
    with frozen(lambda: len(log_of(work_folder(out))) == 1, *command, cwd=tmp_path) as process:
        kill(process)
    assert snapshot(out) == old
    assert call(capsys, *command, "--resume").status == 0
    assert_same_training(out, trained)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Commands that do not resume ---------------------------------------------------------------------------------------


def interrupted(out: Path, *arguments: object, cwd: Path) -> Result:
    lock = out.with_name(f".{out.name}.lock")

    def held() -> bool:  # for a moment already: a file that was made is not yet a lock that is held
        return lock.exists() and time.time() - lock.stat().st_mtime > 0.05

    with frozen(held, *arguments, "--out", out, cwd=cwd) as process:
        return interrupt(process, signal.SIGINT)


@pytest.mark.slow
def test_an_interrupted_prune_leaves_nothing(tmp_path: Path) -> None:
    arguments = ("prune", "--model", "resnet32", "--method", "snip", "--device", "cpu")
    line = error_of(interrupted(tmp_path / "out", *arguments, cwd=tmp_path), status=130)
    assert line == "autosparse: error: interrupted; nothing was written"
    assert snapshot(tmp_path) == {}


@pytest.mark.slow
def test_an_interrupted_train_scorer_leaves_nothing(irp_file: Path, tmp_path: Path) -> None:
    arguments = ("train-scorer", irp_file, "--epochs", 500)
    line = error_of(interrupted(tmp_path / "s.safetensors", *arguments, cwd=tmp_path), status=130)
    assert line == "autosparse: error: interrupted; nothing was written"
    assert snapshot(tmp_path) == {}


def test_leavings_of_a_killed_process_are_swept(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / ".out.123.tmp").mkdir()
    (tmp_path / ".out.123.tmp" / "masks.safetensors").write_text("half")
    (tmp_path / ".out.lock").touch()
    (tmp_path / ".other.123.tmp").touch()  # somebody else's
    assert call(capsys, "prune", "--out", tmp_path / "out", *TINY, "--method", "random").status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.123.tmp", "out"]


# A full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "old", "refused"),
    [
        ("prune", True, "out/init.safetensors"),  # the masks, smaller, had been written
        ("train", False, "out.work/checkpoint.safetensors"),
        ("train", True, "out.work/checkpoint.safetensors"),
        ("generate", False, "out.h5.work/setup.safetensors"),
        ("generate", True, "out.h5.work/setup.safetensors"),
        ("train-scorer", False, "out.safetensors"),  # the card, smaller, had been written
        ("train-scorer", True, "out.safetensors"),
    ],
)
def test_a_full_disk_changes_nothing(
    command: str, old: bool, refused: str, irp_file: Path, scorer_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "prune": (*TINY, "--method", "random", "--out", tmp_path / "out"),
        "train": (*TINY, "--dense", "--epochs", 1, "--out", tmp_path / "out"),
        "generate": (*TINY, "--rounds", 1, "--score-images", 128, "--out", tmp_path / "out.h5"),
        "train-scorer": (irp_file, "--epochs", 1, "--out", tmp_path / "out.safetensors"),
    }
    force: tuple[object, ...] = ()
    if old:
        assert call(capsys, command, *arguments[command]).status == 0
        force = ("--force", "--seed", 1)
    limit = scorer_file.stat().st_size - 1 if command == "train-scorer" else 30_000
    before = snapshot(tmp_path)
    line = error_of(run(command, *arguments[command], *force, cwd=tmp_path, file_limit=limit))
    assert f"no space left to write {tmp_path / refused}" in line
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_generate_goes_on_once_there_is_space_for_its_file(
    uninterrupted: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    sizes = tmp_path / "sizes.h5"
    assert call(capsys, *GENERATE, "--out", sizes).status == 0
    limit = sizes.stat().st_size - 1
    sizes.unlink()
    out = tmp_path / "runs.h5"
    line = error_of(run(*GENERATE, "--out", out, cwd=tmp_path, file_limit=limit))
    assert f"no space left to write {out}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["runs.h5.work"]
    assert rounds_done(work_folder(out)) == 3
    assert call(capsys, *GENERATE, "--out", out, "--resume").status == 0
    assert contents(out) == uninterrupted


# several processes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    """Under torchrun the batch is shared, the first process writes, and removed weights stay at zero."""
    pruned = run("prune", *TINY, "--method", "snip", "--sparsity", 0.9, "--out", "pruned", cwd=tmp_path)
    assert pruned.status == 0, pruned.err
    command = ["train", "--masks", "pruned", "--epochs", "2", "--batch-size", "64", "--precision", "fp32"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "autosparse"]
    result = subprocess.run(
        [sys.executable, *launch, *command, "--device", "cpu", "--out", "trained"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("test accuracy") == 1
    assert len((tmp_path / "trained" / "log.jsonl").read_text().splitlines()) == 2
    summary = json.loads((tmp_path / "trained" / "summary.json").read_text())
    assert summary["nonzero_weights"] <= summary["pruning"]["kept"]
    assert summary["history"][1]["train_loss"] < summary["history"][0]["train_loss"]
