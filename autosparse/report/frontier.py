"""Accuracy against what finding the mask cost: which methods are worth their price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from autosparse.report.small_multiples import Point, fences
from autosparse.report.style import INK, MUTED, SMALL, MethodStyle, dress, new_figure, shortened

_MOST_LABEL = 26
#: Where a name may stand beside its point, in points of text: the first place that covers nothing is taken.
_PLACES = (
    (7, 0, "left"), (-7, 0, "right"), (0, 10, "center"), (0, -10, "center"), (7, 9, "left"), (7, -9, "left"),
    (-7, 21, "right"), (7, 21, "left"), (-7, -21, "right"), (7, -21, "left"),
)  # fmt: skip
#: The same for the frontier, whose line leaves a point to the right: above it first.
_ABOVE = (_PLACES[4], _PLACES[2], (-7, 9, "right"), *_PLACES)
_EXPENSIVE = (1, 2, 5)


@dataclass(frozen=True)
class Offer:
    """What a method gives for its price.

    Args:
        cost: in steps of training; 0 for a method that looks at no image.
        accuracy: a fraction, with its interval.
    """

    cost: float
    accuracy: Point


def best_offers(offers: Mapping[str, Offer]) -> list[str]:
    """The labels that no label of the same cost or less surpasses, from the cheapest on: the frontier."""
    found: list[str] = []
    for label in sorted(offers, key=lambda name: (offers[name].cost, -offers[name].accuracy.mean)):
        if not found or offers[label].accuracy.mean > offers[found[-1]].accuracy.mean:
            found.append(label)
    return found


def frontier_figure(
    offers: Mapping[str, Offer], styles: Mapping[str, MethodStyle], title: str, dense: Point | None = None
) -> Figure:
    """A point with its interval for each label, and the frontier as a line of steps.

    Args:
        offers: label -> cost and accuracy.
        styles: for every label.
        dense: the network before pruning, drawn as a line.

    Costs are on a logarithmic axis that begins with a place for 0. Labels far below all others, which have collapsed,
    are marks on the lower edge.
    """
    if not offers:
        raise ValueError("no offers: nothing to draw")
    figure = new_figure(4.6, title)
    axes = figure.add_subplot()
    dress(axes, "cost of finding the mask [steps of training]", "test accuracy [%]", grid="both")
    costs = [offer.cost for offer in offers.values()]
    smallest = min([cost for cost in costs if cost > 0], default=1.0)
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
    axes.set_xlim(-0.35 * smallest, max(4 * max(costs), 10 * smallest))
    low, high = _limits([offer.accuracy for offer in offers.values()], dense)
    axes.set_ylim(low, high)
    _draw_frontier(axes, offers)
    for label, offer in offers.items():
        style, mean = styles[label], offer.accuracy.mean
        if mean < low:
            axes.plot(offer.cost, low, "v", color=style.colour, markersize=7, clip_on=False, gid=f"below:{label}")
            continue
        axes.vlines(offer.cost, *offer.accuracy.ends, color=style.colour, linewidth=1.2, alpha=0.6, zorder=3)
        axes.plot(
            offer.cost, mean, style.marker, color=style.colour, markersize=6.5, markeredgecolor="white",
            markeredgewidth=0.5, zorder=5, gid=f"offer:{label}",
        )  # fmt: skip
    if dense is not None:
        axes.axhline(dense.mean, color=INK, linewidth=1.1, linestyle=(0, (5, 2)), zorder=2, gid="dense")
        axes.annotate(
            "dense", (1, dense.mean), xycoords=("axes fraction", "data"), xytext=(-4, 3), textcoords="offset points",
            ha="right", fontsize=SMALL, color=INK,
        )  # fmt: skip
    _name_costs(axes, smallest, max(costs))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    _name_offers(figure, axes, offers, styles, low)
    return figure


def _draw_frontier(axes: Axes, offers: Mapping[str, Offer]) -> None:
    best = [offers[label] for label in best_offers(offers)]
    x = [offer.cost for offer in best] + [axes.get_xlim()[1]]
    y = [offer.accuracy.mean for offer in best] + [best[-1].accuracy.mean]
    axes.step(x, y, where="post", color=MUTED, linewidth=1.4, zorder=2, gid="frontier")


def _limits(points: Sequence[Point], dense: Point | None) -> tuple[float, float]:
    lowest, _ = fences([point.mean for point in points])
    shown = [point for point in points if point.mean >= lowest]
    bottom, top = min(point.mean for point in shown), max(point.mean for point in shown)
    top = max(top, dense.mean) if dense is not None else top
    margin = max(0.08 * (top - bottom), 0.01)
    return bottom - margin, top + margin


def _name_costs(axes: Axes, smallest: float, largest: float) -> None:
    """0, and whole steps at decades with 2 and 5 between where there is room."""
    decades = range(int(np.floor(np.log10(smallest))), int(np.ceil(np.log10(max(largest, smallest)))) + 1)
    factors = _EXPENSIVE if len(decades) <= 3 else (1,)
    left, right = axes.get_xlim()
    ticks = [0.0] + [t for e in decades for f in factors if smallest <= (t := f * 10.0**e) <= right]
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(left, right)


def _name_offers(
    figure: Figure, axes: Axes, offers: Mapping[str, Offer], styles: Mapping[str, MethodStyle], low: float
) -> None:
    """Names beside the points, the frontier's first and bold, each where it covers no other name and no point."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # the layout is settled, so that the sizes of texts are known
    best = best_offers(offers)
    spots = {label: (offer.cost, max(offer.accuracy.mean, low)) for label, offer in offers.items()}
    pixels = axes.transData.transform(list(spots.values()))
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in pixels]
    frame = axes.get_window_extent()
    for label in [*best, *(name for name in offers if name not in best)]:
        places = _ABOVE if label in best else _PLACES
        for place in places:
            text = _name(axes, label, spots[label], place, styles[label].colour, label in best)
            box = text.get_window_extent(canvas.get_renderer())
            free = not any(box.overlaps(other) for other in taken)
            if free and frame.x0 - 4 <= box.x0 and box.x1 <= frame.x1 + 4:
                break
            text.remove()
        else:  # no free place: the first one, rather than no name
            text = _name(axes, label, spots[label], places[0], styles[label].colour, label in best)
        taken.append(text.get_window_extent(canvas.get_renderer()))


def _name(
    axes: Axes, label: str, spot: tuple[float, float], place: tuple[float, float, str], colour: str, bold: bool
) -> Text:
    dx, dy, side = place
    return axes.annotate(
        shortened(label, _MOST_LABEL), spot, xytext=(dx, dy), textcoords="offset points", ha=side, va="center",
        fontsize=8, color=colour, fontweight="bold" if bold else "normal", annotation_clip=False,
    )  # fmt: skip
