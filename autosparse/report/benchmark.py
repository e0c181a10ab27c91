"""The page of a benchmark: what its results show, and how each number is made again."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from autosparse.bench.analysis import Analysis, Ranking
from autosparse.bench.comparison import BETTER, WORSE, Comparison
from autosparse.bench.setting import MEASURES, WEIGHTS, Setting
from autosparse.bench.statistics import ALPHA
from autosparse.errors import AutoSparseError
from autosparse.report import bench_tables as tables
from autosparse.report.bench_origin import count, distinct, introduction, machine, origin, usage_table
from autosparse.report.frontier import Offer, frontier_figure
from autosparse.report.method_rows import Contrast, cost_figure, difference_figure, layer_map_figure, rank_figure
from autosparse.report.page import Fold, Section, render_page
from autosparse.report.small_multiples import DENSITY_AXIS, MOST_LINES, Point, density_accuracy_figure
from autosparse.report.style import label_styles, percent
from autosparse.report.tables import Table, latex_table, markdown_table

_LATENCIES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)  # shares to name on an axis


def benchmark_page(analysis: Analysis, sections: Sequence[Section]) -> str:
    """The page as HTML, of what :func:`benchmark_sections` gave."""
    return render_page("Pruning benchmark", introduction(analysis), sections, origin(analysis))


def benchmark_sections(analysis: Analysis, layers_at: float | None = None) -> list[Section]:
    """The chapters of the page.

    Args:
        layers_at: density at which layer densities are shown; by default the lowest of each setting.

    Raises:
        AutoSparseError: no pruned network of that density.
    """
    if layers_at is not None and not any(layers_at in analysis.densities(setting) for setting in analysis.titles):
        known = sorted({density for setting in analysis.titles for density in analysis.densities(setting)})
        raise AutoSparseError(f"no network of density {layers_at:g}: give one of {', '.join(f'{d:g}' for d in known)}")
    return [
        *_rank_sections(analysis),
        *(_accuracy_section(analysis, setting) for setting in analysis.titles),
        *_difference_section(analysis),
        *_sanity_section(analysis),
        *_layer_section(analysis, layers_at),
        *_collapse_section(analysis),
        *_cost_section(analysis),
        *_frontier_section(analysis),
        *_gap_section(analysis),
        _cell_section(analysis),
    ]


def _rank_sections(analysis: Analysis) -> list[Section]:
    """Ranks of the methods for weights, and of those for channels."""
    several = len(analysis.rankings) > 1
    return [
        _rank_section(ranking, f"Ranks of methods for {ranking.what}" if several else "Ranks")
        for ranking in analysis.rankings
        if len(ranking.labels) > 1
    ]


def _rank_section(ranking: Ranking, title: str) -> Section:
    ranks, share = ranking.ranks, "density" if ranking.what == WEIGHTS else "share kept"
    if ranks is None:
        text = f"No block (network, images, {share} and seed) in which every method has finished, so no ranks. "
        return Section(title, text + _unranked(ranking))
    text = (
        f"Rank of each method within {count(ranks.blocks, 'block')} of the same network, images, {share} and seed, "
        f"averaged; {count(ranking.blocks, 'block')} have any result, and those count in which every method has "
        f"finished. {_unranked(ranking)}\n\n"
    )
    if ranks.p is None:
        text += "Too few methods or blocks, or nothing but ties: no test of whether the ranks differ at all."
    else:
        p = tables.p_text(ranks.p) if ranks.p < 0.0001 else f"= {tables.p_text(ranks.p)}"
        verdict = "the ranks differ" if ranks.p < ALPHA else "no difference among the ranks is shown"
        text += f"Friedman test: p {p}, {verdict}. Blocks that share a network are not independent: this "
        text += "speaks of these networks and images, not of others."
    critical = ranks.critical_difference if ranks.p is not None and ranks.p < ALPHA else None
    figure = rank_figure(ranks.mean_ranks, "Mean ranks over the whole grid", critical)
    caption = "Mean rank of each method, the best on top."
    if critical is not None:
        caption += f" Mean ranks closer than {critical:.2f} are not told apart (Nemenyi's test at 5 %)."
    return Section(title, text, [(figure, caption)], folds=[Fold("Mean ranks as numbers", tables.rank_table(ranking))])


def _unranked(ranking: Ranking) -> str:
    gaps = sorted(ranking.unranked.items(), key=lambda item: -item[1])
    text = ""
    if gaps:
        named = ", ".join(f"{label} in {count}" for label, count in gaps[:5])
        text = f"Unfinished: {named}{' and others' if len(gaps) > 5 else ''}."
    if apart := [label for label in ranking.labels if ranking.ranks and label not in ranking.ranks.mean_ranks]:
        text += f" N:M patterns have densities of their own and no rank: {', '.join(apart)}."
    return text.strip()


def _accuracy_section(analysis: Analysis, setting: Setting) -> Section:
    title = analysis.titles[setting]
    table = tables.accuracy_table(analysis, setting)
    labels = analysis.labels_of(setting)
    series = {
        label: {
            density: Point(group.estimate.mean, group.estimate.half_width)
            for density in analysis.densities(setting)
            if (group := analysis.group(setting, label, density)) is not None and group.estimate is not None
        }
        for label in labels
    }
    series = {label: line for label, line in series.items() if line}
    unpruned = _unpruned(analysis, setting)
    drawn = []
    if series:
        figure = density_accuracy_figure(series, _styles(analysis), title, unpruned, _axis(setting))
        caption = "Mean test accuracy; bands are 95 % t-intervals where there is more than one seed"
        caption += ", the dashed line is the dense network" if unpruned else ""
        caption += "." if len(series) <= MOST_LINES else ". Panels by mean rank, best first; all others in grey."
        drawn = [(figure, caption)]
    sizes = tables.size_table(analysis, setting)
    if not sizes.rows:
        return Section(f"Accuracy: {title}", "", drawn, [table], _copies(table, title))
    if latencies := _latency_series(analysis, setting):
        axis = "latency [% of the dense network's], faster to the right"
        figure = density_accuracy_figure(
            latencies, _styles(analysis), f"{title}: against latency", unpruned, axis, _LATENCIES
        )
        drawn.append((figure, "The same accuracies against measured latency of inference, the mean over seeds."))
    return Section(f"Accuracy: {title}", "", drawn, [table, sizes], [*_copies(table, title), *_copies(sizes, title)])


def _unpruned(analysis: Analysis, setting: Setting) -> Point | None:
    """The accuracy of the dense network, where it has finished."""
    dense = analysis.dense(setting)
    return Point(dense.estimate.mean, dense.estimate.half_width) if dense and dense.estimate else None


def _axis(setting: Setting) -> str:
    if setting.measure == WEIGHTS:
        return DENSITY_AXIS
    return f"{setting.share} [%], smaller to the right"


def _latency_series(analysis: Analysis, setting: Setting) -> dict[str, dict[float, Point]]:
    """Label -> mean latency -> accuracy."""
    found = {}
    for label in analysis.labels_of(setting):
        groups = [analysis.group(setting, label, share) for share in analysis.densities(setting)]
        known = [(group.shares("latency"), group.estimate) for group in groups if group is not None]
        line = {statistics.mean(times): Point(e.mean, e.half_width) for times, e in known if times and e}
        if line:
            found[label] = line
    return found


def _copies(table: Table, title: str) -> list[Fold]:
    """The table to paste into a text."""
    best = table.best_cells()
    return [
        Fold("Markdown", text=markdown_table(table.header, table.rows, best)),
        Fold("LaTeX", text=latex_table(table.header, table.rows, best, f"{title}. {table.caption}")),
    ]


def _difference_section(analysis: Analysis) -> list[Section]:
    if len(analysis.labels) < 2:
        return []
    if analysis.reference is None:
        text = "No reference was given: autosparse report --reference LABEL compares every method with one of them."
        return [Section("Differences", text)]
    drawn, shown = [], []
    for setting, title in analysis.titles.items():
        own = [c for c in analysis.comparisons if c.ours.setting == setting and c.difference is not None]
        if not own:
            continue
        columns = _contrasts(own)
        labels = [label for label in analysis.labels_of(setting) if any(label in column for column in columns.values())]
        figure = difference_figure(columns, title, analysis.reference, labels)
        drawn.append(
            (figure, f"Difference from {analysis.reference} by {setting.share}, with 95 % t-intervals: {title}.")
        )
        table = tables.difference_table(analysis, setting)
        shown.append(Fold(f"Differences: {title}", table, markdown_table(table.header, table.rows)))
        shown.append(Fold(f"Tests: {title}", tables.comparison_table(own)))
    text = (
        f"Each method against {analysis.reference} at the same share kept, paired by seed: "
        f"{count(tables.tested(analysis.comparisons), 'comparison')} with a test, which are one family for Holm's "
        "correction."
    )
    estimates = [comparison.difference.estimate for comparison in analysis.comparisons if comparison.difference]
    if halves := [found.half_width for found in estimates if found.half_width is not None]:
        text += f" Half of the intervals are narrower than ± {100 * statistics.median(halves):.1f} points"
        text += ": these seeds cannot show much smaller differences."
    title = f"Differences from {analysis.reference}"
    return [Section(title, text, drawn, [tables.overall_table(analysis)], shown)]


def _contrasts(comparisons: Iterable[Comparison]) -> dict[str, dict[str, Contrast]]:
    """Density -> label -> difference, the highest density first."""
    columns: dict[str, dict[str, Contrast]] = {}
    for comparison in sorted(comparisons, key=lambda c: -c.ours.density):
        if comparison.difference is not None:
            found = comparison.difference.estimate
            contrast = Contrast(found.mean, found.half_width, comparison.verdict in (BETTER, WORSE))
            columns.setdefault(percent(comparison.ours.density), {})[comparison.ours.label] = contrast
    return columns


def _sanity_section(analysis: Analysis) -> list[Section]:
    if not analysis.sanity:
        return []
    text = (
        "shuffle permutes the mask within every layer, reinit draws new initial weights under it, invert keeps the "
        "weights with the smallest scores. A method that loses nothing under shuffle has found layer densities and not "
        "weights; but no difference shown, with few seeds, is weak evidence of that.\n\nThe comparisons with the same "
        f"method without the check are a family of {tables.tested(analysis.sanity)} for Holm's correction."
    )
    shown = [tables.sanity_table(analysis, setting) for setting in analysis.titles]
    return [Section("Sanity checks", text, tables=[table for table in shown if table.rows])]


def _layer_section(analysis: Analysis, layers_at: float | None) -> list[Section]:
    drawn = []
    for setting, title in analysis.titles.items():
        densities = [density for density in analysis.densities(setting) if layers_at in (None, density)]
        if not densities:
            continue
        density = densities[-1]
        means, empty = {}, {}
        for label in analysis.labels_of(setting):
            group = analysis.group(setting, label, density)
            layers = [cell.outcome.layers for cell in group.cells if cell.outcome] if group else []
            if layers and layers[0]:
                means[label] = {
                    name: statistics.mean(run[name][1] / run[name][0] for run in layers if name in run and run[name][0])
                    for name in layers[0]
                }
                empty[label] = sorted(
                    {name for run in layers for name, (size, kept) in run.items() if size and not kept}
                )
        if means:
            figure = layer_map_figure(means, empty, f"{title}: {percent(density)} kept")
            whole = "all weights" if setting.measure == WEIGHTS else f"the {MEASURES[setting.measure]}"
            caption = f"Mean density of each layer over seeds, at {percent(density)} of {whole}: {title}."
            drawn.append((figure, caption))
    text = "Where each method spends its weights, at the lowest density." if layers_at is None else ""
    return [Section("Layer densities", text, drawn)] if drawn else []


def _collapse_section(analysis: Analysis) -> list[Section]:
    shown = [table for setting in analysis.titles if (table := tables.collapse_table(analysis, setting)).rows]
    if not shown:
        return []
    text = "Networks of which no path was left, layers without a weight, and warnings of pruning."
    return [Section("Collapsed layers", text, tables=shown)]


def _cost_section(analysis: Analysis) -> list[Section]:
    text = (
        "What came before the training that is measured: wall-clock time, with the trainings of methods that train "
        "before they prune, and memory at the peak above what was held before."
    )
    machines = distinct(machine(cell) for cell in analysis.results.done)
    if len(machines) > 1:
        text += f" Runs come from different hardware ({'; '.join(machines)}): times compare only within one."
    drawn, shown = [], []
    for setting, title in analysis.titles.items():
        measured: dict[str, dict[str, list[float]]] = {"seconds": {}, "peak memory [MiB]": {}}
        for group in analysis.groups:
            if group.setting == setting and group.sanity is None and not group.is_dense:
                seconds, peaks = group.measurements("prune_seconds"), group.measurements("prune_peak_bytes")
                measured["seconds"].setdefault(group.label, []).extend(seconds)
                measured["peak memory [MiB]"].setdefault(group.label, []).extend(value / 2**20 for value in peaks)
        panels = {name: column for name, column in measured.items() if any(column.values())}
        if panels:
            figure = cost_figure(panels, title, analysis.labels_of(setting))
            drawn.append((figure, f"Median (point) and range (bar) over all densities and seeds: {title}."))
            shown.append(Fold(f"Numbers: {title}", tables.cost_table(analysis, setting)))
    return [Section("Cost of pruning", text, drawn, folds=shown)] if drawn else []


def _frontier_section(analysis: Analysis) -> list[Section]:
    """Accuracy against the cost of finding a mask, where that was counted for two labels at least."""
    drawn = []
    for setting, title in analysis.titles.items():
        batch, unpruned = setting.facts["train"].get("batch_size"), _unpruned(analysis, setting)
        for density in analysis.densities(setting):
            offers = {}
            for label in analysis.labels_of(setting):
                group = analysis.group(setting, label, density)
                images = group.measurements("prune_images") if group is not None else []
                if images and batch and group is not None and group.estimate is not None:
                    accuracy = Point(group.estimate.mean, group.estimate.half_width)
                    offers[label] = Offer(statistics.median(images) / batch, accuracy)
            if len(offers) > 1:
                kept = f"{title}: {percent(density)} kept"
                caption = f"Mean test accuracy with 95 % t-intervals against cost; the line is the frontier: {kept}."
                drawn.append((frontier_figure(offers, _styles(analysis), kept, unpruned), caption))
    text = (
        "Cost is the images that went forward with gradients recorded before the training that is measured, in steps "
        "of that training. A method on the frontier is surpassed by none that costs as much or less."
    )
    return [Section("What a mask costs and what it is worth", text, drawn)] if drawn else []


def _gap_section(analysis: Analysis) -> list[Section]:
    failures, absences = tables.failure_table(analysis), tables.absence_table(analysis)
    folds = [Fold(f"Missing cells ({len(analysis.absent)})", absences)] if absences.rows else []
    if not (failures.rows or folds):
        return []
    text = f"{count(len(failures.rows), 'cell')} failed and {count(len(analysis.absent), 'cell')} not there."
    return [Section("Failed and missing cells", text, tables=[failures] if failures.rows else [], folds=folds)]


def _cell_section(analysis: Analysis) -> Section:
    folds = [Fold("What the methods' names stand for", usage_table(analysis))]
    for setting, title in analysis.titles.items():
        table = tables.cell_table(analysis.groups_of(setting))
        if table.rows:
            folds.append(Fold(f"{title}: {count(len(table.rows), 'cell')}", table))
    text = "Each command repeats one network from its seed, with the number that went into the tables above."
    return Section("Every number and its command", text, folds=folds)


def _styles(analysis: Analysis) -> Any:
    return label_styles({g.label: g.first.method for g in analysis.groups if g.sanity is None})
