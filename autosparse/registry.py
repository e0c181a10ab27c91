"""Named choices: models, data sets, criteria, budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from autosparse.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """A sorted mapping of names to entries that refuses a second definition and suggests near names on a miss."""

    def __init__(self, kind: str, hint: str = "") -> None:
        self.kind = kind
        self._hint = hint
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        """Enter ``entry`` under ``name``; ValueError if the name is taken."""
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is already defined")
        self._entries[name] = entry

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of :meth:`add`."""

        def decorate(entry: T) -> T:
            self.add(name, entry)
            return entry

        return decorate

    def get(self, name: str) -> T:
        """The entry called ``name``; UnknownNameError names the nearest ones."""
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._entries, self._hint) from None

    def names(self) -> list[str]:
        return sorted(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        return iter(sorted(self._entries.items()))

    def __contains__(self, name: object) -> bool:
        return name in self._entries
