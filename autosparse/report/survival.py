"""Figures of iterative pruning: what survived where, and how well that was predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator, StrMethodFormatter

from autosparse.report.style import (
    INK,
    MUTED,
    SMALL,
    TEXT,
    dress,
    layer_label,
    new_figure,
    percent,
    percent_ticks,
    thinned,
)

_MOST_LAYER_LABELS = 60
_MOST_ROUND_LABELS = 24
_MOST_COLUMNS = 40
_EMPTY = "#f3f4f6"


def survival_figure(survival: np.ndarray, layer_names: Sequence[str], densities: Sequence[float], title: str) -> Figure:
    """Heat map of the fraction of each layer alive in each round of iterative pruning.

    Args:
        survival: ``[layers, rounds]``, fractions from 0 to 1 of the layer's weights that are alive.
        layer_names: one a row, drawn from top to bottom.
        densities: one a column, fraction of the whole network's prunable weights that is alive.
        title: over the figure.

    Colours are logarithmic; a layer without any weight is a pale cell with an x.
    """
    survival = np.asarray(survival, dtype=float)
    if survival.shape != (len(layer_names), len(densities)) or survival.size == 0:
        raise ValueError(
            f"survival has shape {survival.shape}, not ({len(layer_names)} layers, {len(densities)} rounds)"
        )
    rows, columns = survival.shape
    height = min(12.0, 2.6 + 0.165 * max(rows, 10))
    figure = new_figure(height, title)
    axes = figure.add_subplot()
    dress(axes, "weights of the whole network alive in each round [%]", "layer, from input (top) to output", grid="")
    alive = survival[survival > 0]
    low = min(0.5, float(alive.min())) if alive.size else 0.01
    palette = colormaps["viridis"].with_extremes(bad=_EMPTY)
    image = axes.imshow(
        np.ma.masked_where(~(survival > 0), survival),
        aspect="auto",
        interpolation="nearest",
        cmap=palette,
        norm=LogNorm(low, 1.0),
    )
    empty_rows, empty_columns = np.nonzero(survival == 0)
    if len(empty_rows):
        size = float(np.clip(900 / max(rows, columns), 6, 30))
        axes.scatter(empty_columns, empty_rows, marker="x", s=size, linewidths=1.1, color="#b3261e", gid="empty")
        handle = Line2D([], [], marker="x", linestyle="", color="#b3261e", label="empty layer: no weight alive")
        axes.legend(
            handles=[handle], loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=SMALL, labelcolor=INK,
            borderaxespad=0.1,
        )  # fmt: skip
    shown = thinned(columns, _MOST_ROUND_LABELS)
    axes.set_xticks(list(shown), [percent(densities[index]).removesuffix(" %") for index in shown])
    if len(shown) > 12:
        axes.tick_params(axis="x", rotation=90)
    shown = thinned(rows, _MOST_LAYER_LABELS)
    axes.set_yticks(list(shown), [layer_label(layer_names[index]) for index in shown], fontsize=8)
    bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.05, aspect=6 * height)
    bar.set_label("weights of the layer alive", fontsize=TEXT, color=INK)
    bar.set_ticks(percent_ticks(low, 1.0))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    bar.ax.tick_params(labelsize=SMALL, colors=INK)
    bar.outline.set_visible(False)
    return figure


def prediction_figure(predicted: np.ndarray, true: np.ndarray, rounds: int, title: str) -> Figure:
    """Predicted survival of held-out weights against the true one.

    Args:
        predicted: ``[n]``, predicted rounds survived / ``rounds``.
        true: ``[n]``, rounds survived / ``rounds``: one of the ``rounds + 1`` values from 0 to 1.
        rounds: of pruning in the run that gave the labels.
        title: over the figure.

    For each true value: median, middle 50 % and middle 80 % of the predictions. A perfect prediction is the diagonal.
    The bars on top show how many weights stand behind each value.
    """
    predicted, true = np.ravel(predicted).astype(float), np.ravel(true).astype(float)
    if predicted.shape != true.shape or predicted.size == 0:
        raise ValueError(f"{predicted.size} predictions of {true.size} weights: give one each")
    levels = np.rint(true * rounds).astype(int)
    if levels.min() < 0 or levels.max() > rounds:
        raise ValueError(f"true survival must lie between 0 and 1; it reaches from {true.min():g} to {true.max():g}")
    counts = np.bincount(levels, minlength=rounds + 1)
    present = np.flatnonzero(counts)
    groups = np.split(predicted[np.argsort(levels, kind="stable")], np.cumsum(counts[present])[:-1])
    lowest, lower, median, upper, highest = np.array([np.quantile(g, (0.1, 0.25, 0.5, 0.75, 0.9)) for g in groups]).T
    x = present / rounds

    figure = new_figure(5.6, title)
    top, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 4.5))
    dress(axes, "true survival: share of the rounds", "predicted survival", grid="both")
    marker = "o" if len(x) <= _MOST_COLUMNS else ""
    axes.fill_between(x, lowest, highest, color="#d55e00", alpha=0.16, linewidth=0, label="middle 80 % of the weights")
    axes.fill_between(x, lower, upper, color="#d55e00", alpha=0.34, linewidth=0, label="middle 50 %")
    axes.plot(x, median, color="#d55e00", marker=marker, markersize=5, linewidth=2.2, label="median", zorder=4)
    axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1.2, label="perfect prediction", zorder=3)
    axes.set_xlim(-0.5 / rounds, 1 + 0.5 / rounds)
    axes.set_ylim(min(-0.02, float(lowest.min()) - 0.02), max(1.02, float(highest.max()) + 0.02))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.legend(loc="upper left", frameon=False, fontsize=SMALL, labelcolor=INK)

    dress(top, "", "weights")
    top.bar(x, counts[present], width=0.8 / rounds, color=MUTED)
    top.set_yscale("log")
    top.set_ylim(bottom=max(0.5, counts[present].min() / 5))
    top.yaxis.set_minor_locator(NullLocator())
    top.tick_params(axis="x", length=0)
    return figure
