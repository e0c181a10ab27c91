"""Survival against what could be seen beforehand: the ranks, the figure, and the page of an IRP file."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import call, error_of
from matplotlib.axes import Axes

from autosparse.report.feature_survival import feature_survival_figure, mean_by_rank


def test_means_go_by_rank_and_equal_values_stay_together() -> None:
    values = np.array([30.0, 10.0, 20.0, 40.0])
    places, means = mean_by_rank(values, np.array([1.0, 0.0, 0.5, 0.25]), groups=2)
    np.testing.assert_allclose(places, [0.25, 0.75])
    np.testing.assert_allclose(means, [0.25, 0.625])
    places, means = mean_by_rank(np.array([5.0, 5.0, 5.0, 9.0]), np.array([0.0, 0.5, 1.0, 0.25]), groups=4)
    np.testing.assert_allclose(places, [0.375, 0.875])
    np.testing.assert_allclose(means, [0.5, 0.25])


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for line in axes.get_lines()
        if line.get_gid() != "mean"
    }


def test_the_figure_tells_ranks_in_the_network_from_ranks_in_the_layer() -> None:
    # Layer 1 survives longer and has the larger values; within either layer the value says nothing.
    layer = np.array([0, 0, 1, 1])
    features = np.array([[1.0, 7.0], [2.0, 7.0], [3.0, 8.0], [4.0, 8.0]])
    figure = feature_survival_figure(features, ["a", "b"], layer, np.array([0.2, 0.2, 0.6, 0.6]), "title")
    first, second = (axes for axes in figure.axes if axes.get_visible())
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["a", "b"]
    found = lines(first)
    np.testing.assert_allclose(found["rank in the network"], [[0.125, 0.375, 0.625, 0.875], [0.2, 0.2, 0.6, 0.6]])
    np.testing.assert_allclose(found["rank in its layer"], [[0.25, 0.75], [0.4, 0.4]])
    found = lines(second)  # the same in all of a layer
    assert list(found) == ["rank in the network"]
    np.testing.assert_allclose(found["rank in the network"], [[0.25, 0.75], [0.2, 0.6]])


def test_names_must_fit_the_features() -> None:
    with pytest.raises(ValueError, match="not \\(4 weights, 1 names\\)"):
        feature_survival_figure(np.ones((4, 2)), ["a"], np.zeros(4, int), np.ones(4), "title")


def test_report_of_an_irp_file(irp_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figures = tmp_path / "irp.html", tmp_path / "figures"
    arguments = ("report", irp_file, "--out", out, "--figures", figures)
    assert call(capsys, *arguments).status == 0
    page = out.read_text(encoding="utf-8")
    assert page.count('src="data:image/') == len(list(figures.iterdir())) == 2
    assert "by trained magnitude, with one threshold for the whole network" in page
    assert "--force" in error_of(call(capsys, *arguments))


@pytest.mark.parametrize(("option", "value"), [("--reference", "random"), ("--layers-at", "0.1")])
def test_options_of_benchmarks_are_refused(
    option: str, value: str, irp_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "irp.html"
    assert f"{option} is for the folder" in error_of(call(capsys, "report", irp_file, "--out", out, option, value))
    assert not out.exists()


def test_a_run_without_settings_is_one_line(irp_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "damaged.h5"
    path.write_bytes(irp_file.read_bytes())
    with h5py.File(path, "r+") as file:
        (run,) = file["runs"].values()
        settings = json.loads(run.attrs["config"])
        del settings["train"]
        run.attrs["config"] = json.dumps(settings)
    message = error_of(call(capsys, "report", path, "--out", tmp_path / "irp.html"))
    assert "damaged.h5 is damaged, truncated or no IRP file (config has no train of type dict)" in message.replace(
        "\n", " "
    )
    assert not (tmp_path / "irp.html").exists()


def test_a_file_that_is_no_irp_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    message = error_of(call(capsys, "report", path, "--out", tmp_path / "irp.html")).replace("\n", " ")
    assert "notes.txt is damaged, truncated or no IRP file" in message
    assert not (tmp_path / "irp.html").exists()
