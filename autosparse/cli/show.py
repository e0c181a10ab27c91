"""``autosparse show``: the tables of a benchmark in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as RichTable
from rich.text import Text

from autosparse.bench.analysis import Analysis, analyse
from autosparse.bench.results import read_results
from autosparse.bench.summary import summarise, summary_text
from autosparse.cli.options import console, help_text
from autosparse.errors import AutoSparseError
from autosparse.report.bench_tables import accuracy_table, difference_table, sanity_table, size_table
from autosparse.report.tables import Table, latex_table, markdown_table

_LEAST_LABEL = 18  # characters of a label before it wraps
_GAP = 2  # columns of the terminal between two columns of the table


def register(app: typer.Typer) -> None:
    app.command("show", help=help_text(show_command))(show_command)


def show_command(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of a benchmark.")],
    reference: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Also show differences from this method.", show_default="none")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print the tables for LaTeX (booktabs).")] = False,
    summary: Annotated[bool, typer.Option("--json", help="Print everything as JSON, to keep beside a text.")] = False,
) -> None:
    """Show the accuracies of a benchmark, its sanity checks, and what failed or is missing.

    Mean test accuracy in percent with half the 95 % t-interval, a row a method, best mean rank first.
    """
    if markdown + latex + summary > 1:
        raise AutoSparseError("--markdown, --latex and --json exclude each other: give one of them")
    found = read_results(results)
    if summary:
        typer.echo(summary_text(summarise(found, reference)), nl=False)
        return
    analysis = analyse(found, reference)
    for title, table in _tables(analysis, differences=reference is not None):
        if markdown:
            rows = markdown_table(table.header, table.rows, table.best_cells())
            typer.echo(f"**{title}**\n\n{rows}\n{table.caption}\n")
        elif latex:
            typer.echo(latex_table(table.header, table.rows, table.best_cells(), f"{title}. {table.caption}"))
        else:
            _print(title, table)
    if not (markdown or latex):
        console.print(_state(analysis), highlight=False, markup=False)


def _tables(analysis: Analysis, differences: bool) -> Iterator[tuple[str, Table]]:
    for setting, title in analysis.titles.items():
        yield title, accuracy_table(analysis, setting)
        if (sizes := size_table(analysis, setting)).rows:
            yield f"{title}: what is left", sizes
        if differences and any(c.ours.setting == setting for c in analysis.comparisons):
            yield f"{title}: differences from {analysis.reference}", difference_table(analysis, setting)
        if any(c.ours.setting == setting for c in analysis.sanity):
            yield f"{title}: sanity checks", sanity_table(analysis, setting)


def _print(title: str, table: Table) -> None:
    """The table; where the terminal is too narrow, labels wrap, and then columns go on below."""
    best = table.best_cells()
    widths = [max(len(row[column]) for row in (table.header, *table.rows)) for column in range(len(table.header))]
    rest = console.width - sum(width + _GAP for width in widths[1:]) - _GAP
    first = min(widths[0], max(rest, _LEAST_LABEL))
    console.print(Text(title, style="bold"))
    for columns in _pieces(widths, console.width - first - _GAP):
        shown = RichTable(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        shown.add_column(table.header[0], width=first)
        for column in columns:
            shown.add_column(table.header[column], justify="right", no_wrap=True)
        for index, row in enumerate(table.rows):
            cells = [Text(row[column], style="bold green" if (index, column) in best else "") for column in columns]
            shown.add_row(Text(row[0]), *cells, style="dim" if index in table.apart else "")
        console.print(shown)
        console.print()
    console.print(Text(table.caption, style="dim"))
    console.print()


def _pieces(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Columns but the first, as many at a time as fit into ``room``; at least one."""
    piece: list[int] = []
    taken = 0
    for column, width in enumerate(widths[1:], start=1):
        if piece and taken + width > room:
            yield piece
            piece, taken = [], 0
        piece.append(column)
        taken += width + _GAP
    yield piece


def _state(analysis: Analysis) -> str:
    results = analysis.results
    text = f"{len(results.done)} finished, {len(results.failed)} failed, {len(analysis.absent)} missing"
    if results.stale:
        text += f", {results.stale} of earlier plans left out"
    for cell in results.failed[:3]:
        text += f"\nfailed: {cell.name}, density {cell.density:g}, seed {cell.seed}: {cell.error}"
    if len(results.failed) > 3:
        text += f"\nand {len(results.failed) - 3} more: autosparse report lists all"
    return text
