"""The seeds of one label at one density, together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from autosparse.bench.results import Cell
from autosparse.bench.setting import Setting
from autosparse.bench.statistics import Estimate, estimate


@dataclass(frozen=True)
class Group:
    """The seeds of one label at one density in one setting; ``cells`` are the finished ones, by seed."""

    setting: Setting
    label: str
    sanity: str | None
    density: float
    cells: tuple[Cell, ...]
    failed: tuple[Cell, ...] = ()

    @property
    def first(self) -> Cell:
        return (self.cells or self.failed)[0]

    @property
    def name(self) -> str:
        return self.first.name

    @property
    def is_dense(self) -> bool:
        return self.first.is_dense

    @cached_property
    def accuracies(self) -> dict[int, float]:
        """Seed -> test accuracy."""
        return {cell.seed: cell.outcome.test_accuracy for cell in self.cells if cell.outcome is not None}

    @cached_property
    def estimate(self) -> Estimate | None:
        """Mean test accuracy with its interval; None when no seed has finished."""
        return estimate(list(self.accuracies.values())) if self.cells else None

    def measurements(self, name: str) -> list[float]:
        """A number of every finished cell's outcome, such as ``prune_seconds``, where it was measured."""
        values = [getattr(cell.outcome, name) for cell in self.cells]
        return [float(value) for value in values if value is not None]

    def shares(self, name: str) -> list[float]:
        """A number of every smaller network, such as ``latency``, where it was measured."""
        found = [cell.outcome.smaller for cell in self.cells if cell.outcome and cell.outcome.smaller]
        values = [getattr(smaller, name) for smaller in found]
        return [float(value) for value in values if value is not None]


def group_cells(cells: Iterable[Cell]) -> list[Group]:
    """The groups of ``cells``, in order of their first seed."""
    found: dict[tuple[Setting, str, str | None, float], list[Cell]] = defaultdict(list)
    for cell in sorted(cells, key=lambda cell: cell.seed):
        found[cell.setting, cell.label, cell.sanity, cell.density].append(cell)
    return [
        Group(*key, tuple(c for c in members if c.outcome), tuple(c for c in members if not c.outcome))
        for key, members in found.items()
    ]
