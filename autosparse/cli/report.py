"""``autosparse report``: the page of a benchmark."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from autosparse.bench.analysis import analyse
from autosparse.bench.results import read_results
from autosparse.cli.options import ForceOption, console, help_text
from autosparse.files import exclusive, require_absent


def register(app: typer.Typer) -> None:
    app.command("report", help=help_text(report_command))(report_command)


def report_command(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of a benchmark.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    reference: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Compare with this method.", show_default="the grid's own")
    ] = None,
    layers_at: Annotated[
        float | None,
        typer.Option(metavar="DENSITY", help="Show the layer densities of these networks.", show_default="the lowest"),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every figure as an image file here, too.")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write the report of a benchmark: one HTML file that needs no network.

    Accuracies with intervals, ranks, differences from a reference, layer densities, the cost of pruning, what failed,
    and for every number the command that repeats it.
    """
    from autosparse.report.benchmark import benchmark_page, benchmark_sections
    from autosparse.report.page import write_figures, write_page

    with exclusive(out), exclusive(figures) if figures else nullcontext():
        require_absent(out, force)
        if figures:
            require_absent(figures, force)
        analysis = analyse(read_results(results), reference)
        sections = benchmark_sections(analysis, layers_at)
        write_page(out, benchmark_page(analysis, sections))
        drawn = write_figures(figures, sections) if figures else []
    console.print(f"report: {out}", highlight=False)
    if figures:
        console.print(f"figures: {len(drawn)} in {figures}", highlight=False)
