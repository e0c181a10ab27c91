"""Running the command line from tests: as a process of its own, or inside this one where a process would be slow."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from autosparse.cli import main

#: The smallest network and images that the commands take.
TINY = ("--model", "resnet20", "--model-arg", "width=0.25", "--image-size", "8", "--device", "cpu")

_PATIENCE = 300  # seconds until a moment that never comes is a failure


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below ``folder``, hidden files included: a file's bytes, ``None`` for a folder."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def error_of(result: Result, status: int = 2) -> str:
    """The one line on stderr of a command that failed as commands should."""
    assert "Traceback" not in result.err
    assert result.status == status, result.err
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("autosparse: error: "), result.err
    return lines[0]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """The command inside this process."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    return Result(status, *capsys.readouterr())


def start(
    *arguments: object, cwd: Path, file_limit: int | None = None, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """The command as a process. ``file_limit``: bytes that a file may have, as on a full disk."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs hand on that it is ignored
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

    root = Path(__file__).resolve().parents[1]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "autosparse", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def finish(process: subprocess.Popen[str]) -> Result:
    """What the process printed, once it has ended."""
    out, err = process.communicate(timeout=300)
    return Result(process.returncode, out, err)


def run(*arguments: object, cwd: Path, file_limit: int | None = None, env: Mapping[str, str] | None = None) -> Result:
    """The command as a process, to its end."""
    return finish(start(*arguments, cwd=cwd, file_limit=file_limit, env=env))


def stop_at(process: subprocess.Popen[str], moment: Callable[[], bool]) -> None:
    """Freeze the running ``process`` (SIGSTOP) as soon as ``moment()`` is true; fails if it ended before."""
    began = time.monotonic()
    while not moment():
        if process.poll() is not None:
            pytest.fail(f"the command ended (status {process.returncode}) before the moment: {finish(process)}")
        if time.monotonic() - began > _PATIENCE:
            process.kill()
            pytest.fail(f"the moment did not come within {_PATIENCE} s: {finish(process)}")
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    assert process.poll() is None, "the command ended before it could be stopped: make it longer"


def interrupt(process: subprocess.Popen[str], number: signal.Signals) -> Result:
    """Send a signal to a process that :func:`stop_at` froze, let it go on, and wait for its end."""
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    return finish(process)
