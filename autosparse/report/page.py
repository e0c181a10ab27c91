"""A report as one HTML file that needs no network, and tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from autosparse.files import write_text
from autosparse.report.save import figure_data_uri

_GROUPING = ",\u00a0\u2009\u202f"  # between thousands: comma, non-breaking, thin and narrow spaces
_NUMBER = re.compile(rf"\s*([-+−]?(?:\d[\d{_GROUPING}]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
_CSS_PIXELS_PER_INCH = 96


@dataclass(frozen=True)
class Table:
    """Rows of text cells under a header.

    ``best`` names columns (from 0) whose best cell is emphasised, with the direction that counts as better. The number
    at the start of a cell decides (``91.20 ± 0.11 %`` is 91.2); cells that start with none do not take part.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    best: Mapping[int, Literal["highest", "lowest"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """ValueError for a row of another length than the header, or a ``best`` column that is not there."""
        _check_rows(self.header, self.rows)
        if any(not 0 <= column < len(self.header) for column in self.best):
            raise ValueError(f"best names columns {sorted(self.best)} of a table with {len(self.header)}")

    def best_cells(self) -> set[tuple[int, int]]:
        """(row, column) of the emphasised cells; equal numbers share the honour."""
        cells: set[tuple[int, int]] = set()
        for column, direction in self.best.items():
            numbers = {i: value for i, row in enumerate(self.rows) if (value := _number(row[column])) is not None}
            if numbers:
                winner = max(numbers.values()) if direction == "highest" else min(numbers.values())
                cells |= {(i, column) for i, value in numbers.items() if value == winner}
        return cells


@dataclass(frozen=True)
class Section:
    """One chapter of the page: ``text`` in plain paragraphs (a blank line between two), then tables, then figures.

    ``figures`` holds pairs of a figure and its caption, which is also what a screen reader says.
    """

    title: str
    text: str = ""
    figures: Sequence[tuple[Figure, str]] = ()
    tables: Sequence[Table] = ()


def render_page(title: str, intro: str, sections: Sequence[Section], provenance: Mapping[str, Any]) -> str:
    """The page as HTML. All text is escaped; styles and images are inside; no request leaves it.

    Args:
        title: of the page.
        intro: plain paragraphs under the title.
        sections: in order; each gets an entry in the table of contents.
        provenance: what made the report (versions, revision, machine, settings); mappings may be nested.
    """
    source = resources.files("autosparse.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        title=title,
        intro=_paragraphs(intro),
        sections=[_section(section) for section in sections],
        provenance=[(key.replace("_", " "), _value(value)) for key, value in provenance.items()],
    )


def write_page(path: Path, html: str) -> None:
    """Write the page; the file appears complete or not at all."""
    write_text(path, html)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in GitHub's Markdown, ended by a newline; columns of numbers are aligned to the right."""
    _check_rows(header, rows)
    numeric = _numeric_columns(header, rows)
    lines = [header, ["---:" if column in numeric else "---" for column in range(len(header))], *rows]
    return "".join("| " + " | ".join(_markdown_cell(cell) for cell in line) + " |\n" for line in lines)


def _markdown_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _section(section: Section) -> dict[str, Any]:
    """What the template needs of a section."""
    figures = []
    for figure, caption in section.figures:
        width, height = (round(inches * _CSS_PIXELS_PER_INCH) for inches in figure.get_size_inches())
        figures.append({"uri": figure_data_uri(figure), "caption": caption, "width": width, "height": height})
    tables = [
        {"table": table, "best": table.best_cells(), "numeric": _numeric_columns(table.header, table.rows)}
        for table in section.tables
    ]
    return {"title": section.title, "text": _paragraphs(section.text), "figures": figures, "tables": tables}


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _value(value: object) -> str:
    """A provenance entry in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == "" else str(value)


def _number(cell: str) -> float | None:
    match = _NUMBER.match(cell)
    if match is None:
        return None
    return float(re.sub(f"[{_GROUPING}]", "", match.group(1)).replace("−", "-"))


def _numeric_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> set[int]:
    """Columns in which every cell that says something starts with a number."""
    found = set()
    for column in range(len(header)):
        said = [row[column] for row in rows if row[column].strip() not in ("", "-", "–", "—")]
        if said and all(_number(cell) is not None for cell in said):
            found.add(column)
    return found


def _check_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for index, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"row {index} has {len(row)} cells under a header of {len(header)}")
