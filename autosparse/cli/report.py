"""``autosparse report``: the page of a benchmark, or of IRP data."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autosparse.bench.analysis import analyse
from autosparse.bench.results import read_results
from autosparse.cli.options import ForceOption, console, help_text
from autosparse.errors import AutoSparseError
from autosparse.files import exclusive, require_absent

if TYPE_CHECKING:
    from autosparse.report.page import Section


def register(app: typer.Typer) -> None:
    app.command("report", help=help_text(report_command))(report_command)


def report_command(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="Folder of a benchmark, or a file of autosparse generate.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    reference: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="Benchmark: compare with this method.", show_default="the grid's own"),
    ] = None,
    layers_at: Annotated[
        float | None,
        typer.Option(
            metavar="DENSITY", help="Benchmark: show the layer densities of these networks.", show_default="the lowest"
        ),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every figure as an image file here, too.")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write the report of a benchmark or of IRP data: one HTML file that needs no network.

    Of a benchmark: accuracies with intervals, ranks, differences from a reference, layer densities, the cost of
    pruning, what failed, and for every number the command that repeats it. Of IRP data: what survived in each layer and
    round, and against each initial feature.
    """
    from autosparse.report.page import write_figures, write_page

    with exclusive(out), exclusive(figures) if figures else nullcontext():
        require_absent(out, force)
        if figures:
            require_absent(figures, force)
        if results.is_file():
            for option, value in (("--reference", reference), ("--layers-at", layers_at)):
                if value is not None:
                    raise AutoSparseError(
                        f"{option} is for the folder of a benchmark, and {results} is a file: drop it"
                    )
            page, sections = _of_irp(results)
        else:
            page, sections = _of_benchmark(results, reference, layers_at)
        write_page(out, page)
        drawn = write_figures(figures, sections) if figures else []
    console.print(f"report: {out}", highlight=False)
    if figures:
        console.print(f"figures: {len(drawn)} in {figures}", highlight=False)


def _of_benchmark(folder: Path, reference: str | None, layers_at: float | None) -> tuple[str, list[Section]]:
    from autosparse.report.benchmark import benchmark_page, benchmark_sections

    analysis = analyse(read_results(folder), reference)
    sections = benchmark_sections(analysis, layers_at)
    return benchmark_page(analysis, sections), sections


def _of_irp(path: Path) -> tuple[str, list[Section]]:
    from autosparse.report.irp_page import irp_page, irp_sections
    from autosparse.scorer.dataset import list_runs, read_run

    runs = [read_run(path, name) for name in list_runs(path)]
    sections = irp_sections(runs)
    return irp_page(runs, sections), sections
