"""A report as one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from autosparse.files import atomic_folder, write_text
from autosparse.report.save import figure_data_uri, image_of
from autosparse.report.tables import Table, numeric_columns

_CSS_PIXELS_PER_INCH = 96


@dataclass(frozen=True)
class Fold:
    """Something that stays closed until it is asked for: a table, and text to copy as it stands."""

    title: str
    table: Table | None = None
    text: str = ""


@dataclass(frozen=True)
class Section:
    """One chapter of the page: ``text`` in plain paragraphs (a blank line between two), figures, tables and folds.

    ``figures`` holds pairs of a figure and its caption, which is also what a screen reader says.
    """

    title: str
    text: str = ""
    figures: Sequence[tuple[Figure, str]] = ()
    tables: Sequence[Table] = ()
    folds: Sequence[Fold] = ()


def render_page(title: str, intro: str, sections: Sequence[Section], provenance: Mapping[str, Any]) -> str:
    """The page as HTML. All text is escaped; styles and images are inside; no request leaves it.

    Args:
        title: of the page.
        intro: plain paragraphs under the title.
        sections: in order; each gets an entry in the table of contents.
        provenance: what made the report (versions, revision, machine, settings); mappings may be nested.
    """
    files = resources.files("autosparse.report")
    script = ""
    if any(fold.text for section in sections for fold in section.folds):
        script = files.joinpath("page.js").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files.joinpath("page.html.j2").read_text(encoding="utf-8")).render(
        title=title,
        intro=_paragraphs(intro),
        sections=[_section(section) for section in sections],
        provenance=[(key.replace("_", " "), _value(value)) for key, value in provenance.items()],
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )


def write_page(path: Path, html: str) -> None:
    """Write the page; the file appears complete or not at all."""
    write_text(path, html)


def write_figures(folder: Path, sections: Sequence[Section]) -> list[str]:
    """Write every figure as an image file of its own, named by its section; the folder appears complete or not at all.

    Returns:
        The names of the files.
    """
    names = []
    with atomic_folder(folder) as temporary:
        for section in sections:
            for number, (figure, _) in enumerate(section.figures, 1):
                suffix, data = image_of(figure)
                stem = re.sub(r"[^a-z0-9.]+", "-", section.title.lower()).strip("-.")
                names.append(f"{stem}{f'-{number}' if number > 1 else ''}.{suffix}")
                (temporary / names[-1]).write_bytes(data)
    return names


def _section(section: Section) -> dict[str, Any]:
    """What the template needs of a section."""
    figures = []
    for figure, caption in section.figures:
        width, height = (round(inches * _CSS_PIXELS_PER_INCH) for inches in figure.get_size_inches())
        figures.append({"uri": figure_data_uri(figure), "caption": caption, "width": width, "height": height})
    return {
        "title": section.title,
        "text": _paragraphs(section.text),
        "figures": figures,
        "tables": [_table(table) for table in section.tables],
        "folds": [
            {"title": fold.title, "text": fold.text, "table": None if fold.table is None else _table(fold.table)}
            for fold in section.folds
        ],
    }


def _table(table: Table) -> dict[str, Any]:
    numeric = numeric_columns(table.header, table.rows) - {*table.code, *table.long}
    return {"table": table, "best": table.best_cells(), "numeric": numeric}


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
