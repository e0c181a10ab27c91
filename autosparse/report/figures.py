"""The figures of a report, drawn without pyplot: nothing global is touched and nothing is shown or stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from autosparse.report.style import (
    INK,
    MUTED,
    SMALL,
    MethodStyle,
    dress,
    layer_label,
    legend_above,
    method_styles,
    new_figure,
    percent,
    percent_ticks,
    plain,
    thinned,
)

_MOST_LAYER_LABELS = 40
_EMPTY_ROW = 0.055  # of the axis: what one method's row of empty layers takes
_LABEL_ROOM = 84  # characters that fit side by side under the axes


def layer_density_figure(densities: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """How much of each layer each method keeps.

    Args:
        densities: method -> layer name -> fraction of the layer's weights that is kept, 0 to 1. Layers appear in the
            given order; a layer that a method does not have leaves a gap in its line.
        title: over the figure.

    A layer without any weight has no place on the logarithmic axis: it is an x in the row "empty" at the bottom.
    """
    if not densities:
        raise ValueError("densities of no method: nothing to draw")
    layers = list(dict.fromkeys(layer for method in densities.values() for layer in method))
    table = {
        method: np.array([values.get(layer, math.nan) for layer in layers], dtype=float)
        for method, values in densities.items()
    }
    figure = new_figure(4.6, title)
    axes = figure.add_subplot()
    dress(axes, "layer, from input to output", "density: weights of the layer kept", grid="both")
    styles = method_styles(table)
    for method, values in table.items():
        axes.plot(
            np.arange(len(layers)),
            np.where(values > 0, values, math.nan),
            color=styles[method].colour,
            marker=styles[method].marker,
            markersize=5,
            linewidth=2.2 if method == "autos" else 1.4,
            zorder=4 if method == "autos" else 3,
            label=plain(method),
        )
    positive = np.concatenate([values[values > 0] for values in table.values()])
    smallest = float(positive.min()) if positive.size else 1e-3
    low = min(0.1, smallest / 1.3)
    empty = [method for method, values in table.items() if (values == 0).any()]
    axes.set_yscale("log")
    axes.set_ylim(low, 1.25)
    ticks = percent_ticks(low, 1.0)
    axes.set_yticks(ticks, [percent(tick) for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    if empty:
        middle = _draw_empty_rows(axes, {method: table[method] for method in empty}, styles, low)
        axes.set_yticks([*ticks, middle], [*(percent(tick) for tick in ticks), "empty"])
        tick = axes.yaxis.get_major_ticks()[-1]
        tick.gridline.set_visible(False)
        tick.label1.set(color="#b3261e", fontweight="bold")
    shown = thinned(len(layers), _MOST_LAYER_LABELS)
    axes.set_xticks(list(shown), [layer_label(layers[index]) for index in shown], rotation=90, fontsize=8)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    legend_above(axes, columns=min(6, len(table)))
    return figure


def _draw_empty_rows(
    axes: Axes, table: Mapping[str, np.ndarray], styles: Mapping[str, MethodStyle], low: float
) -> float:
    """Extend the axis below ``low`` by a shaded band with a row of x marks for each method that empties layers.

    Returns the middle of the band.
    """
    height = -math.log10(low) * _EMPTY_ROW * (len(table) + 1)  # decades
    bottom = low / 10**height
    axes.set_ylim(bottom, axes.get_ylim()[1])
    axes.axhspan(bottom, low, color="#fdecea", zorder=0)
    axes.axhline(low, color=MUTED, linewidth=0.8, zorder=1)
    for row, (method, values) in enumerate(table.items(), start=1):
        where = np.flatnonzero(values == 0)
        level = low / 10 ** (height * row / (len(table) + 1))
        axes.scatter(
            where,
            np.full(len(where), level),
            marker="x",
            s=34,
            linewidths=2,
            color=styles[method].colour,
            zorder=5,
            gid=f"empty:{method}",
        )
    return low / 10 ** (height / 2)


def curve_figure(
    history: Sequence[Mapping[str, float | None]], title: str, test_accuracy: float | None = None
) -> Figure:
    """Loss and accuracies over the epochs of one training run.

    Args:
        history: one record an epoch with ``epoch`` (from 0), ``train_loss`` (nats), ``train_accuracy`` and
            ``val_accuracy`` (fractions, 0 to 1; None where it was not measured).
        title: over the figure.
        test_accuracy: fraction of the test images that the trained network gets right, a point at the last epoch.
    """
    if not history:
        raise ValueError("a history of no epochs: nothing to draw")
    columns = {
        key: np.array([math.nan if (value := record.get(key)) is None else value for record in history], dtype=float)
        for key in ("epoch", "train_loss", "train_accuracy", "val_accuracy")
    }
    epochs = columns["epoch"]
    marker = "o" if len(history) <= 15 else ""
    figure = new_figure(3.5, title)
    loss, accuracy = figure.subplots(1, 2)
    dress(loss, "epoch", "training loss [nats]")
    dress(accuracy, "epoch", "accuracy [%]")
    loss.plot(epochs, columns["train_loss"], color="#0072b2", linewidth=1.8, marker=marker, markersize=4)
    for key, label, colour, style in (
        ("train_accuracy", "train (augmented)", "#0072b2", "-"),
        ("val_accuracy", "validation", "#d55e00", "--"),
    ):
        if np.isfinite(columns[key]).any():
            accuracy.plot(
                epochs, columns[key], style, color=colour, linewidth=1.8, marker=marker, markersize=4, label=label
            )
    if test_accuracy is not None:
        last = float(epochs[-1])
        accuracy.plot([last], [test_accuracy], "*", color=INK, markersize=13, zorder=5, clip_on=False)
        accuracy.annotate(
            f"test\n{percent(test_accuracy)}",
            (last, test_accuracy),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            fontweight="bold",
            color=INK,
            annotation_clip=False,
        )
    accuracy.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    if accuracy.get_legend_handles_labels()[0]:
        legend_above(accuracy, columns=2)
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.margins(x=0.03, y=0.08)
        if len(history) == 1:
            axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)
    return figure


def accuracy_figure(
    results: Mapping[str, Sequence[float]], title: str, baseline: tuple[str, Sequence[float]] | None = None
) -> Figure:
    """Accuracies of several methods, best mean first.

    Args:
        results: method -> accuracies (fractions, 0 to 1), one a seed.
        title: over the figure.
        baseline: name and accuracies of a reference such as the dense network, drawn as a line with a band.

    Small points are seeds, the bar beside them is their mean; the whisker and the band reach one sample standard
    deviation each way.
    """
    if not results or any(len(values) == 0 for values in results.values()):
        raise ValueError("a method without accuracies: nothing to draw")
    figure = new_figure(4.2, title)
    axes = figure.add_subplot()
    dress(axes, "", "test accuracy [%]")
    order = sorted(results, key=lambda method: -float(np.mean(results[method])))
    styles = method_styles([*results, *([baseline[0]] if baseline else [])])
    labels = []
    for position, method in enumerate(order):
        values = np.asarray(results[method], dtype=float)
        mean, spread = _mean_and_spread(values)
        style = styles[method]
        # Seeds on the left, their mean on the right, so that neither hides the other.
        offsets = np.linspace(-0.24, -0.02, len(values)) if len(values) > 1 else np.full(1, -0.13)
        axes.scatter(
            position + offsets, values, s=30, marker=style.marker, color=style.colour, alpha=0.7, zorder=3,
            linewidths=0, gid=f"seeds:{method}", label=plain(method),
        )  # fmt: skip
        axes.hlines(mean, position + 0.06, position + 0.3, color=style.colour, linewidth=3.5, zorder=4)
        if len(values) > 1:
            axes.errorbar(position + 0.18, mean, yerr=spread, color=style.colour, capsize=4, linewidth=1.6, zorder=4)
        labels.append(f"{plain(method)}\n{_mean_text(values)}")
    if baseline is not None:
        _draw_baseline(axes, *baseline, colour=styles[baseline[0]].colour)
    axes.set_xticks(range(len(order)), labels)
    axes.tick_params(axis="x", length=0)
    if len(order) * max(len(line) for label in labels for line in label.split("\n")) > _LABEL_ROOM:
        axes.tick_params(axis="x", labelsize=8, rotation=90)
    room = max(0.5, 1.5 - len(order) / 2)
    axes.set_xlim(-room, len(order) - 1 + room)
    axes.margins(y=0.08)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    return figure


def _draw_baseline(axes: Axes, name: str, accuracies: Sequence[float], colour: str) -> None:
    values = np.asarray(accuracies, dtype=float)
    mean, spread = _mean_and_spread(values)
    axes.axhline(mean, color=colour, linewidth=1.6, linestyle="--", zorder=2, gid="baseline")
    axes.axhspan(mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0, zorder=1)
    axes.annotate(
        f"{plain(name)}\n{_mean_text(values)}",
        (1, mean),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=SMALL,
        color=colour,
        annotation_clip=False,
    )


def _mean_and_spread(values: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation; a single value has no spread."""
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _mean_text(values: np.ndarray) -> str:
    mean, spread = _mean_and_spread(values)
    return f"{100 * mean:.2f}" + (f" ± {100 * spread:.2f} %" if len(values) > 1 else " %")
