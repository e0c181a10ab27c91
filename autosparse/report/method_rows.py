"""Figures with a row for each method, so that twenty fit: differences, ranks, costs and layer densities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from autosparse.report.small_multiples import Point, fences
from autosparse.report.style import (
    GRID,
    INK,
    MUTED,
    SMALL,
    dress,
    layer_label,
    new_figure,
    percent,
    percent_ticks,
    plain,
    shortened,
    thinned,
)

_MOST_LAYER_LABELS = 60
_MOST_LABEL = 34  # characters of a row's label
_ROW = 0.225  # inches that a row of points takes
_BETTER, _WORSE = "#0072b2", "#d55e00"


@dataclass(frozen=True)
class Contrast(Point):
    """A difference; ``shown`` when it holds after correction for all comparisons."""

    shown: bool = False


def difference_figure(
    columns: Mapping[str, Mapping[str, Contrast]], title: str, reference: str, labels: Sequence[str]
) -> Figure:
    """Differences from a reference with their intervals: a panel a column, a row a label.

    Args:
        columns: column -> label -> difference (fractions of accuracy). A filled point is a difference that is shown;
            a hollow grey one is not.
        labels: rows from top to bottom.
    """
    figure, panels = _row_panels(title, labels, len(columns), beside_legend=34)
    reach = _reach([contrast for column in columns.values() for contrast in column.values()])
    for axes, (name, column) in zip(panels, columns.items(), strict=True):
        axes.axvline(0, color=INK, linewidth=1, zorder=2)
        for row, label in enumerate(labels):
            if label in column:
                _draw_contrast(axes, row, column[label], reach, f"difference:{name}:{label}")
        axes.set_xlim(-reach, reach)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, symmetric=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_signed_points))
        axes.set_title(name, fontsize=SMALL, color=INK)
    figure.supxlabel(f"difference from {plain(reference)} [points of accuracy]", fontsize=SMALL, color=INK)
    marks = {"better": (_BETTER, _BETTER), "worse": (_WORSE, _WORSE), "no difference shown": (MUTED, "white")}
    handles = [
        Line2D([], [], marker="o", linestyle="-", color=edge, markerfacecolor=face, markersize=5, label=name)
        for name, (edge, face) in marks.items()
    ]
    _legend(figure, handles)
    return figure


def _reach(contrasts: Sequence[Contrast]) -> float:
    """Where an axis around 0 ends: beyond all means but those far out, and most of their intervals."""
    low, high = fences([contrast.mean for contrast in contrasts])
    largest = max(-low, high) + 0.005
    ends = [abs(end) for contrast in contrasts if low <= contrast.mean <= high for end in contrast.ends]
    return 1.05 * min(max(ends), 2 * largest)


def _draw_contrast(axes: Axes, row: int, contrast: Contrast, reach: float, gid: str) -> None:
    """A point with its interval; an arrow on the edge where it lies beyond the axis."""
    colour = MUTED if not contrast.shown else _BETTER if contrast.mean > 0 else _WORSE
    low, high = np.clip(contrast.ends, -2 * reach, 2 * reach)
    axes.hlines(row, low, high, color=colour, linewidth=1.4, zorder=3)
    inside = abs(contrast.mean) <= reach
    marker = "o" if inside else ">" if contrast.mean > 0 else "<"
    axes.plot(
        [float(np.clip(contrast.mean, -reach, reach))], [row], marker, color=colour, markersize=5 if inside else 7,
        zorder=4, markeredgewidth=1.2, markerfacecolor=colour if contrast.shown else "white", clip_on=inside, gid=gid,
    )  # fmt: skip


def _signed_points(value: float, _: object) -> str:
    points = 100 * value
    return "0" if abs(points) < 1e-9 else f"{points:+g}".replace("-", "−")


def rank_figure(mean_ranks: Mapping[str, float], title: str, critical_difference: float | None = None) -> Figure:
    """Mean ranks, best on top; a band covers what is not told apart from the best.

    Args:
        mean_ranks: label -> mean rank, 1 the best, in the order of the rows.
    """
    figure, (axes,) = _row_panels(title, list(mean_ranks), 1, beside_legend=48)
    best = min(mean_ranks.values())
    if critical_difference is not None:
        axes.axvspan(best, best + critical_difference, color=GRID, alpha=0.6, linewidth=0, zorder=1)
        _legend(figure, [Patch(color=GRID, alpha=0.6, label="not told apart from the best")])
    rows = np.arange(len(mean_ranks))
    axes.plot(list(mean_ranks.values()), rows, "o", color=_BETTER, markersize=6, zorder=4, gid="ranks")
    axes.set_xlim(0.6, len(mean_ranks) + 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.set_xlabel("mean rank (1 is the highest accuracy)", fontsize=SMALL)
    return figure


def cost_figure(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str, labels: Sequence[str]) -> Figure:
    """What pruning took: a panel a quantity, a row a label, the median as a point on its range.

    Args:
        panels: axis title -> label -> positive values; a label that was not measured has an empty row.
    """
    figure, drawn = _row_panels(title, labels, len(panels), beside_legend=None)
    for axes, (name, column) in zip(drawn, panels.items(), strict=True):
        axes.set_xscale("log")
        for row, label in enumerate(labels):
            if values := [value for value in column.get(label, ()) if value > 0]:
                axes.hlines(row, min(values), max(values), color=_BETTER, linewidth=2.2, alpha=0.45, zorder=3)
                axes.plot([float(np.median(values))], [row], "o", color=_BETTER, markersize=5, zorder=4)
        axes.set_xlabel(name, fontsize=SMALL)
        low, high = axes.get_xlim()
        middle, decade = math.sqrt(low * high), math.sqrt(10)
        axes.set_xlim(min(low / 1.1, middle / decade), max(high * 1.1, middle * decade))
        ticks = percent_ticks(*axes.get_xlim())
        axes.set_xticks(ticks, [f"{tick:,g}" if tick < 1e6 else f"{tick:.0e}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    return figure


def layer_map_figure(
    densities: Mapping[str, Mapping[str, float]], empty: Mapping[str, Sequence[str]], title: str
) -> Figure:
    """Heat map of layer densities: a row a label, a column a layer.

    Args:
        densities: label -> layer -> mean fraction of its weights that is kept; layers in the given order.
        empty: label -> layers that kept nothing in at least one run, marked with an x.
    """
    layers = list(dict.fromkeys(layer for row in densities.values() for layer in row))
    table = np.array([[row.get(layer, math.nan) for layer in layers] for row in densities.values()])
    alive = table[table > 0]
    low, high = (float(alive.min()) / 1.05, float(alive.max()) * 1.05) if alive.size else (0.01, 1.0)
    height = 2.0 + _ROW * max(len(densities), 7)
    # Where layers are empty a legend stands beside the title.
    figure = new_figure(height, title, 48) if any(empty.values()) else new_figure(height, title)
    axes = figure.add_subplot()
    dress(axes, "layer, from input to output", "", grid="")
    image = axes.imshow(
        np.ma.masked_where(~(table > 0), table), aspect="auto", interpolation="nearest",
        cmap=colormaps["viridis"].with_extremes(bad="#f3f4f6"), norm=LogNorm(low, high),
    )  # fmt: skip
    marks = [(layers.index(layer), row) for row, label in enumerate(densities) for layer in empty.get(label, ())]
    if marks:
        columns, rows = zip(*marks, strict=True)
        axes.scatter(columns, rows, marker="x", s=26, linewidths=1.2, color="#e0352b", zorder=5, gid="empty")
        handle = Line2D([], [], marker="x", linestyle="", color="#e0352b", label="empty in at least one run")
        _legend(figure, [handle])
    shown = thinned(len(layers), _MOST_LAYER_LABELS)
    axes.set_xticks(list(shown), [layer_label(layers[index]) for index in shown], rotation=90, fontsize=8)
    axes.set_yticks(range(len(densities)), [shortened(label, _MOST_LABEL) for label in densities], fontsize=SMALL)
    bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.05, aspect=6 * height)
    bar.set_label("weights kept", fontsize=SMALL, color=INK)
    ticks = percent_ticks(low, high)
    bar.set_ticks(ticks if len(ticks) > 1 else [low, high])
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.outline.set_visible(False)
    return figure


def _row_panels(
    title: str, labels: Sequence[str], count: int, *, beside_legend: int | None
) -> tuple[Figure, list[Axes]]:
    """Panels side by side that share rows, one for each label, the first on top.

    Args:
        beside_legend: characters of a line of the title beside a legend; ``None`` without one.
    """
    height = 1.5 + _ROW * len(labels)
    figure = new_figure(height, title) if beside_legend is None else new_figure(height, title, beside_legend)
    panels = list(figure.subplots(1, count, sharey=True, squeeze=False).ravel())
    for axes in panels:
        dress(axes, "", "", grid="both")
        axes.tick_params(axis="x", labelsize=8)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    panels[0].set_yticks(range(len(labels)), [shortened(label, _MOST_LABEL) for label in labels])
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    return figure, panels


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    figure.legend(
        handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=SMALL, labelcolor=INK
    )
