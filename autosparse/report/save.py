"""Figures as files and as ``data:`` URIs."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from autosparse.files import atomic_path

_DPI = 150
_MAX_SVG_BYTES = 200_000
_MEDIA_TYPES = {"svg": "image/svg+xml", "png": "image/png"}
# A clip path or marker: one kind letter and ten digits of a hash with a random salt.
_RANDOM_ID = re.compile(r"\b([a-z]{1,5})([0-9a-f]{10})\b")


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG (150 dots an inch); the file appears complete or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(_png(figure))


def figure_data_uri(figure: Figure) -> str:
    """``figure`` as the ``data:`` URI of an image that needs nothing else.

    The file format is that of :func:`image_of`.
    """
    suffix, data = image_of(figure)
    return f"data:{_MEDIA_TYPES[suffix]};base64,{base64.b64encode(data).decode('ascii')}"


def image_of(figure: Figure) -> tuple[str, bytes]:
    """``figure`` as an image file: its suffix (``svg`` or ``png``) and its bytes.

    Lines are sharp at any zoom as SVG; heat maps, and figures with so many points that SVG would be large, are PNG.
    Equal figures give equal bytes.
    """
    if not any(axes.images for axes in figure.axes):
        svg = _svg(figure)
        if len(svg) <= _MAX_SVG_BYTES:
            return "svg", svg
    return "png", _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_figure(buffer, format="svg", metadata={"Date": None})
    return _number_ids(buffer.getvalue().decode()).encode()


def _number_ids(svg: str) -> str:
    """Matplotlib salts its ids anew each time (the setting against it is global): number them as they appear."""
    ids: dict[str, str] = {}
    for kind, digits in re.findall(r'\bid="([a-z]{1,5})([0-9a-f]{10})"', svg):
        ids.setdefault(kind + digits, f"{kind}-{len(ids)}")
    return _RANDOM_ID.sub(lambda match: ids.get(match.group(), match.group()), svg)
