"""``key=value`` texts of the command line as Python values."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable
from typing import Any

from autosparse.errors import AutoSparseError


def parse_arguments(
    texts: Iterable[str], kind: str, example: str, reserved: Collection[str] = frozenset()
) -> dict[str, Any]:
    """``["width=0.5"]`` as ``{"width": 0.5}``.

    Values are Python literals (``0.5``, ``True``, ``(1, 2)``, ``None``) or, failing that, plain strings.

    Args:
        kind: what the arguments are for, such as ``model``; opens the messages.
        reserved: keys that are set by other means.

    Raises:
        AutoSparseError: no ``=``, a key that is no identifier, given twice, or reserved.
    """
    parsed: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise AutoSparseError(f"{kind} argument '{text}' is not of the form key=value, such as {example}")
        if key in reserved:
            raise AutoSparseError(f"{kind} argument '{text}': '{key}' follows from the other options; remove it")
        if key in parsed:
            raise AutoSparseError(f"{kind} argument '{key}' is given twice; keep one")
        parsed[key] = _literal_or_text(value.strip())
    return parsed


def _literal_or_text(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
