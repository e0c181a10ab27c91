"""The figure of widths shows the widths, however many groups there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection

from autosparse.report.save import save_figure
from autosparse.report.widths_figure import widths_figure

FEW = {"stem": 16, "blocks.0.conv1": 32, "blocks.1.conv1": 64}


def axes_of(before: dict[str, int], after: dict[str, int]) -> Axes:
    figure = widths_figure(before, after, "a network")
    FigureCanvasAgg(figure).draw()
    return figure.axes[0]


def marks(axes: Axes, gid: str) -> list[float]:
    line = next(line for line in axes.lines if line.get_gid() == gid)
    return np.asarray(line.get_ydata()).tolist()


def bars(axes: Axes) -> dict[str, list[list[float]]]:
    """From ``removed`` and ``added`` to the ends of their bars."""
    found = [line for line in axes.collections if isinstance(line, LineCollection)]
    return {str(line.get_label()): [segment[:, 1].tolist() for segment in line.get_segments()] for line in found}


def ticks(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_xticklabels()]


def test_marks_are_widths_and_bars_lie_between_them() -> None:
    axes = axes_of(FEW, {"stem": 16, "blocks.0.conv1": 5, "blocks.1.conv1": 90})
    assert marks(axes, "before") == [16, 32, 64]
    assert marks(axes, "after") == [16, 5, 90]
    assert bars(axes) == {"removed": [[32, 5]], "added": [[64, 90]]}
    assert ticks(axes) == list(FEW)
    assert sorted(text.get_text() for text in axes.texts) == ["16", "32", "5", "64", "90"]


def test_a_group_that_is_not_named_is_as_it_was() -> None:
    axes = axes_of(FEW, {"stem": 1})
    assert marks(axes, "after") == [1, 32, 64]
    assert bars(axes) == {"removed": [[16, 1]]}


def test_many_groups_are_named_by_their_blocks() -> None:
    before = {f"features.stage{i}.layer{j}.conv": 32 for i in range(4) for j in range(20)} | {"head.conv": 64}
    axes = axes_of(before, dict.fromkeys(before, 8))
    assert ticks(axes) == [*(f"features.stage{i}" for i in range(4)), "head.conv"]
    assert axes.get_xticks().tolist() == [9.5, 29.5, 49.5, 69.5, 80]
    assert marks(axes, "after") == [8] * 81
    assert not axes.texts


def test_many_groups_without_blocks_show_some_names() -> None:
    before = {f"conv{index}": 8 for index in range(120)}
    assert ticks(axes_of(before, {})) == [f"conv{index}" for index in range(0, 120, 3)]


@pytest.mark.parametrize(("before", "after"), [({"a": 1}, {"a": 1}), ({"a": 2048}, {"a": 1}), ({"$a": 3}, {"$a": 7})])
def test_any_widths_can_be_drawn(before: dict[str, int], after: dict[str, int], tmp_path: Path) -> None:
    save_figure(widths_figure(before, after, "a $ network"), tmp_path / "widths.png")
    assert (tmp_path / "widths.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="widths of no group"):
        widths_figure({}, {}, "a network")
