"""The picture of a trigger shows what it watched, against what, and when it pruned."""

from __future__ import annotations

from typing import Any

import matplotlib.text
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from autosparse.report.save import figure_data_uri
from autosparse.report.trigger_figure import trigger_figure

FACTS: dict[str, Any] = {
    "trigger": "ArchitectureStable",
    "epoch": 4,
    "pruned_at_epoch": 4,
    "settled": True,
    "quantity": "Early Pruning Indicator",
    "threshold": 0.9,
    "wanted": "at least 0.9",
    "values": [None, 0.6, 0.8, 0.95],
}


def line(figure: Figure, gid: str) -> Line2D | None:
    return next((found for found in figure.findobj(Line2D) if found.get_gid() == gid), None)


def texts(figure: Figure) -> str:
    return "|".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def data(figure: Figure, gid: str) -> np.ndarray:
    """Points ``[n, 2]`` of a line; a line across the axes has two."""
    found = line(figure, gid)
    assert found is not None
    return np.asarray(found.get_xydata())


def test_it_shows_values_threshold_and_moment() -> None:
    figure = trigger_figure(FACTS, "when")
    np.testing.assert_array_equal(data(figure, "values"), [[1, np.nan], [2, 0.6], [3, 0.8], [4, 0.95]])
    assert data(figure, "threshold")[:, 1].tolist() == [0.9, 0.9]
    assert data(figure, "pruned")[:, 0].tolist() == [4, 4]
    axes = figure.axes[0]
    assert (axes.get_ylabel(), axes.get_yscale()) == ("Early Pruning Indicator", "linear")
    assert "threshold: at least 0.9" in texts(figure)
    assert "pruned after epoch 4" in texts(figure)
    assert "cap" not in texts(figure)


def test_it_says_when_the_cap_decided() -> None:
    assert "pruned after epoch 4:\nthe cap, not the threshold" in texts(trigger_figure({**FACTS, "settled": False}, ""))


def test_it_can_be_drawn_on_the_way_and_before_the_threshold_is_known() -> None:
    figure = trigger_figure({**FACTS, "pruned_at_epoch": None, "settled": False, "threshold": None}, "when")
    assert line(figure, "pruned") is line(figure, "threshold") is None
    assert "pruned" not in texts(figure)


@pytest.mark.parametrize(
    ("values", "threshold", "scale"),
    [
        ([0.5, 0.1], 0.05, "linear"),
        ([0.5, 0.1], 0.01, "log"),
        ([0.5, 0.0], 0.01, "linear"),
        ([0.5, 0.01], -1, "linear"),
    ],
)
def test_steep_positive_values_are_logarithmic(values: list[float], threshold: float, scale: str) -> None:
    facts = {**FACTS, "values": values, "threshold": threshold, "pruned_at_epoch": 2}
    assert trigger_figure(facts, "when").axes[0].get_yscale() == scale


def test_the_reason_is_written_away_from_the_curve() -> None:
    def height(values: list[float]) -> float:
        figure = trigger_figure({**FACTS, "values": values, "pruned_at_epoch": 2, "threshold": 0.5}, "when")
        found = figure.findobj(matplotlib.text.Annotation)
        return next(text.xy[1] for text in found if text.get_text().startswith("pruned"))

    assert height([0.1, 0.9]) < 0.5 < height([0.9, 0.1])


def test_nothing_measured_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no value in 3 epochs: nothing to draw"):
        trigger_figure({**FACTS, "values": [None] * 3, "pruned_at_epoch": 3}, "when")
    with pytest.raises(ValueError, match="no value in 0 epochs"):
        trigger_figure({**FACTS, "values": [], "pruned_at_epoch": 0}, "when")


def test_equal_facts_give_equal_pictures() -> None:
    assert figure_data_uri(trigger_figure(FACTS, "$ when")) == figure_data_uri(trigger_figure(FACTS, "$ when"))
