"""Errors that a user can mend.

Every message is one line that says what was wrong, where, and what to do. The command line prints it and exits
with status 2; a traceback is kept for our own mistakes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """What ``error`` says, in one line; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class AutoSparseError(Exception):
    """Base of every error caused by input, files or settings."""


class UnknownNameError(AutoSparseError):
    """A name that no registry entry has; the message proposes the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
        super().__init__(f"unknown {kind} '{name}': {advice}{'; ' + hint if hint else ''}")
        self.near = near


class FileFormatError(AutoSparseError):
    """A file that is damaged, foreign, or written by a newer version."""


class OutputExistsError(AutoSparseError):
    """An output that would be overwritten, or that another process is writing."""


class MaskMismatchError(AutoSparseError):
    """Masks that do not belong to the given model."""


class DivergedError(AutoSparseError):
    """A loss that is not finite."""


class BudgetError(AutoSparseError):
    """A sparsity or density that cannot be reached."""
