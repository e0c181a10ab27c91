"""The figure of a scorer's features: how much of the mask each of them decides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from autosparse.explaining import FeatureWorth
from autosparse.report.style import dress, legend_above, new_figure, plain

_BETWEEN, _WITHIN = "#d55e00", "#f0b48a"


def worth_figure(worth: Sequence[FeatureWorth], title: str) -> Figure:
    """One bar a feature: the kept weights that change without it, moved between layers or exchanged within them."""
    if not worth:
        raise ValueError("the worth of no feature: nothing to draw")
    figure = new_figure(1.3 + 0.27 * len(worth), title)
    axes = figure.add_subplot()
    dress(axes, "kept weights that change when the feature is the same for all weights [%]", "", grid="x")
    place = np.arange(len(worth))
    between = np.array([entry.between_layers for entry in worth])
    within = np.array([entry.within_layers for entry in worth])
    axes.barh(place, between, color=_BETWEEN, height=0.68, label="moved to other layers", zorder=3)
    axes.barh(place, within, left=between, color=_WITHIN, height=0.68, label="exchanged within layers", zorder=3)
    axes.set_yticks(place, [plain(entry.feature) for entry in worth])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    axes.set_xlim(0, max(0.01, float((between + within).max()) * 1.05))
    legend_above(axes, columns=2)
    return figure
