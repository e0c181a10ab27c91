"""The cells of a benchmark in processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess

import torch

from autosparse.bench.attempt import Job, Outcome, attempt
from autosparse.bench.cells import Cell
from autosparse.bench.schedule import Schedule
from autosparse.errors import AutoSparseError

_TICK = 0.5  # seconds after which the schedule is asked again although nothing has happened
_READY = "ready"  # a worker's first word


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(jobs: int) -> int:
    """Threads of each of ``jobs`` processes: ``OMP_NUM_THREADS`` if that is set, otherwise its share of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else max(1, cores() // jobs)


def run_local(schedule: Schedule, job: Job, *, jobs: int, devices: Sequence[str]) -> None:
    """Work off ``schedule`` with ``jobs`` processes, which share ``devices`` in turn.

    A process that dies is replaced. All of them end with this one, however it ends.

    Raises:
        AutoSparseError: no cell can be recorded any more, or no process can be started.
    """
    threads = threads_of(jobs)
    with _clean_start(threads):
        crew = [_Worker(job, devices[i % len(devices)], threads) for i in range(min(jobs, schedule.left))]
    try:
        while not schedule.over:
            for worker in crew:
                if worker.idle and (cell := schedule.next()) is not None:
                    worker.begin(cell)
            connection.wait([handle for worker in crew for handle in worker.handles], timeout=_TICK)
            for place, worker in enumerate(crew):
                worker.listen(schedule)
                if worker.gone and schedule.left:
                    with _clean_start(threads):
                        crew[place] = _Worker(job, worker.device, threads)
    finally:
        for worker in crew:
            worker.process.kill()
        for worker in crew:
            worker.process.join()


@contextmanager
def _clean_start(threads: int) -> Iterator[None]:
    """Start processes with their number of threads, which torch reads when it is imported, and deaf to Ctrl-C.

    Ctrl-C reaches every process of a terminal. This one alone answers it; one that is still importing would print a
    traceback.
    """
    resource_tracker.ensure_running()  # starting it would lift the mask
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(dict.fromkeys(before, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Worker:
    """A process that runs cells one by one, seen from its parent."""

    def __init__(self, job: Job, device: str, threads: int) -> None:
        self.device = device
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, job, device, threads), daemon=False)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does
        self._ready = False
        self._cell: Cell | None = None
        self.gone = False

    @property
    def idle(self) -> bool:
        return self._ready and self._cell is None and not self.gone

    @property
    def handles(self) -> list[connection.Connection]:
        return [] if self.gone else [self._pipe]

    def begin(self, cell: Cell) -> None:
        self._cell = cell
        with suppress(OSError):  # dead: listen() notices
            self._pipe.send(cell)

    def listen(self, schedule: Schedule) -> None:
        """Take in what the process has said, or that it has died."""
        # Asked before the pipe is emptied: what a process said before it died still counts. A pipe alone does not tell,
        # as children of the dead process may hold it open.
        dead = not self.process.is_alive()
        try:
            while not self.gone and self._pipe.poll():
                self._hear(self._pipe.recv(), schedule)
        except (EOFError, OSError):
            dead = True
        if dead and not self.gone:
            self._bury(schedule)

    def _hear(self, message: str | Outcome, schedule: Schedule) -> None:
        if isinstance(message, str):
            self._ready = message == _READY
            return
        cell, self._cell = self._cell, None
        assert cell is not None  # it was given one
        if message.broken:
            self.gone = True
            self.process.kill()
        schedule.settle(cell, message)

    def _bury(self, schedule: Schedule) -> None:
        self.gone = True
        self.process.join()
        code = self.process.exitcode or 0
        why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        if not self._ready:
            raise AutoSparseError(f"a process to run cells {why} as it started: free some memory, or use fewer --jobs")
        if self._cell is not None:
            schedule.died(self._cell, why)


def _work(pipe: connection.Connection, job: Job, device: str, threads: int) -> None:
    """A worker's life: cells come through ``pipe``, outcomes go back."""
    die_with_parent()
    torch.set_num_threads(threads)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # what asks for "cuda" means this one
    warnings.simplefilter("ignore")  # they are part of the results
    with suppress(EOFError, OSError):  # the parent is gone
        pipe.send(_READY)
        while True:
            pipe.send(attempt(pipe.recv(), job, device))


def die_with_parent() -> None:
    """End this process, at once and without a word, when the one that started it ends, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
