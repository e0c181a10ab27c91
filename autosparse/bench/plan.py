"""What a folder of results was asked for: its ``grid.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autosparse.bench.cells import cells_of
from autosparse.bench.grid import DENSE, Grid
from autosparse.bench.store import GRID_KIND, SCHEMA_VERSION
from autosparse.channels.recipes import list_channel_methods
from autosparse.errors import AutoSparseError
from autosparse.files import check_schema, read_json
from autosparse.recipes import list_methods


@dataclass(frozen=True)
class Plan:
    """The reference that a grid names, and its cells by hash; None when they cannot be told."""

    reference: str | None = None
    cells: Mapping[str, Mapping[str, Any]] | None = None


def read_plan(path: Path) -> Plan:
    """The plan in ``path``.

    Results are worth reading without it, so a grid that is absent, or that this installation cannot follow (a method of
    the user's own or a scorer's file that is not here), gives a plan without cells.

    Raises:
        FileFormatError: the file is damaged, foreign or of a newer release.
    """
    if not path.exists():
        return Plan()
    content = read_json(path)
    check_schema(path, GRID_KIND, content.get("kind"), content.get("schema_version"), SCHEMA_VERSION)
    reference = content.get("reference")
    fields = {name: value for name, value in content.items() if name in Grid.model_fields}
    try:
        grid = Grid.model_validate(fields, context={"methods": [*list_methods(), *list_channel_methods(), DENSE]})
        cells = {cell.hash: cell.as_dict() for cell in cells_of(grid)}
    except (ValidationError, AutoSparseError):
        cells = None
    return Plan(reference if isinstance(reference, str) else None, cells)
