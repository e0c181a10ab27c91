"""The tables of a benchmark, for the page, the terminal, Markdown and LaTeX alike."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from autosparse.bench.analysis import Analysis, Ranking
from autosparse.bench.comparison import BETTER, NOT_SHOWN, WORSE, Comparison
from autosparse.bench.groups import Group
from autosparse.bench.setting import Setting
from autosparse.bench.statistics import Estimate
from autosparse.report.style import percent
from autosparse.report.tables import Table

NONE = "–"
_MOST_NAMED = 3
_MOST_CHARACTERS = 90  # of a warning


def accuracy_table(analysis: Analysis, setting: Setting) -> Table:
    """Test accuracies of one setting: a row a label, best first, a column a density; dense above all."""
    dense = analysis.dense(setting)
    densities = analysis.densities(setting) or [1.0]
    labels = analysis.labels_of(setting)
    groups = [[analysis.group(setting, label, density) for density in densities] for label in labels]
    shown = [group for row in [*groups, [dense]] for group in row if group is not None]
    usual = _usual_number(shown)
    rows = [[label, *(_accuracy(group, usual) for group in row)] for label, row in zip(labels, groups, strict=True)]
    if dense is not None:
        rows.insert(0, [f"{dense.label}, not pruned", *[_accuracy(dense, usual)] * len(densities)])
    return Table(
        ["method", *(percent(density) for density in densities)],
        rows,
        _accuracy_caption(shown, usual, setting.share, many=len(labels) > 1),
        best=dict.fromkeys(range(1, len(densities) + 1), "highest") if len(labels) > 1 else {},
        apart={0} if dense is not None else set(),
    )


def _accuracy_caption(groups: Sequence[Group], usual: int, share: str, many: bool) -> str:
    estimates = [group.estimate for group in groups if group.estimate is not None]
    text = f"Test accuracy in percent by {share}"
    if any(found.half_width is not None for found in estimates):
        text += f": mean ± half the 95 % t-interval over {_seeds(usual)}"
    elif estimates:
        text += ", of a single seed: nothing can be said about differences"
    if any(found.n != usual for found in estimates):
        text += " (another number of seeds in brackets)"
    text += "."
    if many:
        text += " Marked is the highest mean of each column, which alone does not make it better than the next."
    if any(found.half_width == 0 for found in estimates):
        text += " ± 0.00: all seeds were equal, as collapsed networks that guess one class are."
    return text


def difference_table(analysis: Analysis, setting: Setting) -> Table:
    """Differences from the reference in one setting, laid out as accuracies are; a star where one is shown."""
    own = [comparison for comparison in analysis.comparisons if comparison.ours.setting == setting]
    densities = sorted({comparison.ours.density for comparison in own}, reverse=True)
    cells = {(comparison.ours.label, comparison.ours.density): comparison for comparison in own}
    labels = [label for label in analysis.labels if any((label, density) in cells for density in densities)]
    usual = _usual_number([comparison.ours for comparison in own])
    rows = [[label, *(_contrast(cells.get((label, density)), usual) for density in densities)] for label in labels]
    caption = (
        f"Difference of test accuracy from {analysis.reference} in points, paired by seed: mean ± half the 95 % "
        "t-interval. * better or worse: p < 0.05 after Holm's correction over all "
        f"{tested(analysis.comparisons)} comparisons with it; everywhere else no difference is shown."
    )
    return Table(["method", *(percent(density) for density in densities)], rows, caption)


def overall_table(analysis: Analysis) -> Table:
    """Each label against the reference over the whole grid, and how often it was better or worse at one place."""
    rows = []
    for found in analysis.overall:
        verdicts = Counter(c.verdict for c in analysis.comparisons if c.ours.label == found.label)
        counts = [str(verdicts[verdict]) for verdict in (BETTER, WORSE, NOT_SHOWN)]
        difference = _signed(found.difference.estimate) if found.difference else NONE
        rows.append([found.label, difference, p_text(found.holm), found.verdict, *counts])
    rows.sort(key=lambda row: analysis.labels.index(row[0]))
    caption = (
        f"Difference from {analysis.reference} in points of accuracy, averaged over all networks, data sets and "
        f"densities that both have; mean over seeds ± half the 95 % t-interval. p after Holm's correction over these "
        f"{len(rows)} rows. The counts are of single places (a network, images and a density), corrected over all "
        f"{tested(analysis.comparisons)}."
    )
    return Table(["method", "over all", "p, Holm", "verdict", "better", "worse", "not shown"], rows, caption)


def comparison_table(comparisons: Iterable[Comparison], caption: str = "") -> Table:
    """Comparisons of one setting with their tests, one a row."""
    rows = []
    for comparison in comparisons:
        found = comparison.difference
        row = [comparison.ours.name, percent(comparison.ours.density), str(found.estimate.n if found else 0)]
        row += [_signed(found.estimate) if found else NONE, p_text(found.p if found else None), p_text(comparison.holm)]
        rows.append([*row, comparison.verdict])
    header = ["method", "density", "seeds", "difference [points]", "p", "p, Holm", "verdict"]
    return Table(header, rows, caption)


def sanity_table(analysis: Analysis, setting: Setting) -> Table:
    """The sanity checks of one setting beside the same use of the method without them."""
    own = [comparison for comparison in analysis.sanity if comparison.ours.setting == setting]
    usual = _usual_number([group for comparison in own for group in (comparison.ours, comparison.theirs)])
    rows = [
        [
            comparison.ours.name,
            percent(comparison.ours.density),
            _accuracy(comparison.ours, usual),
            _accuracy(comparison.theirs, usual),
            _signed(comparison.difference.estimate) if comparison.difference else NONE,
            p_text(comparison.holm),
            comparison.verdict,
        ]
        for comparison in own
    ]
    caption = f"{analysis.titles[setting]}: test accuracy in percent and its difference, paired by seed; "
    caption += f"mean ± half the 95 % t-interval over {_seeds(usual)} (another number in brackets)."
    return Table(["check", "density", "with it", "without", "difference", "p, Holm", "verdict"], rows, caption)


def rank_table(ranking: Ranking) -> Table:
    """Mean ranks, best first."""
    ranks = ranking.ranks.mean_ranks if ranking.ranks is not None else {}
    return Table(["method", "mean rank"], [[label, f"{rank:.2f}"] for label, rank in ranks.items()])


def cost_table(analysis: Analysis, setting: Setting) -> Table:
    """Seconds and memory that pruning took, over all densities and seeds of a setting."""
    rows = []
    for label in analysis.labels_of(setting):
        groups = [g for g in analysis.groups if (g.setting, g.label, g.sanity) == (setting, label, None)]
        seconds = [value for group in groups for value in group.measurements("prune_seconds")]
        peaks = [value / 2**20 for group in groups for value in group.measurements("prune_peak_bytes")]
        rows.append([label, *_median_and_range(seconds), *_median_and_range(peaks), str(max(len(seconds), len(peaks)))])
    header = ["method", "seconds, median", "range", "peak MiB, median", "range", "runs"]
    return Table(header, rows, f"{analysis.titles[setting]}, all densities and seeds.")


def size_table(analysis: Analysis, setting: Setting) -> Table:
    """What is left of networks that lost channels, a row a label and share; empty where none did."""
    rows = []
    batches: set[int] = set()
    for group in (group for group in analysis.groups if group.setting == setting and group.sanity is None):
        if not group.shares("flops"):
            continue
        batches |= {int(batch) for batch in group.shares("batch")}
        kept = [_percents(group.shares(name)) for name in ("flops", "params", "channels", "latency", "training")]
        seconds = group.measurements("train_seconds")
        times = [_amount(statistics.mean(seconds)) if seconds else NONE, _range(group.shares("dense_epochs"))]
        rows.append([f"{group.label}, {percent(group.density)}", *kept, *times])
    at = f" at batch size {' and '.join(map(str, sorted(batches)))}" if batches else ""
    caption = (
        f"{analysis.titles[setting]}: shares of the dense network in percent, mean (range over seeds). Latency is of "
        f"inference{at}, measured in turn with the dense network; training is the FLOPs of the whole training, beside "
        "the mean of its seconds; channels were removed after so many epochs (0: before the first)."
    )
    header = ["method, asked", "FLOPs", "params", "channels", "latency", "training", "seconds", "epochs"]
    return Table(header, rows, caption)


def _percents(values: Sequence[float]) -> str:
    """The mean, and the range where it shows: ``48.2 (47.1 to 49.0)``."""
    if not values:
        return NONE
    low, mean, high = (f"{100 * value:.1f}" for value in (min(values), statistics.mean(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def _range(values: Sequence[float]) -> str:
    low, high = min(values, default=0.0), max(values, default=0.0)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def collapse_table(analysis: Analysis, setting: Setting) -> Table:
    """Groups of one setting in which layers were emptied, the network was cut, or pruning warned."""
    rows = []
    for group in (group for group in analysis.groups if group.setting == setting):
        outcomes = [cell.outcome for cell in group.cells if cell.outcome is not None]
        cut = sum(outcome.connected is False for outcome in outcomes)
        empty = [outcome.empty_layers for outcome in outcomes if outcome.empty_layers]
        warnings = dict.fromkeys(_clause(text) for outcome in outcomes for text in outcome.warnings)
        if not (cut or empty or warnings):
            continue
        names = dict.fromkeys(name.removesuffix(".weight") for layers in empty for name in layers)
        emptied = f"{len(empty)} of {len(outcomes)}: {_listed(names)}" if empty else NONE
        row = [group.name, percent(group.density), f"{cut} of {len(outcomes)}"]
        rows.append([*row, emptied, _listed(warnings) or NONE])
    header = ["method", "density", "no path left", "layers emptied", "warnings"]
    caption = f"{analysis.titles[setting]}: seeds in which no path from input to output was left, in which layers "
    caption += "kept no weight, and what pruning warned of."
    return Table(header, rows, caption, long={3, 4})


def failure_table(analysis: Analysis) -> Table:
    """Every failed cell with its error and command."""
    rows = []
    for cell in (cell for group in analysis.groups for cell in group.failed):
        title = analysis.titles[analysis.shown_with(cell.setting)]
        rows.append([cell.name, title, percent(cell.density), str(cell.seed), cell.error, cell.command])
    header = ["method", "network and images", "density", "seed", "error", "command"]
    return Table(header, rows, long={1, 4}, code={5})


def absence_table(analysis: Analysis) -> Table:
    """Cells that are not there, by setting, label and density."""
    seeds: dict[tuple[str, str, float], list[int]] = {}
    for setting, label, density, seed in analysis.absent:
        title = analysis.titles.get(setting, f"{setting.model}, {setting.dataset}")
        seeds.setdefault((label, title, density), []).append(seed)
    rows = [
        [label, title, percent(density), ", ".join(map(str, sorted(found)))]
        for (label, title, density), found in seeds.items()
    ]
    return Table(["method", "network and images", "density", "seeds"], rows)


def cell_table(groups: Iterable[Group]) -> Table:
    """Every finished cell with its accuracy and the command that repeats it."""
    rows = [
        [cell.name, percent(cell.density), str(cell.seed), f"{100 * cell.outcome.test_accuracy:.2f}", cell.command]
        for group in groups
        for cell in group.cells
        if cell.outcome is not None
    ]
    return Table(["method", "density", "seed", "accuracy [%]", "command"], rows, code={4})


def tested(comparisons: Iterable[Comparison]) -> int:
    """How many comparisons had a test: the size of the family that Holm's correction counts."""
    return sum(comparison.holm is not None for comparison in comparisons)


def _usual_number(groups: Sequence[Group]) -> int:
    """The number of seeds that most groups have; the larger of two that are as frequent."""
    counts = Counter(len(group.cells) for group in groups if group.cells)
    return max(counts, key=lambda n: (counts[n], n), default=0)


def _seeds(number: int) -> str:
    return f"{number} seed" if number == 1 else f"{number} seeds"


def _accuracy(group: Group | None, usual: int) -> str:
    if group is None:
        return NONE
    found = group.estimate
    if found is None:
        return f"{NONE} (failed)"
    spread = "" if found.half_width is None else f" ± {100 * found.half_width:.2f}"
    return f"{100 * found.mean:.2f}{spread}" + (f" ({found.n})" if found.n != usual else "")


def _contrast(comparison: Comparison | None, usual: int) -> str:
    if comparison is None or comparison.difference is None:
        return NONE
    found = comparison.difference.estimate
    star = "*" if comparison.verdict in (BETTER, WORSE) else ""
    return f"{_signed(found)}{star}" + (f" ({found.n})" if found.n != usual else "")


def _signed(found: Estimate) -> str:
    spread = "" if found.half_width is None else f" ± {100 * found.half_width:.2f}"
    return f"{100 * found.mean:+.2f}{spread}".replace("-", "−")


def p_text(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _median_and_range(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return NONE, NONE
    return _amount(statistics.median(values)), f"{_amount(min(values))} to {_amount(max(values))}"


def _amount(value: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _clause(warning: str) -> str:
    """What happened, without the advice that follows a semicolon."""
    clause = warning.partition(";")[0]
    return clause if len(clause) <= _MOST_CHARACTERS else f"{clause[: _MOST_CHARACTERS - 1]}…"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return "; ".join(names[:_MOST_NAMED]) + more
