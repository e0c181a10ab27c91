"""What a benchmark consists of and where its numbers come from, in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from autosparse import provenance
from autosparse.bench.analysis import Analysis
from autosparse.bench.results import Cell
from autosparse.bench.setting import Setting
from autosparse.report.bench_tables import NONE
from autosparse.report.style import percent
from autosparse.report.tables import Table

_UNSET: tuple[object, ...] = (None, {}, [], "", False, 0)


def introduction(analysis: Analysis) -> str:
    """What was run, and how to read it."""
    results = analysis.results
    shares: dict[str, set[float]] = {}
    for setting in analysis.titles:
        shares.setdefault(setting.share, set()).update(analysis.densities(setting))
    seeds = sorted({cell.seed for cell in results.cells})
    what = f"{count(len(analysis.labels), 'method')} on {'; '.join(analysis.titles.values())}"
    known = [f"{share} {', '.join(map(percent, sorted(d, reverse=True)))}" for share, d in shares.items() if d]
    what += f", at {' and '.join(known)}" if known else ""
    counts = f"{count(len(results.done), 'network')} trained"
    counts += f", {len(results.failed)} failed, {len(analysis.absent)} missing."
    if results.stale:
        counts += f" {count(results.stale, 'result')} of earlier plans with other settings left out."
    how = (
        f"Every number is test accuracy after the last epoch, with {count(len(seeds), 'seed')}. Methods with the same "
        "seed share initial weights, data order and training, so they are compared in pairs."
    )
    if len(seeds) > 1:
        how += (
            " Intervals are 95 % t-intervals. A difference is called better or worse only where it holds after Holm's "
            "correction; all else is no difference shown, which does not mean that there is none."
        )
    return f"{what}. {counts}\n\n{how}"


def usage_table(analysis: Analysis) -> Table:
    """What each label stands for: the method and everything that is not its default."""
    rows = {}
    for group in analysis.groups:
        facts = {name: value for name, value in json.loads(group.first.usage).items() if value not in _UNSET}
        method = str(facts.pop("method", ""))
        settings = ", ".join(f"{name.replace('_', ' ')} {_spelled(value)}" for name, value in facts.items())
        rows[group.name, group.sanity] = [group.name, method, group.sanity or NONE, settings or NONE]
    return Table(["name", "method", "sanity check", "settings"], list(rows.values()), long={3})


def _spelled(value: object) -> str:
    return ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


def origin(analysis: Analysis) -> dict[str, Any]:
    """Every distinct origin of the cells, and what made the page."""
    cells = analysis.results.cells
    versions: dict[str, list[str]] = {}
    for cell in cells:
        found = cell.provenance.get("versions")
        for name, version in (found if isinstance(found, Mapping) else {}).items():
            if str(version) not in versions.setdefault(str(name), []):
                versions[str(name)].append(str(version))
    seconds = sum(cell.seconds or 0.0 for cell in cells)
    return {
        "results": str(analysis.results.folder),
        "versions": {name: " and ".join(sorted(found)) for name, found in versions.items()},
        "source_revision": distinct(str(cell.provenance.get("source_revision") or "unknown") for cell in cells),
        "hardware": distinct(machine(cell) for cell in cells),
        "results_written": _dates(analysis),
        "time_in_all": f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min",
        **{f"training on {title}": _facts(setting) for setting, title in analysis.titles.items()},
        "seeds": sorted({cell.seed for cell in cells}),
        "page_made_by": f"autosparse {provenance.provenance()['versions'].get('autosparse', 'unknown')}",
    }


def _facts(setting: Setting) -> dict[str, Any]:
    facts = {name: value for name, value in setting.facts.items() if name in ("image_size", "split_seed")}
    return {**setting.facts["train"], **{name: value for name, value in facts.items() if value is not None}}


def machine(cell: Cell) -> str:
    """The accelerator, or the processor with its threads and, where known, whether it has bfloat16."""
    known = {name: cell.provenance.get(name) or "unknown" for name in ("machine", "threads")}
    native = cell.provenance.get("processor_bf16")
    bf16 = "" if native is None else " with bf16" if native else " without bf16"
    return str(cell.provenance.get("gpu") or f"{known['machine']}{bf16}, threads: {known['threads']}")


def _dates(analysis: Analysis) -> str:
    """From the first to the last day on which a cell's file was written, in UTC."""
    paths = [analysis.results.folder / "cells" / f"{cell.hash}.json" for cell in analysis.results.cells]
    days = sorted(
        datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).date().isoformat() for path in paths if path.exists()
    )
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else ""


def distinct(values: Iterable[str]) -> list[str]:
    """Every value once, sorted."""
    return sorted(set(values))


def count(number: int, one: str, many: str = "") -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
