"""The figure of what could be seen beforehand: survival in iterative pruning against each initial feature."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from scipy.stats import rankdata

from autosparse.report.style import INK, MUTED, SMALL, dress, new_figure, plain

_COLUMNS = 3
_GROUPS = 20
_NETWORK, _LAYER = "#d55e00", "#0072b2"


def mean_by_rank(values: np.ndarray, survival: np.ndarray, groups: int = _GROUPS) -> tuple[np.ndarray, np.ndarray]:
    """Mean survival of weights in groups of neighbouring ranks.

    Args:
        values: ``[n]``, of a feature. Equal values have the mean of their ranks, so that they stay together.
        survival: ``[n]``.
        groups: ranges of equally many ranks; ones without a weight are left out.

    Returns:
        The groups' places, mean ranks as fractions from 0 to 1, and their mean survivals.
    """
    ranks = _ranks(values)
    group = np.minimum((ranks * groups).astype(int), groups - 1)
    members = np.bincount(group, minlength=groups)
    present = members > 0
    places, means = (np.bincount(group, each, groups)[present] / members[present] for each in (ranks, survival))
    return places, means


def feature_survival_figure(
    features: np.ndarray, names: Sequence[str], layer: np.ndarray, survival: np.ndarray, title: str
) -> Figure:
    """A panel a feature: mean survival against the feature's rank, among all weights and among those of its layer.

    Args:
        features: ``[n, columns]``. names: of the columns. layer: ``[n]``, which layer a weight belongs to.
        survival: ``[n]``, the share of the rounds that a weight survived.
        title: over the figure.

    Lines of the second kind show survivals less the mean of the layer, plus that of the network. A feature that is the
    same in all of a layer has none.
    """
    if features.shape != (len(survival), len(names)) or not len(names):
        raise ValueError(f"features have shape {features.shape}, not ({len(survival)} weights, {len(names)} names)")
    rows = math.ceil(len(names) / _COLUMNS)
    figure = new_figure(1.0 + 1.55 * rows, title)
    grid = list(figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel())
    for unused in grid[len(names) :]:
        unused.set_visible(False)
    mean = float(survival.mean())
    # A layer's rank groups hold other weights than those of a layer of another size: its own mean is taken out.
    of_layer = np.bincount(layer, survival) / np.maximum(np.bincount(layer), 1)
    within = survival - of_layer[layer] + mean
    for place, (axes, name) in enumerate(zip(grid, names, strict=False)):
        dress(axes, "", "")
        axes.set_title(plain(name), fontsize=SMALL, color=INK, loc="left", pad=3)
        axes.axhline(mean, color=MUTED, linewidth=1, linestyle=(0, (4, 2)), gid="mean")
        x, y = mean_by_rank(features[:, place], survival)
        axes.plot(x, y, color=_NETWORK, marker="o", markersize=3.5, linewidth=1.6, label="rank in the network")
        ranks = _ranks_within(features[:, place], layer)
        if ranks is not None:
            x, y = mean_by_rank(ranks, within)
            axes.plot(x, y, color=_LAYER, marker="s", markersize=3, linewidth=1.4, label="rank in its layer")
        axes.tick_params(labelsize=8, labelbottom=place + _COLUMNS >= len(names))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    grid[0].set_xlim(0, 1)
    grid[0].set_ylim(bottom=0)
    figure.supxlabel("rank of the feature [%], lowest to highest", fontsize=SMALL, color=INK)
    figure.supylabel("mean survival [% of the rounds]", fontsize=SMALL, color=INK)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=SMALL, labelcolor=INK)
    return figure


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks as fractions, in the open interval from 0 to 1; equal values share the mean of theirs."""
    return (rankdata(values) - 0.5) / len(values)


def _ranks_within(values: np.ndarray, layer: np.ndarray) -> np.ndarray | None:
    """Each value's rank among those of its layer; None where every layer has one value only."""
    ranks = np.empty(len(values))
    for index in np.unique(layer):
        members = layer == index
        ranks[members] = _ranks(values[members])
    return None if (ranks == 0.5).all() else ranks
