"""The folder of a benchmark's results: one file a cell, whole or absent."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from autosparse.bench.cells import Cell
from autosparse.bench.grid import Grid
from autosparse.bench.shared import Shared
from autosparse.errors import FileFormatError, OutputExistsError
from autosparse.files import check_schema, exclusive, read_json, remove_folder, write_errors, write_json
from autosparse.provenance import provenance

SCHEMA_VERSION = 1
GRID_KIND, CELL_KIND = "autosparse-grid", "autosparse-cell"
DONE, FAILED = "done", "failed"


class Store:
    """A results folder.

    ``grid.json`` is the grid that was last asked for, ``cells/`` has one file a cell that is done or has failed,
    ``work/`` the state of those that are not, ``shared/`` what several cells are made from.

    Raises:
        FileFormatError: the folder is something else, or was written by a newer release.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.shared = Shared(self.folder / "shared")
        path = self.folder / "grid.json"
        if path.is_file():
            found = read_json(path)
            check_schema(path, GRID_KIND, found.get("kind"), found.get("schema_version"), SCHEMA_VERSION)
        elif self.folder.exists() and not self._is_free():
            raise FileFormatError(f"{self.folder} is not of 'autosparse bench' (no grid.json): choose another --out")

    def _is_free(self) -> bool:
        """Whether nothing is there but a ``grid.json`` that is being written."""
        with write_errors(self.folder):
            return all(path.name.startswith(".grid.json.") for path in self.folder.iterdir())

    def begin(self, grid: Grid) -> None:
        """Note ``grid``; results of cells that it does not have stay."""
        content = {"kind": GRID_KIND, "schema_version": SCHEMA_VERSION, **grid.model_dump(), "provenance": provenance()}
        write_json(self.folder / "grid.json", content)

    def path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.hash}.json"

    def work(self, cell: Cell) -> Path:
        return self.folder / "work" / cell.hash

    def lock(self, cell: Cell) -> AbstractContextManager[None]:
        """The only right to work on ``cell``; OutputExistsError while another process has it."""
        return exclusive(self.path(cell))

    def status(self, cell: Cell) -> str | None:
        """``done``, ``failed``, or ``None`` for a cell that is still to be run."""
        record = self.record(cell)
        return None if record is None else record["status"]

    def record(self, cell: Cell) -> dict[str, Any] | None:
        """What :meth:`write` wrote; FileFormatError if the file has been damaged since."""
        path = self.path(cell)
        if not path.exists():
            return None
        try:
            found = read_json(path)
        except FileFormatError as error:
            raise FileFormatError(f"{error}, or remove it to run its cell again") from None
        check_schema(path, CELL_KIND, found.get("kind"), found.get("schema_version"), SCHEMA_VERSION)
        if found.get("hash") != cell.hash or found.get("status") not in (DONE, FAILED):
            raise FileFormatError(f"{path} is damaged: remove it to run its cell again")
        return found

    def write(
        self, cell: Cell, *, seconds: float, result: dict[str, Any] | None = None, error: dict[str, str] | None = None
    ) -> None:
        """Record what came of ``cell``: a ``result``, or the ``error`` (``type``, ``message``) that it failed with."""
        chosen = (result or {}).get("chosen", {}).get("options", {})
        content = {
            "kind": CELL_KIND,
            "schema_version": SCHEMA_VERSION,
            "hash": cell.hash,
            "status": DONE if error is None else FAILED,
            "label": cell.label,
            "cell": cell.as_dict(),
            "result": result,
            "error": error,
            "command": (cell.settled(chosen) if chosen else cell).command(Path("runs") / cell.hash),
            "provenance": provenance(),
            "seconds": seconds,
        }
        write_json(self.path(cell), content)
        if error is None:
            self.discard_work(cell)

    def discard_work(self, cell: Cell) -> None:
        remove_folder(self.work(cell))

    def forget_failure(self, cell: Cell) -> None:
        """Let a cell that has failed be run again."""
        try:
            with self.lock(cell):
                if self.status(cell) == FAILED:
                    self.path(cell).unlink()
        except OutputExistsError:  # another process is at it already
            pass

    def relabel(self, cell: Cell) -> None:
        """Let a recorded cell go by the label of the grid that asks for it now."""
        if (record := self.record(cell)) is None or record["label"] == cell.label:
            return
        try:
            with self.lock(cell):
                if (record := self.record(cell)) is not None:
                    record["cell"] = {**record["cell"], "label": cell.label}
                    write_json(self.path(cell), {**record, "label": cell.label})
        except OutputExistsError:
            pass
