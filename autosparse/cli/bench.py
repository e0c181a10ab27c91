"""``autosparse bench``: a grid of methods, networks, data sets, densities and seeds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table
from tqdm import tqdm

from autosparse.bench.attempt import Job, Outcome
from autosparse.bench.cells import Cell, cells_of
from autosparse.bench.estimate import Row, plan
from autosparse.bench.grid import DENSE, Grid, read_grid
from autosparse.bench.images import forget_images, images_of
from autosparse.bench.ray_runner import require_cluster, run_on_ray
from autosparse.bench.runner import cores, run_local, threads_of
from autosparse.bench.schedule import Schedule
from autosparse.bench.store import DONE, FAILED, Store
from autosparse.channels.recipes import list_channel_methods
from autosparse.cli.options import RUN, DataDirOption, DeviceOption, console, help_text, resolve_device
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError
from autosparse.recipes import list_methods
from autosparse.yaml_lines import Document, Where

#: The module that knows how to run a cell (``run_cell``), which cells can be run (``check_cell``) and what they cost
#: (``trainings_of``); a name, which can be sent to other processes.
ENGINE = "autosparse.bench.cell_run"


def register(app: typer.Typer) -> None:
    app.command("bench", help=help_text(bench_command))(bench_command)


def bench_command(
    grid: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="Models, datasets, methods, densities and seeds.")],
    out: Annotated[Path, typer.Option(help="Folder of results: a new one, or one to continue.")],
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes, which share the cores (or have OMP_NUM_THREADS each) and the GPUs.",
            show_default="1",
            rich_help_panel=RUN,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on a ray cluster: auto, local, or HOST:PORT. A task has OMP_NUM_THREADS cores, or one.",
            rich_help_panel=RUN,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and the time they will take, and run none.")
    ] = False,
    device: DeviceOption = "auto",
    data_dir: DataDirOption = Path("data"),
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run cells again that have failed before.", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Run a grid of methods, networks, data sets, densities and seeds, each in a cell of its own.

    Writes one file a cell to OUT/cells. A cell that fails is recorded, and the others go on. Whatever was stopped,
    killed or added to the grid is done when the command is repeated; several may work on one folder at once. The exit
    status is 0 when all cells are done and 1 when some have failed.
    """
    if ray is not None and jobs is not None:
        raise AutoSparseError("give either --jobs or --ray")
    if ray is not None and device not in ("auto", "cpu", "cuda"):
        raise AutoSparseError(f"--device {device} does not go with --ray: give auto, cpu or cuda")
    engine = importlib.import_module(ENGINE)
    asked, document = read_grid(grid, [DENSE, *list_methods(), *list_channel_methods()])
    cells, store = cells_of(asked), Store(out)
    status = {cell.hash: store.status(cell) for cell in cells}
    left = [cell for cell in cells if status[cell.hash] in ({None, FAILED} if retry_failed else {None})]
    _check(left, asked, document, engine.check_cell, data_dir)
    if dry_run:
        where = str(resolve_device(device))
        threads = _threads(jobs, ray)
        rows = plan(left, data_dir=data_dir, device=where, threads=threads, trainings_of=engine.trainings_of)
        _print_plan(list(rows), len(left), len(cells), None if ray else jobs or 1, threads)
        return
    devices = _devices(device) if ray is None else []
    if ray is not None and left:
        require_cluster(ray)
    store.begin(asked)
    for cell in cells:
        if retry_failed and status[cell.hash] == FAILED:
            store.forget_failure(cell)
        else:
            store.relabel(cell)
    with _Tally(len(cells), [status[cell.hash] or "" for cell in cells if cell not in left]) as tally:
        schedule = Schedule(left, store, tally.report)
        job = Job(out.absolute(), data_dir.absolute(), f"{ENGINE}:run_cell")
        if left and ray is not None:
            run_on_ray(schedule, job, address=ray, device=device, threads=_threads(jobs, ray))
        elif left:
            run_local(schedule, job, jobs=jobs or 1, devices=devices)
    console.print(f"{tally.line}; results in {out}; next: autosparse show {out}", highlight=False, soft_wrap=True)
    if tally.failed:
        raise typer.Exit(1)


def _check(
    cells: Sequence[Cell], grid: Grid, document: Document, check: Callable[[Cell, ImageData], None], data_dir: Path
) -> None:
    """Refuse, before anything is run, images that cannot be had and methods that do not fit a network."""
    lines = {variant.label: line for line, entry in enumerate(grid.methods) for variant in entry.variants()}
    for place, entry in enumerate(grid.datasets):
        facts = (entry.name, entry.image_size, entry.split_seed)
        found: dict[tuple[str, str, str, str], Cell] = {}
        for cell in sorted(cells, key=lambda cell: cell.density):  # what fits the fewest weights fits more
            if (cell.dataset, cell.image_size, cell.split_seed) == facts:
                found.setdefault((cell.model, str(cell.model_args), cell.label, cell.measure), cell)
        if not found:
            continue
        with _located(document, ("datasets", place), entry.name):
            data = images_of(next(iter(found.values())), data_dir, "cpu")
        for cell in found.values():
            with _located(document, ("methods", lines[cell.label]), cell.label):
                for options in cell.candidates():
                    check(cell.settled(options), data)
    forget_images()  # each process has its own


@contextmanager
def _located(document: Document, where: Where, what: str) -> Iterator[None]:
    """Open the message of an AutoSparseError with the line of the grid that it comes from, and with ``what`` it is."""
    try:
        yield
    except AutoSparseError as error:
        raise document.error(where, f"{what}: {error}") from None


def _threads(jobs: int | None, ray: str | None) -> int:
    return threads_of(cores() if ray else jobs or 1)


def _devices(text: str) -> list[str]:
    """Devices for the processes to take in turn: every GPU, unless one of them is named."""
    if text in ("auto", "cuda") and torch.cuda.is_available():
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [str(resolve_device(text))]


class _Tally:
    """Counts cells, and shows them as a bar on a terminal."""

    def __init__(self, total: int, before: Sequence[str]) -> None:
        self.failed = before.count(FAILED)
        self._skipped, self._skipped_failed = len(before), self.failed
        self._done = before.count(DONE)
        self._bar = tqdm(total=total, initial=len(before), desc="bench", unit="cell", leave=False, disable=None)

    def __enter__(self) -> _Tally:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def report(self, cell: Cell, outcome: Outcome) -> None:
        self._skipped += outcome.elsewhere
        if outcome.status == DONE:
            self._done += 1
            self._bar.set_postfix_str(f"{cell.label} on {cell.model} {outcome.message}".strip(), refresh=False)
        else:
            self.failed += 1
            tqdm.write(f"autosparse: warning: failed: {cell.title}: {outcome.message}", file=sys.stderr)
        self._bar.update()

    @property
    def line(self) -> str:
        retry = " (--retry-failed runs them again)" if self._skipped_failed else ""
        skipped = f", {self._skipped} of them skipped as recorded before" if self._skipped else ""
        return f"{self._bar.total} cells: {self._done} done, {self.failed} failed{retry}{skipped}"


def _print_plan(rows: Sequence[Row], left: int, cells: int, jobs: int | None, threads: int) -> None:
    """A table of what would be run; ``jobs`` is None where a cluster decides."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "dataset", "method", "densities", "seeds"):
        table.add_column(title, overflow="fold")
    for title in ("trainings", "time"):
        table.add_column(title, justify="right")
    for row in rows:
        densities, seeds = (", ".join(f"{v:g}" for v in values) for values in (row.densities, row.seeds))
        trainings = f"{row.trainings:.4g}"
        table.add_row(row.model, row.dataset, row.label, densities, seeds, trainings, _duration(row.seconds))
    console.print(table)
    seconds = sum(row.seconds for row in rows)
    share = f", {_duration(seconds / jobs)} with {jobs} jobs" if jobs and jobs > 1 else ""
    if jobs is None:
        share = ", divided by the tasks that the cluster runs at a time"
    where = "1 thread" if threads == 1 else f"{threads} threads"
    console.print(
        f"{left} of {cells} cells left, {sum(row.trainings for row in rows):.4g} trainings: about {_duration(seconds)} "
        f"on {where}{share}; nothing was run",
        highlight=False,
        soft_wrap=True,
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
