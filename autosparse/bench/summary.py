"""A whole grid in one small JSON file, to commit beside the text that quotes it, and the tables made from it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autosparse.bench.analysis import Ranking, analyse
from autosparse.bench.comparison import Comparison
from autosparse.bench.groups import Group
from autosparse.bench.results import Results
from autosparse.bench.setting import WEIGHTS, Setting
from autosparse.bench.statistics import CONFIDENCE, Estimate
from autosparse.errors import FileFormatError
from autosparse.files import check_schema, read_json
from autosparse.report.style import percent
from autosparse.report.tables import markdown_table

KIND = "autosparse-benchmark-summary"
SCHEMA_VERSION = 1
#: What is told of smaller networks, as fields of :class:`~autosparse.bench.results.Smaller`.
_SHARES = ("flops", "params", "channels", "latency", "training", "dense_epochs")
_DIGITS = 9  # enough that tables made from the file round as those made from the results


def summarise(results: Results, reference: str | None = None) -> dict[str, Any]:
    """The grid as JSON-able values: per-seed accuracies, intervals, seconds and commands of every group.

    ``groups`` refer to ``settings`` by position; dense networks are with every setting that has them. In a group's
    ``command``, ``{seed}`` and ``{hash}`` stand for one of its ``seeds`` and the hash beside it; a group whose commands
    differ in more has all of them in ``commands``.

    Args:
        reference: as for :func:`~autosparse.bench.analysis.analyse`, which also says what this raises.
    """
    analysis = analyse(results, reference)
    settings = {setting: place for place, setting in enumerate(analysis.titles)}
    origins = {json.dumps(cell.provenance, sort_keys=True): cell.provenance for cell in results.cells}
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "confidence": CONFIDENCE,
        "reference": analysis.reference,
        "labels": list(analysis.labels),
        "settings": [
            {"title": title, "measure": setting.measure, **setting.facts} for setting, title in analysis.titles.items()
        ],
        "groups": [_group(g, place) for setting, place in settings.items() for g in analysis.groups_of(setting)],
        "comparisons": [_comparison(comparison, settings) for comparison in analysis.comparisons],
        "sanity": [_comparison(comparison, settings) for comparison in analysis.sanity],
        "overall": [
            {
                "label": found.label,
                "places": found.places,
                **(_interval(found.difference.estimate) if found.difference else {}),
                "p_holm": _rounded(found.holm),
                "verdict": found.verdict,
            }
            for found in analysis.overall
        ],
        "ranks": {ranking.what: _ranks(ranking) for ranking in analysis.rankings},
        "failed": [
            {"label": cell.name, "setting": settings[analysis.shown_with(cell.setting)], "density": cell.density,
             "seed": cell.seed, "error": cell.error, "command": cell.command}
            for cell in results.failed
        ],
        "missing": len(analysis.absent),
        "provenance": [origins[key] for key in sorted(origins)],
    }  # fmt: skip


def summary_text(summary: Mapping[str, Any]) -> str:
    """``summary`` as JSON with an entry of every list on a line of its own, so that changes show line by line."""
    parts = []
    for name, value in summary.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False, allow_nan=False)}" for row in value)
            text = f"[\n{rows}\n  ]"
        else:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        parts.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_summary(path: Path) -> dict[str, Any]:
    """A file of :func:`summarise`'s values.

    Raises:
        FileFormatError: it is damaged, foreign or of a newer release.
    """
    content = read_json(path)
    check_schema(path, KIND, content.get("kind"), content.get("schema_version"), SCHEMA_VERSION)
    return content


def summary_tables(summary: Mapping[str, Any]) -> str:
    """The accuracies of a summary as Markdown: a table a setting, labels in the summary's order, dense above.

    Raises:
        FileFormatError: something is missing in ``summary``.
    """
    try:
        places = range(len(summary["settings"]))
        return "\n".join(_table(summary, place) for place in places)
    except (KeyError, TypeError, IndexError) as error:
        raise FileFormatError(f"the summary is incomplete ({error!r}): make it again from its results") from None


def _table(summary: Mapping[str, Any], place: int) -> str:
    groups = [group for group in summary["groups"] if group["setting"] == place and group["sanity"] is None]
    pruned = {(group["label"], group["density"]): group for group in groups if group["method"] != "dense"}
    densities = sorted({density for _, density in pruned}, reverse=True) or [1.0]
    sizes = [len(group["seeds"]) for group in groups]
    usual = max(sizes, key=lambda n: (sizes.count(n), n))
    rows = [
        [f"{group['label']}, not pruned", *[_accuracy(group, usual)] * len(densities)]
        for group in groups
        if group["method"] == "dense"
    ]
    for label in summary["labels"]:
        if any((label, density) in pruned for density in densities):
            rows.append([label, *(_accuracy(pruned.get((label, density)), usual) for density in densities)])
    header = [summary["settings"][place]["title"], *(percent(density) for density in densities)]
    return markdown_table(header, rows)


def _accuracy(group: Mapping[str, Any] | None, usual: int) -> str:
    if group is None or not group["seeds"]:
        return "–"
    spread = "" if group["half_width"] is None else f" ± {100 * group['half_width']:.2f}"
    count = "" if len(group["seeds"]) == usual else f" ({len(group['seeds'])})"
    return f"{100 * group['mean']:.2f}{spread}{count}"


def _group(group: Group, place: int) -> dict[str, Any]:
    outcomes = [cell.outcome for cell in group.cells if cell.outcome is not None]
    usage = {name: value for name, value in json.loads(group.first.usage).items() if value not in (None, {}, False)}
    found = {
        "setting": place,
        "label": group.label,
        "sanity": group.sanity,
        "density": group.density,
        **usage,
        "seeds": [cell.seed for cell in group.cells],
        "hashes": [cell.hash for cell in group.cells],
        "test_accuracy": [outcome.test_accuracy for outcome in outcomes],
        **(_interval(group.estimate) if group.estimate is not None else {}),
        "connected": [outcome.connected for outcome in outcomes],
        "empty_layers": [len(outcome.empty_layers) for outcome in outcomes],
        "prune_seconds": [_rounded(outcome.prune_seconds, 2) for outcome in outcomes],
        "prune_peak_bytes": [outcome.prune_peak_bytes for outcome in outcomes],
        "train_seconds": [_rounded(outcome.train_seconds, 2) for outcome in outcomes],
        "failed": len(group.failed),
    }
    if images := group.measurements("prune_images"):
        found["prune_images"] = images
    if group.setting.measure != WEIGHTS:
        found |= {name: [_rounded(value, 4) for value in group.shares(name)] for name in _SHARES}
    return {**found, **_commands(group)}


def _commands(group: Group) -> dict[str, Any]:
    """One command with ``{seed}`` and ``{hash}`` in place of what differs, where that is all that differs."""
    templates = {
        re.sub(rf"(--seed[ =]){cell.seed}\b", r"\g<1>{seed}", cell.command).replace(cell.hash, "{hash}")
        for cell in group.cells
    }
    if len(templates) == 1:
        return {"command": templates.pop()}
    return {"commands": [cell.command for cell in group.cells]}


def _comparison(comparison: Comparison, settings: Mapping[Setting, int]) -> dict[str, Any]:
    found = comparison.difference
    return {
        "setting": settings[comparison.ours.setting],
        "label": comparison.ours.name,
        "with": comparison.theirs.name,
        "density": comparison.ours.density,
        **(_interval(found.estimate) if found else {}),
        "p": _rounded(found.p if found else None),
        "p_holm": _rounded(comparison.holm),
        "verdict": comparison.verdict,
    }


def _ranks(ranking: Ranking) -> dict[str, Any] | None:
    ranks = ranking.ranks
    if ranks is None:
        return None
    means = {label: _rounded(value, 3) for label, value in ranks.mean_ranks.items()}
    found = {"blocks": ranks.blocks, "of_blocks": ranking.blocks, "mean": means, "friedman_p": _rounded(ranks.p)}
    return {**found, "critical_difference": _rounded(ranks.critical_difference, 3)}


def _interval(found: Estimate) -> dict[str, Any]:
    numbers: Sequence[float | None] = (found.mean, found.std, found.half_width)
    return {"n": found.n, **dict(zip(("mean", "std", "half_width"), map(_rounded, numbers), strict=True))}


def _rounded(value: float | None, digits: int = _DIGITS) -> float | None:
    return None if value is None else round(value, digits)
