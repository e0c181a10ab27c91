"""The cells of a benchmark as tasks of a ray cluster whose machines share a file system."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType
from typing import Any

import torch

from autosparse.bench.attempt import Job, Outcome, attempt
from autosparse.bench.cells import Cell
from autosparse.bench.runner import cores
from autosparse.bench.schedule import Schedule
from autosparse.errors import AutoSparseError

_ANSWER = 10.0  # seconds in which a cluster has to answer; ray itself tries for minutes
_TICK = 0.5  # seconds after which the schedule is asked again although nothing has happened


def run_on_ray(schedule: Schedule, job: Job, *, address: str, device: str, threads: int) -> None:
    """Work off ``schedule`` as tasks of the cluster at ``address``, each with ``threads`` cores.

    Args:
        address: ``auto`` (the cluster of this machine), ``local`` (one started for this run) or ``HOST:PORT``.
        device: ``cpu``, ``cuda`` (a GPU a task), or ``auto``: a GPU a task if the cluster has any.

    Raises:
        AutoSparseError: ray is not installed, no machine of the cluster is large enough, or no cell can be recorded any
        more. A cluster that does not answer lets ray wait for minutes: see :func:`require_cluster`.
    """
    with _connected(address) as ray:
        if device == "auto":
            device = "cuda" if ray.cluster_resources().get("GPU") else "cpu"
        needs = {"CPU": threads, "GPU": 1 if device == "cuda" else 0}
        places = _places(ray, needs)
        if not places:
            wanted = " and ".join(f"{count} {kind}" for kind, count in needs.items() if count)
            raise AutoSparseError(f"no machine of the ray cluster has {wanted}: set OMP_NUM_THREADS, or --device")
        # Without ray's own retries: the schedule begins a task that died again, when it is due.
        task = ray.remote(_task).options(num_cpus=needs["CPU"], num_gpus=needs["GPU"], max_retries=0)
        running: dict[Any, Cell] = {}
        while not schedule.over:
            while len(running) < places and (cell := schedule.next()) is not None:
                running[task.remote(cell, job, device, threads, os.getcwd(), sys.path)] = cell
            if not running:
                time.sleep(_TICK)
                continue
            finished, _ = ray.wait(list(running), timeout=_TICK)
            for reference in finished:
                _settle(ray, schedule, running.pop(reference), reference)


def _settle(ray: ModuleType, schedule: Schedule, cell: Cell, reference: Any) -> None:
    try:
        outcome = ray.get(reference)
    except ray.exceptions.RayTaskError:  # raised in the task, which did not die
        raise
    except ray.exceptions.RayError as error:
        schedule.died(cell, f"died on the cluster ({type(error).__name__})")
    else:
        schedule.settle(cell, outcome)


def _task(cell: Cell, job: Job, device: str, threads: int, folder: str, path: list[str]) -> Outcome:
    os.chdir(folder)  # paths in a grid may be relative
    sys.path += [place for place in path if place not in sys.path]  # for networks and methods of the user's own
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # they are part of the results
    return attempt(cell, job, device)


def _places(ray: ModuleType, needs: dict[str, int]) -> int:
    """How many tasks with these ``needs`` the cluster runs at a time."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(has.get(kind, 0) // n) for kind, n in needs.items() if n) for has in machines)


@contextmanager
def _connected(address: str) -> Iterator[ModuleType]:
    """Ray, connected to the cluster at ``address`` until the block ends."""
    ray = _imported()
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings |= {"num_cpus": cores(), "include_dashboard": False}
    # Ray prints about workers that die, whatever its log level; cells' records tell it in one line.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        ray.init(address=address, **settings)
        try:
            yield ray
        finally:
            ray.shutdown()


def _imported() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise AutoSparseError("--ray needs ray: pip install 'autosparse[ray]', or use --jobs") from None
    return ray


def require_cluster(address: str) -> None:
    """AutoSparseError unless ray is installed and a cluster answers at ``address``, as in :func:`run_on_ray`, soon."""
    _imported()
    if address == "local":
        return
    reason = "no answer"
    try:
        if address != "auto":
            host, colon, port = address.removeprefix("ray://").rpartition(":")
            if not (colon and port.isdigit()):
                raise AutoSparseError(f"--ray {address} is neither auto, local nor HOST:PORT, such as 10.0.0.1:6379")
            socket.create_connection((host, int(port)), timeout=3).close()
        # In a process of its own, since ray's attempts to connect cannot be broken off.
        probe = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='CRITICAL')"
        command = [sys.executable, "-c", probe, address]
        subprocess.run(command, timeout=_ANSWER, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [reason])[-1]
    except (OSError, OverflowError) as error:
        reason = str(error)
    except subprocess.TimeoutExpired:
        pass
    raise AutoSparseError(
        f"no ray cluster answers at '{address}' ({reason}): start one (ray start --head), correct the address, or use "
        "--jobs"
    )
