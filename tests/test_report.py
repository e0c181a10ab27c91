"""What a report promises: figures show the numbers given, the page needs nothing but itself, files appear whole."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from autosparse.errors import AutoSparseError
from autosparse.report.figures import accuracy_figure, curve_figure, layer_density_figure
from autosparse.report.page import Section, render_page, write_page
from autosparse.report.save import figure_data_uri, save_figure
from autosparse.report.style import layer_label, method_styles, percent, percent_ticks, thinned
from autosparse.report.survival import prediction_figure, survival_figure
from autosparse.report.tables import Table, markdown_table

LAYERS = ["conv.weight", "blocks.0.conv1.weight", "classifier.weight"]
DENSITIES = {
    "autos": dict(zip(LAYERS, (0.5, 0.02, 0.3), strict=True)),
    "snip": dict(zip(LAYERS, (0.4, 0.0, 0.1), strict=True)),
}


def points(figure: Figure, gid: str) -> np.ndarray:
    """Positions ``[n, 2]`` of the scatter with this id."""
    found = [artist for artist in figure.findobj(PathCollection) if artist.get_gid() == gid]
    assert len(found) == 1
    return np.asarray(found[0].get_offsets())


def tick_labels(axis: object) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]  # type: ignore[attr-defined]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


# --- figures -------------------------------------------------------------------------------------------------------


def test_density_has_one_line_a_method_with_the_given_values() -> None:
    axes = layer_density_figure(DENSITIES, "densities").axes[0]
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in axes.get_lines() if line.get_marker() != "None"}
    assert set(lines) == {"autos", "snip"}
    np.testing.assert_array_equal(lines["autos"], [0.5, 0.02, 0.3])
    np.testing.assert_array_equal(lines["snip"], [0.4, math.nan, 0.1])
    assert axes.get_yscale() == "log"
    assert tick_labels(axes.xaxis) == ["conv", "blocks.0.conv1", "classifier"]


def test_density_marks_empty_layers_below_every_density() -> None:
    figure = layer_density_figure(DENSITIES, "densities")
    marks = points(figure, "empty:snip")
    assert marks[:, 0].tolist() == [1]
    assert figure.axes[0].get_ylim()[0] < marks[0, 1] < 0.02
    assert "empty" in tick_labels(figure.axes[0].yaxis)
    assert not [artist for artist in figure.findobj(PathCollection) if artist.get_gid() == "empty:autos"]


def test_density_without_empty_layers_says_nothing_of_them() -> None:
    figure = layer_density_figure({"random": {"a": 0.02, "b": 0.02}}, "uniform")
    assert "empty" not in tick_labels(figure.axes[0].yaxis)


def test_density_of_emptied_networks_and_of_missing_layers() -> None:
    figure = layer_density_figure({"snip": {"a": 0.0, "b": 0.0}, "autos": {"a": 0.5}}, "odd")
    line = next(line for line in figure.axes[0].get_lines() if line.get_label() == "autos")
    np.testing.assert_array_equal(line.get_ydata(), [0.5, math.nan])
    assert len(points(figure, "empty:snip")) == 2
    assert figure_data_uri(layer_density_figure({"snip": {"a": 0.0}}, "nothing left"))


def test_many_layers_get_few_labels() -> None:
    axes = layer_density_figure({"random": {f"layer{i}": 0.1 for i in range(100)}}, "deep").axes[0]
    assert tick_labels(axes.xaxis) == [f"layer{i}" for i in range(0, 100, 3)]


def test_curves_show_loss_accuracies_and_test_point() -> None:
    history = [
        {"epoch": 0, "train_loss": 2.0, "train_accuracy": 0.3, "val_accuracy": 0.4},
        {"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.6, "val_accuracy": 0.5},
    ]
    loss, accuracy = curve_figure(history, "run", 0.45).axes
    assert np.asarray(loss.get_lines()[0].get_xydata()).tolist() == [[0, 2.0], [1, 1.0]]
    train, validation, test = (np.asarray(line.get_xydata()).tolist() for line in accuracy.get_lines())
    assert train == [[0, 0.3], [1, 0.6]]
    assert validation == [[0, 0.4], [1, 0.5]]
    assert test == [[1, 0.45]]
    assert [text.get_text() for text in accuracy.texts] == ["test\n45 %"]


def test_curves_without_validation() -> None:
    history = [{"epoch": 0, "train_loss": 2.0, "train_accuracy": 0.3, "val_accuracy": None}]
    _, accuracy = curve_figure(history, "run").axes
    assert [line.get_label() for line in accuracy.get_lines()] == ["train (augmented)"]


def test_survival_is_a_logarithmic_map_of_the_array_with_empty_cells_marked() -> None:
    survival = np.array([[1.0, 0.5, 0.25], [1.0, 0.1, 0.0]])
    figure = survival_figure(survival, ["a.weight", "b.weight"], [1.0, 0.4, 0.1234], "map")
    axes, bar = figure.axes
    (image,) = axes.images
    shown = image.get_array()
    assert isinstance(shown, np.ma.MaskedArray)
    assert shown.shape == (2, 3)
    np.testing.assert_array_equal(shown.filled(0), survival)
    assert isinstance(image.norm, LogNorm)
    assert (image.norm.vmin, image.norm.vmax) == (0.1, 1.0)
    assert points(figure, "empty").tolist() == [[2, 1]]
    assert tick_labels(axes.xaxis) == ["100", "40", "12.3"]
    assert tick_labels(axes.yaxis) == ["a", "b"]
    assert tick_labels(bar.yaxis)[0] == "10 %"


def test_survival_refuses_names_or_densities_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\), not \(1 layers, 3 rounds\)"):
        survival_figure(np.ones((2, 3)), ["a"], [1.0, 0.5, 0.2], "map")


def test_prediction_shows_quantiles_for_each_true_value() -> None:
    first, last = np.linspace(0.0, 0.4, 101), np.linspace(0.5, 1.0, 11)
    predicted, true = np.concatenate([last, first]), np.repeat([1.0, 0.0], [11, 101])
    top, axes = prediction_figure(predicted, true, 4, "held out").axes
    median, diagonal = axes.get_lines()
    np.testing.assert_allclose(np.asarray(median.get_xydata()), [[0, 0.2], [1, 0.75]])
    assert np.asarray(diagonal.get_xydata()).tolist() == [[0, 0], [1, 1]]
    wide, narrow = (band.get_paths()[0].vertices for band in axes.collections)
    np.testing.assert_allclose(sorted({round(y, 6) for x, y in np.asarray(wide) if x == 0}), [0.04, 0.36])
    np.testing.assert_allclose(sorted({round(y, 6) for x, y in np.asarray(narrow) if x == 0}), [0.1, 0.3])
    assert [bar.get_height() for bar in top.patches] == [101, 11]  # type: ignore[attr-defined]


def test_prediction_refuses_labels_in_rounds() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        prediction_figure(np.array([0.5, 0.5]), np.array([0.0, 4.0]), 4, "held out")


def test_accuracies_are_sorted_and_show_every_seed() -> None:
    results = {"random": [0.80, 0.82], "autos": [0.91, 0.93], "snip": [0.9]}
    figure = accuracy_figure(results, "accuracy", ("dense", [0.94, 0.96]))
    axes = figure.axes[0]
    assert tick_labels(axes.xaxis) == ["autos\n92.00 ± 1.41 %", "snip\n90.00 %", "random\n81.00 ± 1.41 %"]
    assert points(figure, "seeds:random")[:, 1].tolist() == [0.80, 0.82]
    assert np.round(points(figure, "seeds:random")[:, 0]).tolist() == [2, 2]
    (dense,) = (line for line in axes.get_lines() if line.get_gid() == "baseline")
    assert np.asarray(dense.get_ydata())[0] == pytest.approx(0.95)
    assert "dense\n95.00 ± 1.41 %" in texts(figure)


@pytest.mark.parametrize("results", [{}, {"autos": []}])
def test_accuracies_of_nothing_are_refused(results: dict[str, Sequence[float]]) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        accuracy_figure(results, "accuracy")


def test_dollar_signs_are_no_formulas() -> None:
    figure = layer_density_figure({"$\\method$": {"$a^$": 0.1}}, "costs $\\nothing$")
    assert figure_data_uri(figure).startswith("data:image/svg+xml;base64,")


def test_styles_do_not_depend_on_the_company() -> None:
    ours = ["autos", "snip", "magnitude", "random", "dense"]
    assert len({style.colour for style in method_styles(ours).values()}) == 5
    assert method_styles(["grasp"])["grasp"] == method_styles([*ours, "grasp"])["grasp"]
    others = [f"method{i}" for i in range(7)]
    assert len(set(method_styles(others).values())) == 7
    assert method_styles(others) == method_styles(others[::-1])


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(1.0, "100 %"), (0.5, "50 %"), (0.01234, "1.23 %"), (2e-6, "0.0002 %"), (0.0, "0 %"), (0.99999, "100 %")],
)
def test_percent(fraction: float, text: str) -> None:
    assert percent(fraction) == text


def test_ticks_and_labels() -> None:
    assert percent_ticks(0.01, 1.0) == pytest.approx([0.01, 0.03, 0.1, 0.3, 1.0])
    assert percent_ticks(1e-6, 1.0) == pytest.approx([10.0**e for e in range(-6, 1)])
    assert layer_label("vision.encoder.layers.11.mlp.fc1.weight") == "…layers.11.mlp.fc1"
    assert list(thinned(5, 5)) == [0, 1, 2, 3, 4]
    assert list(thinned(6, 5)) == [0, 2, 4]


# --- files ---------------------------------------------------------------------------------------------------------


def test_figures_are_saved_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "figure.png"
    figure = curve_figure([{"epoch": 0, "train_loss": 2.0, "train_accuracy": 0.3}], "run")
    save_figure(figure, path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    assert (width, height) == tuple(round(150 * inches) for inches in figure.get_size_inches())

    def fail(*arguments: object) -> None:
        raise PermissionError(13, "denied")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(AutoSparseError, match="permission denied"):
        save_figure(accuracy_figure({"autos": [0.9]}, "accuracy"), path)
    assert path.read_bytes() == data
    assert [file.name for file in path.parent.iterdir()] == ["figure.png"]


def test_the_page_is_saved_in_utf8(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "<p>±</p>")
    assert (tmp_path / "page.html").read_bytes() == "<p>±</p>".encode()
    assert len(list(tmp_path.iterdir())) == 1


def test_lines_are_svg_and_maps_are_png() -> None:
    svg = figure_data_uri(layer_density_figure(DENSITIES, "densities"))
    assert svg.startswith("data:image/svg+xml;base64,")
    assert b"<svg" in base64.b64decode(svg.partition(",")[2])
    png = figure_data_uri(survival_figure(np.ones((2, 2)), ["a", "b"], [1.0, 0.5], "map"))
    assert png.startswith("data:image/png;base64,")


def test_equal_figures_have_equal_uris_and_ids_that_resolve() -> None:
    first, second = (figure_data_uri(layer_density_figure(DENSITIES, "densities")) for _ in range(2))
    assert first == second
    svg = base64.b64decode(first.partition(",")[2]).decode()
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert used
    assert {a or b for a, b in used} <= set(ids)
    assert len(ids) == len(set(ids))


def test_drawing_leaves_global_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    figure_data_uri(layer_density_figure(DENSITIES, "densities"))
    assert dict(matplotlib.rcParams) == before


# --- page ----------------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def html() -> str:
    table = Table(
        ["method", "accuracy [%]", "time [s]"],
        [["autos", "91.20 ± 0.17", "3"], ["snip & co", "90.15 ± 0.28", "1.5"], ["dense", "91.20", "–"]],
        "Three seeds.",
        {1: "highest", 2: "lowest"},
    )
    figure = accuracy_figure({"autos": [0.9]}, "accuracy")
    return render_page(
        f"Report {EVIL}",
        "First paragraph.\n\nSecond paragraph.",
        [
            Section("Accuracy", "What came out.", [(figure, 'Higher is "better".')], [table]),
            Section(f"Layers {EVIL}"),
        ],
        {"source_revision": "abc123", "versions": {"python": "3.12", "torch": "2.6"}, "gpu": "", "seeds": [0, 1]},
    )


def test_page_needs_nothing_from_outside(html: str) -> None:
    page = _Page(html)
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"https?://", html)
    assert not page.all("script")
    assert not page.all("link")
    (image,) = page.all("img")
    assert (image["src"] or "").startswith("data:image/")
    assert image["alt"] == 'Higher is "better".'


def test_page_escapes_text_and_shows_all_of_it(html: str) -> None:
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    words = _Page(html).words
    for text in (
        f"Report {EVIL}",
        "First paragraph.",
        "Second paragraph.",
        "Accuracy",
        f"Layers {EVIL}",
        "What came out.",
        "Three seeds.",
        'Higher is "better".',
        *("method", "accuracy [%]", "time [s]", "autos", "snip & co", "dense", "91.20 ± 0.17", "90.15 ± 0.28", "–"),
        *("source revision", "abc123", "versions", "python 3.12, torch 2.6", "gpu", "none", "0, 1"),
    ):
        assert text in words


def test_contents_lead_to_the_sections(html: str) -> None:
    page = _Page(html)
    assert [link["href"] for link in page.all("a")] == [f"#{section['id']}" for section in page.all("section")]
    assert len(page.all("section")) == 2


def test_best_cells_and_numbers_are_marked(html: str) -> None:
    cells = re.findall(r'<td class="([^"]*)">([^<]*)</td>', html)
    assert [text for kinds, text in cells if "best" in kinds] == ["91.20 ± 0.17", "1.5", "91.20"]
    assert all("number" in kinds for kinds, _ in cells)
    assert re.findall(r'<th scope="row">([^<]*)</th>', html) == ["autos", "snip &amp; co", "dense"]


def test_page_without_sections() -> None:
    page = _Page(render_page("Empty", "", [], {}))
    assert not page.all("nav")
    assert "Empty" in page.words


def test_best_compares_numbers_not_text() -> None:
    rows = [["1,024"], ["9\u202f% of it"], ["−2e3"], ["n/a"], [".5"], ["1024.0 ms"]]
    assert Table(["x"], rows, best={0: "highest"}).best_cells() == {(0, 0), (5, 0)}
    assert Table(["x"], rows, best={0: "lowest"}).best_cells() == {(2, 0)}


def test_tables_must_be_rectangular() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 cells under a header of 2"):
        Table(["a", "b"], [["1", "2"], ["3"]])
    with pytest.raises(ValueError, match="best names columns"):
        Table(["a", "b"], [], best={2: "highest"})
    with pytest.raises(ValueError, match="row 0 has 1 cells"):
        markdown_table(["a", "b"], [["1"]])


def test_markdown_table() -> None:
    text = markdown_table(["method", "accuracy", "note"], [["autos", "91.2 ± 0.1", "a|b"], ["snip", "–", "two\nlines"]])
    assert text == (
        "| method | accuracy | note |\n| --- | ---: | --- |\n| autos | 91.2 ± 0.1 | a\\|b |\n| snip | – | two lines |\n"
    )
