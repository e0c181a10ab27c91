"""The picture of a trigger: what it watched after every epoch, its threshold, and when the network was pruned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from autosparse.report.style import INK, PAPER, SMALL, dress, legend_above, new_figure, plain

_VALUES, _THRESHOLD, _PRUNED = "#0072b2", "#d55e00", INK
_MOST_MARKERS = 40
_STEEP = 20.0  # values that span more than this ratio are on a logarithmic axis


def trigger_figure(facts: Mapping[str, Any], title: str) -> Figure:
    """What a trigger watched against epochs, with its threshold and the moment of pruning.

    Args:
        facts: of :meth:`autosparse.triggers.epochs.EpochTrigger.facts`, at the end of a training or on its way.
        title: over the figure.

    Raises:
        ValueError: nothing was measured: the cap, or the order to prune after a given epoch, came before any value.
    """
    values = np.array([math.nan if value is None else value for value in facts["values"]], dtype=float)
    epochs, known = np.arange(1, len(values) + 1), np.isfinite(values)
    if not known.any():
        raise ValueError(f"no value in {len(values)} epochs: nothing to draw")
    figure = new_figure(3.6, title)
    axes = figure.add_subplot()
    dress(axes, "epochs of dense training", plain(facts["quantity"]))
    marker = "o" if known.sum() <= _MOST_MARKERS else ""
    axes.plot(epochs, values, color=_VALUES, linewidth=1.8, marker=marker, markersize=4, zorder=3, gid="values")
    shown = [*values[known], *([] if facts["threshold"] is None else [facts["threshold"]])]
    if min(shown) > 0 and max(shown) > _STEEP * min(shown):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.margins(y=0.12)
    axes.set_xlim(-0.03 * len(values), 1.06 * len(values))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    if facts["threshold"] is not None:
        label = f"threshold: {plain(facts['wanted'])}"
        axes.axhline(
            facts["threshold"], color=_THRESHOLD, linewidth=1.4, linestyle=(0, (5, 1.6)), zorder=2, gid="threshold",
            label=label,
        )  # fmt: skip
        legend_above(axes, columns=1)
    if facts["pruned_at_epoch"] is not None:
        _mark(axes, facts, values)
    return figure


def _mark(axes: Axes, facts: Mapping[str, Any], values: np.ndarray) -> None:
    """A line at the epoch after which the network was pruned, with the reason, away from the curve."""
    epoch = facts["pruned_at_epoch"]
    axes.axvline(epoch, color=_PRUNED, linewidth=1.2, zorder=2, gid="pruned")
    value = values[epoch - 1]
    axes.plot([epoch], [value], "*", color=_PRUNED, markersize=13, zorder=5)
    below = axes.transLimits.transform(axes.transScale.transform((epoch, value)))[1] > 0.5
    reason = "" if facts["settled"] else ":\nthe cap, not the threshold"
    axes.annotate(
        f"pruned after epoch {epoch}{reason}",
        (epoch, 0.05 if below else 0.95),
        xycoords=("data", "axes fraction"),
        xytext=(-8, 0),
        textcoords="offset points",
        ha="right",
        va="bottom" if below else "top",
        fontsize=SMALL,
        fontweight="bold",
        color=_PRUNED,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
    )
