"""What every figure shares: colours by method, percentages, axes without clutter."""

from __future__ import annotations

import math
import textwrap
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#22272e"
MUTED = "#656d76"
GRID = "#d8dee4"
PAPER = "#ffffff"
#: Figures are this wide (inches): the text column of the page, so that nothing is scaled on a wide screen.
WIDTH = 7.8
TEXT = 10.0  # points
SMALL = 9.0
_TITLE_CHARACTERS = 72
_LABEL_CHARACTERS = 22


Dash = str | tuple[int, tuple[float, ...]]
_DASHED: Dash = (0, (5, 1.6))
_DOTTED: Dash = (0, (1.2, 1.4))
_MIXED: Dash = (0, (6, 1.5, 1.2, 1.5))


@dataclass(frozen=True)
class MethodStyle:
    """How one method looks in all figures; ``dash`` is a line style of matplotlib."""

    colour: str
    marker: str
    dash: Dash = "-"


# Okabe and Ito's colour-blind-safe set with Tol's muted one, and two greys for the references. There are more methods
# than hues that everyone can tell apart, so a family shares a hue, and marker and dash tell its members (and prints
# without colour) apart.
_KNOWN = {
    "dense": MethodStyle(INK, "P"),
    "random": MethodStyle("#8c8c8c", "D"),
    "magnitude": MethodStyle("#009e73", "^"),
    "magnitude-after-training": MethodStyle("#009e73", "v", _DASHED),
    # learned masks
    "autos": MethodStyle("#d55e00", "o"),
    "cts": MethodStyle("#a63603", "*", _DASHED),
    "autos-cts": MethodStyle("#d55e00", "X", _DASHED),
    "scout": MethodStyle("#e8743b", "s", _DASHED),
    # sensitivity of the loss
    "snip": MethodStyle("#0072b2", "s"),
    "iter-snip": MethodStyle("#3d94cc", "D", _DASHED),
    "force": MethodStyle("#1f4e79", "<", _MIXED),
    "prospr": MethodStyle("#56b4e9", "*"),
    "sbp-sr": MethodStyle("#2b7bba", "h", _DOTTED),
    # gradient flow
    "grasp": MethodStyle("#aa4499", "p"),
    "crop": MethodStyle("#cc79a7", "s"),
    "cropit": MethodStyle("#882255", "^", _DASHED),
    "earlycrop": MethodStyle("#661144", "X", _MIXED),
    # paths, without images
    "synflow": MethodStyle("#e69f00", "v"),
    "phew": MethodStyle("#b37700", "d", _DASHED),
    "npb": MethodStyle("#997700", "h", _MIXED),
    # sparse training
    "rigl": MethodStyle("#332288", "o"),
    "set": MethodStyle("#44aa99", ">"),
    "gmp": MethodStyle("#117733", "s", _MIXED),
    "granet": MethodStyle("#332288", "d", _DASHED),
    "granet-sparse": MethodStyle("#6655bb", "X", _DOTTED),
    # dense training first
    "ltr": MethodStyle("#661100", "p"),
    "sap": MethodStyle("#999933", "*", _DASHED),
}
_OTHERS = (
    MethodStyle("#aa4499", "v"),
    MethodStyle("#56b4e9", "X"),
    MethodStyle("#e69f00", "p"),
    MethodStyle("#332288", "h"),
    MethodStyle("#999933", "<"),
    MethodStyle("#cc79a7", ">"),
    MethodStyle("#661100", "d"),
)


def method_styles(names: Iterable[str]) -> dict[str, MethodStyle]:
    """A style for each name: fixed for our own methods, by the name's checksum for others.

    Two others whose checksums meet in one figure take neighbouring styles, whatever their order.
    """
    names = list(dict.fromkeys(names))
    # Methods for channels have an -s where the criterion also scores weights; the two are never in one figure.
    known = {name: name if name in _KNOWN else name.removesuffix("-s") for name in names}
    styles = {name: _KNOWN[own] for name, own in known.items() if own in _KNOWN}
    free = list(_OTHERS)
    for name in sorted(set(names) - set(styles)):
        first = zlib.crc32(name.encode()) % len(_OTHERS)
        wanted = [*_OTHERS[first:], *_OTHERS[:first]]
        styles[name] = next((style for style in wanted if style in free), wanted[0])
        if styles[name] in free:
            free.remove(styles[name])
    return {name: styles[name] for name in names}


# For further uses of one method in a figure: its colour with another marker and dash.
_VARIANTS: tuple[tuple[str, Dash], ...] = (("o", _DASHED), ("v", _DOTTED), ("X", _MIXED), ("d", "-"))


def label_styles(methods: Mapping[str, str]) -> dict[str, MethodStyle]:
    """A style for each label (label -> method): the method's own for the first of its labels, in order.

    Further labels of a method keep its colour and take another marker and dash.
    """
    known = method_styles(methods.values())
    uses: dict[str, int] = {}
    styles = {}
    for label, method in methods.items():
        use = uses[method] = uses.get(method, -1) + 1
        style = known[method]
        if use:
            others = [(marker, dash) for marker, dash in _VARIANTS if marker != style.marker]
            marker, dash = others[(use - 1) % len(others)]
            style = replace(style, marker=marker, dash=dash)
        styles[label] = style
    return styles


def percent(fraction: float) -> str:
    """``0.0123`` as ``1.23 %``: three significant digits, never an exponent."""
    value = 100 * fraction
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f} %"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def plain(text: str) -> str:
    """``text`` as matplotlib shows it unchanged: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def shortened(text: str, most: int) -> str:
    """``text`` as matplotlib shows it unchanged, cut to ``most`` characters."""
    return plain(text if len(text) <= most else f"{text[: most - 1]}…")


def layer_label(name: str) -> str:
    """A layer's name that fits on an axis: without ``.weight``, and only its last parts when it is long."""
    name = name.removesuffix(".weight")
    if len(name) <= _LABEL_CHARACTERS:
        return plain(name)
    tail = name[1 - _LABEL_CHARACTERS :]
    return plain("…" + (tail[tail.index(".") + 1 :] if "." in tail else tail))


def thinned(count: int, most: int) -> range:
    """Evenly spaced positions among ``count``, the first included, at most ``most``."""
    return range(0, count, max(1, math.ceil(count / most)))


def percent_ticks(low: float, high: float) -> list[float]:
    """Fractions to label on a logarithmic axis from ``low`` to ``high``: decades, and 2 and 5 within a short range."""
    decades = math.log10(high / low)
    steps = (1.0,) if decades > 3.2 else (1.0, 3.0) if decades > 1.6 else (1.0, 2.0, 5.0)
    stride = max(1, math.ceil(decades / 8))
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [step * 10.0**exponent for exponent in exponents if exponent % stride == 0 for step in steps]
    slack = 1 + 1e-9
    return [value for value in values if low / slack <= value <= high * slack]


def new_figure(height: float, title: str, characters: int = _TITLE_CHARACTERS) -> Figure:
    """An empty white figure with ``title``; its parts arrange themselves when it is drawn.

    Args:
        characters: of a line of the title; fewer leave room for a legend beside it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor=PAPER)
    wrapped = textwrap.fill(title, characters)
    figure.suptitle(plain(wrapped), x=0.015, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    return figure


def dress(axes: Axes, xlabel: str, ylabel: str, *, grid: str = "y") -> None:
    """Labels, quiet spines and a grid (``x``, ``y``, ``both`` or ``""``) behind the data."""
    axes.set_facecolor(PAPER)
    axes.set_xlabel(xlabel, fontsize=TEXT, color=INK)
    axes.set_ylabel(ylabel, fontsize=TEXT, color=INK)
    axes.tick_params(labelsize=SMALL, colors=INK, which="major")
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
    if grid in ("x", "both"):
        axes.xaxis.grid(True, color=GRID, linewidth=0.8)
    if grid in ("y", "both"):
        axes.yaxis.grid(True, color=GRID, linewidth=0.8)


def legend_above(axes: Axes, columns: int) -> None:
    """The legend in rows over the axes, where it can hide no data."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        borderaxespad=0.2,
        columnspacing=1.4,
        handletextpad=0.5,
    )
