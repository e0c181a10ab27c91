"""The tables of docs/results.md and docs/study.md are those of the results beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from autosparse.bench.summary import read_summary, summary_tables

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("path", sorted((DOCS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_the_tables_in_the_text_are_those_of_the_results(path: Path) -> None:
    text = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("results.md", "study.md"))
    assert f"results/{path.name}" in text
    for table in summary_tables(read_summary(path)).split("\n\n"):
        assert table.strip() in text
