"""Accuracy against density for one method or for twenty: direct labels, or one panel each."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from autosparse.report.style import (
    INK,
    MUTED,
    SMALL,
    MethodStyle,
    dress,
    new_figure,
    percent,
    plain,
    shortened,
    thinned,
)

#: With more labels than this each gets a panel of its own.
MOST_LINES = 5
_COLUMNS = 4
_ROOM = 0.06  # of accuracy, that an interval may reach beyond all means before it is cut off
_FAR = 3.0  # Tukey's fence for "far out", in interquartile ranges: what is beyond is marked on the edge
_FOREIGN = "#c3c9d1"
_TITLE_CHARACTERS = 24
_ACCURACY_AXIS = "test accuracy [%]"
DENSITY_AXIS = "density: weights kept [%], sparser to the right"


@dataclass(frozen=True)
class Point:
    """A mean with half the width of its interval (None: a single value has none)."""

    mean: float
    half_width: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        spread = self.half_width or 0.0
        return self.mean - spread, self.mean + spread


Series = Mapping[float, Point]


def density_accuracy_figure(
    series: Mapping[str, Series],
    styles: Mapping[str, MethodStyle],
    title: str,
    dense: Point | None = None,
    axis: str = DENSITY_AXIS,
    ticks: Sequence[float] | None = None,
) -> Figure:
    """Accuracy against density, or another share: lines with bands for a few labels, one panel a label for many.

    Args:
        series: label -> density (a fraction) -> accuracy (a fraction) with its interval. Panels keep the order.
        styles: for every label.
        dense: the network before pruning, drawn as a line with a band.
        axis: what the shares are.
        ticks: shares to name on the axis; by default those of the points.

    Collapsed networks far below all others would squeeze these together: they are marks on the lower edge.
    """
    if not any(series.values()):
        raise ValueError("series of no label: nothing to draw")
    low, high = limits = _limits(series, dense)
    single = len(series) <= MOST_LINES
    figure, panels = _single_panel(title, axis) if single else _small_multiples(title, axis, len(series))
    for place, (label, line) in enumerate(series.items()):
        axes = panels[0] if single else panels[place]
        if not single:
            _draw_others(axes, [other for name, other in series.items() if name != label], low)
            axes.set_title(_two_lines(label), fontsize=SMALL, color=INK, loc="left", pad=3, linespacing=0.95)
        _draw_line(axes, label, line, styles[label], low)
    for axes in panels:
        if dense is not None:
            axes.axhline(dense.mean, color=INK, linewidth=1.1, linestyle=(0, (5, 2)), zorder=2, gid="dense")
            axes.axhspan(*np.clip(dense.ends, low, high), color=INK, alpha=0.1, linewidth=0, zorder=1)
    if single:
        _name_ends(panels[0], series, styles, dense, limits)
    _scale(panels, series, limits, ticks, few=not single)
    if any(point.mean < low for line in series.values() for point in line.values()):
        mark = Line2D([], [], marker="v", linestyle="", color=MUTED, markersize=7, label="far below the axis")
        figure.legend(handles=[mark], loc="outside upper right", frameon=False, fontsize=SMALL, labelcolor=INK)
    return figure


def _single_panel(title: str, axis: str) -> tuple[Figure, list[Axes]]:
    figure = new_figure(4.2, title)
    axes = figure.add_subplot()
    dress(axes, axis, _ACCURACY_AXIS)
    return figure, [axes]


def _small_multiples(title: str, axis: str, count: int) -> tuple[Figure, list[Axes]]:
    """``count`` panels in rows that share both axes; the lowest of each column shows the densities."""
    rows = math.ceil(count / _COLUMNS)
    figure = new_figure(0.8 + 1.6 * rows, title)
    grid = list(figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel())
    for unused in grid[count:]:
        unused.set_visible(False)
    for place, axes in enumerate(grid[:count]):
        dress(axes, "", "")
        axes.tick_params(labelsize=8, labelbottom=place + _COLUMNS >= count)
    figure.supxlabel(axis, fontsize=SMALL, color=INK)
    figure.supylabel(_ACCURACY_AXIS, fontsize=SMALL, color=INK)
    return figure, grid[:count]


def _draw_line(axes: Axes, label: str, line: Series, style: MethodStyle, low: float) -> None:
    x = np.array(sorted(line))
    y = np.array([line[density].mean for density in x])
    below, above = np.array([line[density].ends for density in x]).reshape(-1, 2).T
    if len(x) == 1:  # a band of no width would not be seen
        axes.vlines(x, np.maximum(below, low), above, color=style.colour, alpha=0.6, linewidth=1.6, zorder=3)
    else:
        axes.fill_between(x, below, above, color=style.colour, alpha=0.2, linewidth=0, zorder=3)
    axes.plot(
        x, y, color=style.colour, linestyle=style.dash, marker=style.marker, markersize=4.5, linewidth=1.8, zorder=5,
        gid=f"label:{label}",
    )  # fmt: skip
    if (far := y < low).any():
        axes.plot(
            x[far], np.full(far.sum(), low), "v", color=style.colour, markersize=7, markeredgecolor="white",
            zorder=6, clip_on=False, gid=f"below:{label}",
        )  # fmt: skip


def _draw_others(axes: Axes, others: Sequence[Series], low: float) -> None:
    """All other labels as one quiet background; what is off the scale is left out."""
    x: list[float] = []
    y: list[float] = []
    for line in others:
        densities = sorted(line)
        x += [*densities, math.nan]
        y += [*(mean if (mean := line[density].mean) >= low else math.nan for density in densities), math.nan]
    axes.plot(x, y, color=_FOREIGN, linewidth=0.7, zorder=2.5, gid="others")


def _two_lines(label: str) -> str:
    """A panel's title: at most two lines, cut where even these are too short."""
    lines = textwrap.wrap(label, _TITLE_CHARACTERS)
    if len(lines) > 2:
        lines = [lines[0], lines[1][: _TITLE_CHARACTERS - 1] + "…"]
    return plain("\n".join(lines))


def _name_ends(
    axes: Axes,
    series: Mapping[str, Series],
    styles: Mapping[str, MethodStyle],
    dense: Point | None,
    limits: tuple[float, float],
) -> None:
    """Names beside the lines' last points, pushed apart so that none covers another."""
    names = [
        (line[min(line)].mean, shortened(label, _TITLE_CHARACTERS), styles[label].colour)
        for label, line in series.items()
        if line
    ]
    if dense is not None:
        names.append((dense.mean, "dense", INK))
    names.sort(key=lambda entry: entry[0])
    step = (limits[1] - limits[0]) * 0.055
    heights = [min(max(height, limits[0]), limits[1]) for height, *_ in names]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + step)
    for index in range(len(heights) - 1, -1, -1):  # what was pushed out at the top comes back and pushes down
        heights[index] = min(heights[index], limits[1] - step * (len(heights) - 1 - index))
    for (_, name, colour), height in zip(names, heights, strict=True):
        axes.annotate(
            name, (1, height), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
            va="center", fontsize=SMALL, color=colour, annotation_clip=False,
        )  # fmt: skip


def _limits(series: Mapping[str, Series], dense: Point | None) -> tuple[float, float]:
    """Lower and upper end of the axis of accuracies: all means but collapsed ones, and most of their intervals."""
    points = [point for line in series.values() for point in line.values()]
    lowest, _ = fences([point.mean for point in points])
    shown = [point for point in points if point.mean >= lowest] + ([dense] if dense is not None else [])
    bottom, top = min(point.mean for point in shown), max(point.mean for point in shown)
    low = max(min(point.ends[0] for point in shown), bottom - _ROOM)
    high = min(max(point.ends[1] for point in shown), top + _ROOM)
    margin = max(0.04 * (high - low), 0.005)
    return low - margin, high + margin


def _scale(
    panels: Sequence[Axes],
    series: Mapping[str, Series],
    limits: tuple[float, float],
    ticks: Sequence[float] | None,
    few: bool,
) -> None:
    """A logarithmic axis of shares with a tick at each, from the highest on the left to the lowest."""
    densities = sorted({density for line in series.values() for density in line}, reverse=True)
    panels[0].set_xscale("log")
    left, right = densities[0] * 1.25, densities[-1] / 1.25
    panels[0].set_xlim(left, right)
    panels[0].set_ylim(*limits)
    panels[0].yaxis.set_major_locator(MaxNLocator(nbins=5 if few else 7, steps=[1, 2, 5, 10]))
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    if ticks is not None:
        densities = [tick for tick in ticks if right <= tick <= left]
    shown = [densities[index] for index in thinned(len(densities), 5 if few else 12)]
    for axes in panels:
        axes.set_xticks(shown, [percent(density).removesuffix(" %") for density in shown])
        axes.xaxis.set_minor_locator(NullLocator())


def fences(values: Sequence[float]) -> tuple[float, float]:
    """The range that holds all values but those far out."""
    lower, upper = np.quantile(values, (0.25, 0.75))
    reach = _FAR * (upper - lower)
    near = [value for value in values if lower - reach <= value <= upper + reach]
    return min(near), max(near)
