"""Which cell comes next, and what has come of the others."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from autosparse.bench.attempt import BUSY, STOP, Outcome, record_death
from autosparse.bench.cells import Cell
from autosparse.bench.store import Store
from autosparse.errors import AutoSparseError

_PATIENCE = 0.5, 10.0  # seconds until a cell that is busy is tried again: at first, and at most
_LIVES = 2  # attempts whose process died, until the cell is to blame


class Schedule:
    """Hands out cells in order and takes in what came of them.

    Cells that are busy, because another benchmark on the same folder works on them or another process on what they
    need, are tried again until they are recorded or free; more and more rarely while nothing comes of it.

    Args:
        report: told about every cell that is done or has failed.
    """

    def __init__(self, cells: Sequence[Cell], store: Store, report: Callable[[Cell, Outcome], None]) -> None:
        self._waiting = deque(cells)
        self._busy: deque[Cell] = deque()
        self._running: set[str] = set()
        self._deaths: Counter[str] = Counter()
        self._store = store
        self._report = report
        self._tried = 0.0
        self._patience = _PATIENCE[0]

    @property
    def over(self) -> bool:
        return not (self._waiting or self._busy or self._running)

    @property
    def left(self) -> int:
        """Cells that nobody works on for this schedule."""
        return len(self._waiting) + len(self._busy)

    def next(self) -> Cell | None:
        """A cell to attempt now; ``None`` if there is none at the moment."""
        if self._waiting:
            cell = self._waiting.popleft()
        elif self._busy and time.monotonic() - self._tried > self._patience:
            self._tried = time.monotonic()
            cell = self._busy.popleft()
        else:
            return None
        self._running.add(cell.hash)
        return cell

    def settle(self, cell: Cell, outcome: Outcome) -> None:
        """Take in what came of ``cell``; AutoSparseError when no cell can be recorded any more."""
        self._running.discard(cell.hash)
        if outcome.status == STOP:
            raise AutoSparseError(f"{outcome.message} (then repeat the command: it goes on from here)")
        if outcome.status == BUSY:
            self._busy.append(cell)
            self._patience = min(2 * self._patience, _PATIENCE[1])
        else:
            self._patience = _PATIENCE[0]
            self._report(cell, outcome)

    def died(self, cell: Cell, why: str) -> None:
        """The process that ran ``cell`` is gone: once more, or it is recorded as failed."""
        self._deaths[cell.hash] += 1
        if self._deaths[cell.hash] < _LIVES:
            self._running.discard(cell.hash)
            self._waiting.appendleft(cell)
        else:
            self.settle(cell, record_death(cell, self._store, why))
