"""The figure of a shrunk network: the width of every channel group, before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from autosparse.report.style import GRID, INK, MUTED, dress, layer_label, legend_above, new_figure, thinned

_AFTER, _LOST, _GAINED = "#d55e00", "#f3d0b8", "#b9d9ee"
_FEW = 24  # groups that have room for their widths as numbers
_MOST_NAMES, _MOST_BLOCKS = 40, 16
_MOST_TICKS = 8


def widths_figure(before: Mapping[str, int], after: Mapping[str, int], title: str) -> Figure:
    """How many channels each group had, and how many it has.

    Args:
        before, after: channel group -> channels, at least 1. Groups appear in the order of ``before``; one that is not
            in ``after`` is as it was.
        title: over the figure.

    The axis of widths is logarithmic: wherever it lies, a bar of one length is one share of the channels.
    """
    if not before:
        raise ValueError("widths of no group: nothing to draw")
    names = list(before)
    was = np.array([before[name] for name in names], dtype=float)
    now = np.array([after.get(name, before[name]) for name in names], dtype=float)
    place = np.arange(len(names))
    room = min(1.0, _FEW / len(names))
    figure = new_figure(4.2, title)
    axes = figure.add_subplot()
    dress(axes, "channel group, from input to output", "channels")
    for changed, colour, label in ((now < was, _LOST, "removed"), (now > was, _GAINED, "added")):
        if changed.any():
            axes.vlines(place[changed], was[changed], now[changed], colour, linewidth=1.8 + 7 * room, label=label)
    axes.plot(place, was, "_", color=INK, markersize=3 + 11 * room, markeredgewidth=1.6, label="before", gid="before")
    axes.plot(place, now, "o", color=_AFTER, markersize=2.4 + 4 * room, zorder=4, label="after", gid="after")
    _scale(axes, np.concatenate([was, now]))
    if len(names) <= _FEW:
        _write_numbers(axes, was, now)
    _name_groups(axes, names)
    axes.set_xlim(-0.7, len(names) - 0.3)
    legend_above(axes, columns=4)
    return figure


def _scale(axes: Axes, widths: np.ndarray) -> None:
    """A logarithmic axis with round powers of two at the ticks, and room for numbers at both ends."""
    low, high = math.floor(math.log2(widths.min())), math.ceil(math.log2(widths.max()))
    stride = max(1, math.ceil((high - low + 1) / _MOST_TICKS))
    ticks = [2**exponent for exponent in range(low, high + 1, stride)]
    axes.set_yscale("log", base=2)
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(widths.min() / 1.5, widths.max() * 1.5)


def _name_groups(axes: Axes, names: Sequence[str]) -> None:
    """Every name where there is room; otherwise those of the blocks in which the groups lie, or some names."""
    blocks = _blocks(names)
    if len(names) <= _MOST_NAMES or not blocks:
        shown = thinned(len(names), _MOST_NAMES)
        axes.set_xticks(list(shown), [layer_label(names[index]) for index in shown], rotation=90, fontsize=8)
        return
    ends = np.cumsum([count for _, count in blocks])
    middles = [end - (count + 1) / 2 for end, (_, count) in zip(ends, blocks, strict=True)]
    axes.set_xticks(middles, [layer_label(name) for name, _ in blocks], rotation=90, fontsize=8)
    axes.tick_params(axis="x", length=0)
    for end in ends[:-1]:
        axes.axvline(end - 0.5, color=GRID, linewidth=0.8, zorder=1)


def _blocks(names: Sequence[str]) -> list[tuple[str, int]]:
    """The finest division into few blocks by the first parts of their names, with counts; empty if there is none."""
    for parts in range(max(name.count(".") for name in names), 0, -1):
        runs = groupby(".".join(name.split(".")[:parts]) for name in names)
        blocks = [(block, len(list(run))) for block, run in runs]
        if len(blocks) <= _MOST_BLOCKS:
            return blocks
    return []


def _write_numbers(axes: Axes, was: np.ndarray, now: np.ndarray) -> None:
    """The width before beside its mark and the width after beside its own, away from each other."""
    for place, (before, after) in enumerate(zip(was, now, strict=True)):
        up = after > before
        both = [(after, _AFTER, up)] if after == before else [(before, MUTED, not up), (after, _AFTER, up)]
        for width, colour, above in both:
            axes.annotate(
                f"{width:,.0f}", (place, width), xytext=(0, 5 if above else -6), textcoords="offset points",
                ha="center", va="bottom" if above else "top", fontsize=8, color=colour,
            )  # fmt: skip
