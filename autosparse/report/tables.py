"""Tables of text, and what they look like in Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

_GROUPING = ",\u00a0\u2009\u202f"  # between thousands: comma, non-breaking, thin and narrow spaces
_NUMBER = re.compile(rf"\s*<?\s*([-+−]?(?:\d[\d{_GROUPING}]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **dict.fromkeys("\u2009\u202f", "\\,"),
        "\\": "\\textbackslash{}",
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        "<": "\\textless{}",
        ">": "\\textgreater{}",
        "|": "\\textbar{}",
        "\u00a0": "~",
        "±": "$\\pm$",
        "×": "$\\times$",
        "−": "$-$",
        "–": "--",
        "—": "---",
        "…": "\\dots{}",
    }
)


@dataclass(frozen=True)
class Table:
    """Rows of text cells under a header.

    ``best`` names columns (from 0) whose best cell is emphasised, with the direction that counts as better. The number
    at the start of a cell decides (``91.20 ± 0.11 %`` is 91.2); cells that start with none, and the rows ``apart``
    (such as a reference), do not take part. Columns in ``code`` hold commands, those in ``long`` sentences: both wrap.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    best: Mapping[int, Literal["highest", "lowest"]] = field(default_factory=dict)
    apart: Collection[int] = ()
    code: Collection[int] = ()
    long: Collection[int] = ()

    def __post_init__(self) -> None:
        """ValueError for a row of another length than the header, or a ``best`` column that is not there."""
        check_rows(self.header, self.rows)
        if any(not 0 <= column < len(self.header) for column in self.best):
            raise ValueError(f"best names columns {sorted(self.best)} of a table with {len(self.header)}")

    def best_cells(self) -> set[tuple[int, int]]:
        """(row, column) of the emphasised cells; equal numbers share the honour."""
        cells: set[tuple[int, int]] = set()
        rows = [(i, row) for i, row in enumerate(self.rows) if i not in self.apart]
        for column, direction in self.best.items():
            numbers = {i: value for i, row in rows if (value := _number(row[column])) is not None}
            if numbers:
                winner = max(numbers.values()) if direction == "highest" else min(numbers.values())
                cells |= {(i, column) for i, value in numbers.items() if value == winner}
        return cells


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], best: Collection[tuple[int, int]] = ()) -> str:
    """The table in GitHub's Markdown, ended by a newline; columns of numbers are aligned to the right.

    Args:
        best: (row, column) of cells to print bold.
    """
    check_rows(header, rows)
    numeric = numeric_columns(header, rows)
    lines = [[_markdown_cell(cell) for cell in line] for line in (header, *rows)]
    for row, column in best:
        lines[row + 1][column] = f"**{lines[row + 1][column]}**"
    lines.insert(1, ["---:" if column in numeric else "---" for column in range(len(header))])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def latex_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    best: Collection[tuple[int, int]] = (),
    caption: str = "",
) -> str:
    """The table for LaTeX with the package booktabs, ended by a newline; all text is escaped.

    Args:
        best: (row, column) of cells to print bold.
    """
    check_rows(header, rows)
    numeric = numeric_columns(header, rows)
    cells = [[latex_text(cell) for cell in row] for row in rows]
    for row, column in best:
        cells[row][column] = f"\\textbf{{{cells[row][column]}}}"
    columns = "".join("r" if column in numeric else "l" for column in range(len(header)))
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        *([f"  \\caption{{{latex_text(caption)}}}"] if caption else []),
        f"  \\begin{{tabular}}{{{columns}}}",
        "    \\toprule",
        f"    {' & '.join(latex_text(cell) for cell in header)} \\\\",
        "    \\midrule",
        *(f"    {' & '.join(row)} \\\\" for row in cells),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_text(text: str) -> str:
    """``text`` in one line, with every character that LaTeX would read as a command escaped."""
    return re.sub(r"[ \t\r\n\f\v]+", " ", text).strip(" ").translate(_LATEX)


def numeric_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> set[int]:
    """Columns in which every cell starts with a number, but for those that are empty or start with a dash."""
    found = set()
    for column in range(len(header)):
        said = [row[column] for row in rows if row[column].strip() not in ("", "-") and row[column][0] not in "–—"]
        if said and all(_number(cell) is not None for cell in said):
            found.add(column)
    return found


def check_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """ValueError for a row of another length than the header."""
    for index, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"row {index} has {len(row)} cells under a header of {len(header)}")


def _markdown_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _number(cell: str) -> float | None:
    match = _NUMBER.match(cell)
    if match is None:
        return None
    return float(re.sub(f"[{_GROUPING}]", "", match.group(1)).replace("−", "-"))
