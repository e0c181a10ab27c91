"""Summaries that are read back: checked, since they may have been damaged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autosparse.errors import FileFormatError
from autosparse.files import check_schema, read_json


def read_summary(folder: Path, kind: str, what: str, facts: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """``summary.json`` of ``folder``, checked to be of ``kind`` and to hold ``facts`` (``a.b`` is nested) by type."""
    path = folder / "summary.json"
    if not path.is_file():
        raise FileFormatError(f"{folder} holds no summary.json: give {what}")
    summary = read_json(path)
    check_schema(path, kind, summary.get("kind"), summary.get("schema_version"))
    for name, types in facts.items():
        value: Any = summary
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, types):
            raise FileFormatError(f"{path} is damaged: '{name}' is {value!r}; restore or remake the folder")
    return summary
