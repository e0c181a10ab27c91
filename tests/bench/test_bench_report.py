"""What a reader of a benchmark sees: tables, figures, the page, the terminal and the summary."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import call, error_of
from fake_results import cell_file, small_grid, write_cells
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from autosparse.bench.analysis import Analysis, analyse
from autosparse.bench.results import Results, read_results
from autosparse.bench.summary import read_summary, summarise, summary_tables, summary_text
from autosparse.errors import AutoSparseError, FileFormatError
from autosparse.report.bench_origin import machine
from autosparse.report.bench_tables import (
    accuracy_table,
    collapse_table,
    cost_table,
    difference_table,
    overall_table,
    size_table,
)
from autosparse.report.benchmark import benchmark_page, benchmark_sections
from autosparse.report.frontier import Offer, best_offers, frontier_figure
from autosparse.report.method_rows import Contrast, cost_figure, difference_figure, layer_map_figure, rank_figure
from autosparse.report.page import Fold, Section, render_page
from autosparse.report.small_multiples import MOST_LINES, Point, density_accuracy_figure
from autosparse.report.style import _KNOWN, _OTHERS, label_styles, method_styles
from autosparse.report.tables import Table, latex_table, markdown_table


def page_of(analysis: Analysis, layers_at: float | None = None) -> str:
    return benchmark_page(analysis, benchmark_sections(analysis, layers_at))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The small grid, a method that collapses, and a sanity check."""
    layers = [{"name": "a.weight", "weights": 10, "kept": 0}, {"name": "b.weight", "weights": 10, "kept": 2}]
    collapsed = [
        cell_file(
            "sap",
            0.1,
            method="sap",
            density=0.01,
            seed=seed,
            layers=layers,
            connected=False,
            warnings=["a is empty; prevent it with --keep-connected"],
        )
        for seed in range(3)
    ]
    checks = [cell_file("SNIP, shuffle", 0.5 + 0.01 * s, density=0.05, seed=s, sanity="shuffle") for s in range(3)]
    return read_results(write_cells(tmp_path_factory.mktemp("results"), *small_grid(), *collapsed, *checks))


@pytest.fixture(scope="module")
def analysis(results: Results) -> Analysis:
    return analyse(results, "SNIP")


def lines_of(figure: Figure, start: str) -> dict[str, np.ndarray]:
    """Points of the lines whose id starts with ``start``, by the rest of their ids."""
    found = [line for line in figure.findobj(Line2D) if str(line.get_gid()).startswith(start)]
    return {str(line.get_gid()).removeprefix(start): np.asarray(line.get_xydata()) for line in found}


# --- tables --------------------------------------------------------------------------------------------------------


def test_accuracy_table(analysis: Analysis) -> None:
    (setting,) = analysis.titles
    table = accuracy_table(analysis, setting)
    assert table.header == ["method", "5 %", "1 %"]
    # 4.302653 / sqrt(3) = 2.484138 times the standard deviation
    assert table.rows == [
        ["dense, not pruned", "81.00 ± 2.48", "81.00 ± 2.48"],
        ["random_ERK", "66.00 ± 7.45", "52.67 ± 1.43"],
        ["SNIP", "62.00 ± 4.97", "51.00 ± 2.48"],
        ["sap", "–", "10.00 ± 0.00"],
        ["magnitude", "–", "– (failed)"],
    ]
    assert table.best_cells() == {(1, 1), (1, 2)}  # dense does not compete
    assert "over 3 seeds" in table.caption
    assert "does not make it better" in table.caption
    assert "all seeds were equal" in table.caption


def test_another_number_of_seeds_is_said(tmp_path: Path) -> None:
    contents = [cell_file("a", 0.5, seed=0), cell_file("a", 0.7, seed=1), cell_file("b", 0.6, seed=0, budget="erk")]
    analysis = analyse(read_results(write_cells(tmp_path, *contents)))
    (setting,) = analysis.titles
    rows = {row[0]: row[1] for row in accuracy_table(analysis, setting).rows}
    assert rows["b"] == "60.00 (1)"


def test_difference_table_stars_only_what_is_shown(analysis: Analysis) -> None:
    (setting,) = analysis.titles
    rows = {row[0]: row[1:] for row in difference_table(analysis, setting).rows}
    # 0.03, 0.04, 0.05 with p = 0.0203, 0.02, 0.01, 0.02 with p = 0.0377, and -0.4, -0.42, -0.41 with p = 0.0002
    assert rows["random_ERK"] == ["+4.00 ± 2.48*", "+1.67 ± 1.43*"]
    assert rows["sap"] == ["–", "−41.00 ± 2.48*"]
    corrected = tuple(replace(comparison, holm=0.05) for comparison in analysis.comparisons)
    table = difference_table(replace(analysis, comparisons=corrected), setting)
    assert not any("*" in cell for row in table.rows for cell in row)


def test_overall_table_counts_places(analysis: Analysis) -> None:
    rows = {row[0]: row[1:] for row in overall_table(analysis).rows}
    # (0.03 + 0.02) / 2, (0.04 + 0.01) / 2, (0.05 + 0.02) / 2
    assert rows["random_ERK"][0] == "+2.83 ± 1.43"
    assert rows["random_ERK"][2:] == ["better", "2", "0", "0"]


def test_cost_table_has_median_and_range(tmp_path: Path) -> None:
    values = [(1.0, 2**20), (2.0, 3 * 2**20), (1200.0, 2 * 2**20)]
    contents = [
        cell_file("a", 0.5, seed=seed, prune_seconds=seconds, prune_peak_bytes=peak)
        for seed, (seconds, peak) in enumerate(values)
    ]
    analysis = analyse(read_results(write_cells(tmp_path, *contents)))
    (setting,) = analysis.titles
    assert cost_table(analysis, setting).rows == [["a", "2", "1 to 1,200", "2", "1 to 3", "3"]]


def test_collapse_table_names_layers_and_seeds(analysis: Analysis) -> None:
    (setting,) = analysis.titles
    assert collapse_table(analysis, setting).rows == [["sap", "1 %", "3 of 3", "3 of 3: a", "a is empty"]]


def test_markdown_marks_the_best_and_escapes() -> None:
    text = markdown_table(["m|x", "5 %"], [["a\nb", "1.0"], ["c", "2.0"]], {(1, 1)})
    assert text == "| m\\|x | 5 % |\n| --- | ---: |\n| a b | 1.0 |\n| c | **2.0** |\n"


def test_latex_is_booktabs_with_every_special_character_escaped() -> None:
    text = latex_table(["method", "5 %"], [["a_b & \\c {d}", "91.2 ± 0.1"], ["$#~^", "–"]], {(0, 1)}, "50% − x < y")
    assert text.splitlines() == [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        "  \\caption{50\\% $-$ x \\textless{} y}",
        "  \\begin{tabular}{lr}",
        "    \\toprule",
        "    method & 5 \\% \\\\",
        "    \\midrule",
        "    a\\_b \\& \\textbackslash{}c \\{d\\} & \\textbf{91.2 $\\pm$ 0.1} \\\\",
        "    \\$\\#\\textasciitilde{}\\textasciicircum{} & -- \\\\",
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]


# --- figures -------------------------------------------------------------------------------------------------------

LINE = {0.1: Point(0.7, 0.01), 0.01: Point(0.5, 0.02)}


def test_few_labels_share_one_panel_with_names_at_their_ends() -> None:
    series = {"a": LINE, "b": {0.1: Point(0.65), 0.01: Point(0.5)}}
    styles = label_styles({"a": "snip", "b": "grasp"})
    figure = density_accuracy_figure(series, styles, "title", Point(0.8, 0.01))
    (axes,) = figure.axes
    assert lines_of(figure, "label:")["a"].tolist() == [[0.01, 0.5], [0.1, 0.7]]
    assert {text.get_text(): text.get_position()[1] for text in axes.texts}.keys() == {"a", "b", "dense"}
    heights = sorted(text.xy[1] for text in axes.texts)  # type: ignore[attr-defined]
    assert heights[1] - heights[0] > 0.005  # both lines end at 0.5: their names do not cover each other
    left, right = axes.get_xlim()
    assert left > right  # sparser to the right


def test_many_labels_have_a_panel_each_in_the_given_order() -> None:
    series = {f"m{index}": LINE for index in range(MOST_LINES + 1)}
    figure = density_accuracy_figure(series, label_styles({name: name for name in series}), "title")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == list(series)
    assert len({axes.get_ylim() for axes in shown}) == 1


def test_collapse_does_not_squeeze_the_others() -> None:
    series = {f"m{i}": {d: Point(0.6 + 0.01 * i, 0.01) for d in (0.1, 0.05, 0.02, 0.01)} for i in range(7)}
    series["m0"] = {**series["m0"], 0.01: Point(0.1, 0.0)}
    figure = density_accuracy_figure(series, label_styles({name: name for name in series}), "title")
    low, high = figure.axes[0].get_ylim()
    assert 0.5 < low < 0.6
    assert high < 0.75
    assert list(lines_of(figure, "below:")) == ["m0"]
    assert lines_of(figure, "below:")["m0"].tolist() == [[0.01, low]]


def test_differences_are_filled_only_where_shown() -> None:
    columns = {"5 %": {"a": Contrast(0.02, 0.01, True), "b": Contrast(-0.02, 0.03, False)}}
    figure = difference_figure(columns, "title", "reference", ["a", "b"])
    marks = {
        str(line.get_gid()): line for line in figure.findobj(Line2D) if str(line.get_gid()).startswith("difference")
    }
    shown, not_shown = marks["difference:5 %:a"], marks["difference:5 %:b"]
    assert np.asarray(shown.get_xydata()).tolist() == [[0.02, 0]]
    assert np.asarray(not_shown.get_xydata()).tolist() == [[-0.02, 1]]
    assert shown.get_markerfacecolor() == shown.get_color()
    assert not_shown.get_markerfacecolor() == "white"


def test_ranks_are_drawn_as_given() -> None:
    figure = rank_figure({"a": 1.25, "b": 2.0}, "title", 0.5)
    assert lines_of(figure, "ranks")[""].tolist() == [[1.25, 0], [2.0, 1]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_layer_map_marks_layers_that_some_run_emptied() -> None:
    figure = layer_map_figure(
        {"a": {"x": 0.5, "y": 0.01}, "b": {"x": 0.2, "y": 0.0}}, {"a": ["y"], "b": ["y"]}, "title"
    )
    (image,) = figure.axes[0].images
    shown = image.get_array()
    assert isinstance(shown, np.ma.MaskedArray)
    np.testing.assert_array_equal(shown.filled(0), [[0.5, 0.01], [0.2, 0.0]])
    (marks,) = (artist for artist in figure.axes[0].collections if artist.get_gid() == "empty")
    assert np.asarray(marks.get_offsets()).tolist() == [[1, 0], [1, 1]]


def offer(cost: float, accuracy: float) -> Offer:
    return Offer(cost, Point(accuracy, 0.01))


def test_the_frontier_has_what_nothing_as_cheap_surpasses() -> None:
    offers = {
        "free": offer(0, 0.5),
        "as free, better": offer(0, 0.6),
        "dear and worse": offer(10, 0.55),
        "dear, as good": offer(10, 0.6),
        "dearest, best": offer(100, 0.7),
    }
    assert best_offers(offers) == ["as free, better", "dearest, best"]


def test_frontier_figure_names_every_label_and_marks_the_collapsed() -> None:
    offers = {f"m{i}": offer(10.0**i, 0.5 + 0.03 * i) for i in range(4)} | {
        "free": offer(0, 0.5),
        "collapsed": offer(10, 0.1),
        "twin": offer(10.0, 0.53),
    }
    figure = frontier_figure(offers, method_styles(offers), "title", Point(0.8))
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {*offers, "dense"}
    gids = {line.get_gid() for line in figure.axes[0].lines}
    assert {"below:collapsed", "offer:m3", "frontier", "dense"} <= gids
    assert "offer:collapsed" not in gids


def test_costs_of_masks_are_drawn_where_they_were_counted(tmp_path: Path) -> None:
    cells = [
        cell_file(label, 0.6 + 0.01 * seed, density=0.05, seed=seed, prune_images=images)
        for label, images in (("a", 1280), ("b", 0))
        for seed in (1, 2)
    ]
    page = page_of(analyse(read_results(write_cells(tmp_path / "counted", *cells))))
    assert "What a mask costs" in page
    for cell in cells:
        del cell["result"]["prune_images"]  # as an earlier release wrote it
    assert "What a mask costs" not in page_of(analyse(read_results(write_cells(tmp_path / "not", *cells))))


def test_costs_that_were_not_measured_leave_empty_rows() -> None:
    figure = cost_figure({"seconds": {"a": [1.0, 4.0, 2.0], "b": []}}, "title", ["a", "b"])
    points = [line.get_xydata() for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert np.asarray(points).tolist() == [[[2.0, 0.0]]]


def test_every_method_looks_different() -> None:
    looks = [(style.colour, style.marker) for style in (*_KNOWN.values(), *_OTHERS)]
    assert len(set(looks)) == len(looks)
    families = (
        ("dense", "random", "magnitude", "magnitude-after-training", "autos", "cts", "scout"),
        ("snip", "iter-snip", "force", "prospr", "sbp-sr", "grasp", "crop", "cropit", "earlycrop"),
        ("synflow", "phew", "npb", "granet", "granet-sparse", "rigl", "set", "gmp", "ltr", "sap"),
    )
    assert {method for family in families for method in family} <= set(_KNOWN)


def test_labels_of_one_method_share_its_colour() -> None:
    styles = label_styles({"SynFlow-1": "synflow", "SynFlow-50": "synflow", "SNIP": "snip"})
    assert styles["SynFlow-1"] == method_styles(["synflow"])["synflow"]
    assert styles["SynFlow-50"].colour == styles["SynFlow-1"].colour
    assert styles["SynFlow-50"].marker != styles["SynFlow-1"].marker
    assert styles["SNIP"] == method_styles(["snip"])["snip"]


# --- the page ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(analysis: Analysis) -> str:
    return page_of(analysis)


def test_page_has_all_chapters_and_numbers(page: str) -> None:
    titles = [html.unescape(title) for title in re.findall(r"<h2>([^<]*)</h2>", page)]
    assert titles == [
        "Ranks",
        "Accuracy: resnet20 (width 0.5), cifar10-jpeg",
        "Differences from SNIP",
        "Sanity checks",
        "Layer densities",
        "Collapsed layers",
        "Cost of pruning",
        "What a mask costs and what it is worth",
        "Failed and missing cells",
        "Every number and its command",
    ]
    text = html.unescape(re.sub(r"<[^>]+>", "\n", page))
    for number in (
        *("66.00 ± 7.45", "51.00 ± 2.48", "81.00 ± 2.48", "– (failed)"),  # accuracies
        *("+4.00 ± 2.48*", "−41.00 ± 2.48*"),  # differences
        *("51.00 ± 2.48", "−11.00 ± 2.48"),  # sanity: 0.50, 0.51, 0.52 and 0.60, 0.62, 0.64
        *("DivergedError: the loss is nan", "a is empty"),
        *("0123456789abcdef", "NVIDIA H200", "python 3.11.2, autosparse 0.1.0, torch 2.13.0"),
    ):
        assert number in text


def test_every_cell_is_there_with_its_command(page: str, results: Results) -> None:
    commands = [html.unescape(text) for text in re.findall(r'<td class="code">([^<]*)</td>', page)]
    assert sorted(commands) == sorted(cell.command for cell in results.cells)


def test_page_needs_nothing_from_outside(page: str) -> None:
    assert not re.search(r"https?://", page)
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page or f"script-src 'sha256-{digest}'" in page
    assert "fetch(" not in script


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"gpu": ""}, "x86_64, threads: 1"),
        ({"gpu": "", "processor_bf16": True}, "x86_64 with bf16, threads: 1"),
        ({"gpu": "", "processor_bf16": False}, "x86_64 without bf16, threads: 1"),
        ({"processor_bf16": True}, "NVIDIA H200"),
    ],
)
def test_processors_that_train_in_another_precision_are_told_apart(
    analysis: Analysis, facts: dict[str, Any], text: str
) -> None:
    cell = analysis.results.cells[0]
    assert machine(replace(cell, provenance={**cell.provenance, **facts})) == text


def test_tables_can_be_copied_as_markdown_and_latex(page: str, analysis: Analysis) -> None:
    (setting,) = analysis.titles
    table = accuracy_table(analysis, setting)
    blocks = [html.unescape(text) for text in re.findall(r"<pre[^>]*>(.*?)</pre>", page, flags=re.DOTALL)]
    assert markdown_table(table.header, table.rows, table.best_cells()) in blocks
    assert any("\\toprule" in block and "random\\_ERK & \\textbf{66.00 $\\pm$ 7.45}" in block for block in blocks)


def test_pages_without_text_to_copy_have_no_script() -> None:
    page = render_page("t", "", [Section("s", folds=[Fold("f", Table(["a"], [["1"]]))])], {})
    assert "<script" not in page
    assert "<details>" in page
    assert "<script>" in render_page("t", "", [Section("s", folds=[Fold("f", text="a < b")])], {})


def test_markup_in_labels_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> & $x_1$"
    contents = [cell_file(evil, 0.5, seed=seed) for seed in range(2)]
    page = page_of(analyse(read_results(write_cells(tmp_path, *contents))))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x_1$" in page


def test_one_method_with_one_seed_makes_no_claims(tmp_path: Path) -> None:
    page = page_of(analyse(read_results(write_cells(tmp_path, cell_file("SNIP", 0.61)))))
    assert "61.00" in page
    assert "nothing can be said about differences" in page
    assert "±" not in page
    assert "Friedman" not in page


def test_dense_networks_alone_have_a_page(tmp_path: Path) -> None:
    contents = [cell_file("dense", 0.8, method="dense", density=1.0, seed=seed, layers=[]) for seed in range(2)]
    page = page_of(analyse(read_results(write_cells(tmp_path, *contents))))
    assert "dense, not pruned" in page
    assert "80.00 ± 0.00" in page


def test_layers_are_shown_at_the_density_asked_for(analysis: Analysis) -> None:
    assert "at 5 % of all weights" in page_of(analysis, layers_at=0.05)
    with pytest.raises(AutoSparseError, match=r"no network of density 0\.3: give one of 0\.01, 0\.05"):
        page_of(analysis, layers_at=0.3)


# --- the summary ---------------------------------------------------------------------------------------------------


def test_summary_survives_its_file_and_gives_the_same_table(
    results: Results, analysis: Analysis, tmp_path: Path
) -> None:
    summary = summarise(results, "SNIP")
    path = tmp_path / "summary.json"
    path.write_text(summary_text(summary), encoding="utf-8")
    assert read_summary(path) == json.loads(json.dumps(summary))
    group = next(g for g in summary["groups"] if (g["label"], g["density"], g["sanity"]) == ("SNIP", 0.05, None))
    assert group["seeds"] == [0, 1, 2]
    assert group["test_accuracy"] == [0.60, 0.62, 0.64]
    assert group["prune_seconds"] == [1.5, 1.5, 1.5]
    assert (group["mean"], group["std"]) == (pytest.approx(0.62), pytest.approx(0.02))
    assert group["command"] == "autosparse train --method snip --density 0.05 --seed {seed}"
    assert summary["failed"][0]["error"] == "DivergedError: the loss is nan"
    (setting,) = analysis.titles
    rows = [[cell.replace(" (failed)", "") for cell in row] for row in accuracy_table(analysis, setting).rows]
    assert summary_tables(summary) == markdown_table([analysis.titles[setting], "5 %", "1 %"], rows)


def test_commands_that_differ_in_more_than_the_seed_are_all_kept(tmp_path: Path) -> None:
    contents = [cell_file("SNIP", 0.5, seed=seed) for seed in range(2)]
    contents[1]["command"] += " --lr 0.2"
    (group,) = summarise(read_results(write_cells(tmp_path, *contents)))["groups"]
    assert sorted(group["commands"]) == sorted(content["command"] for content in contents)


def test_damaged_summaries_are_refused(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text('{"kind": "autosparse-cell", "schema_version": 1}')
    with pytest.raises(FileFormatError, match="no autosparse-benchmark-summary file"):
        read_summary(path)
    with pytest.raises(FileFormatError, match="the summary is incomplete"):
        summary_tables({**summarise(results), "groups": [{}]})


# --- commands ------------------------------------------------------------------------------------------------------


def test_report_command_writes_the_page_once(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    arguments: list[Any] = ["report", results.folder, "--out", out, "--reference", "SNIP"]
    assert call(capsys, *arguments).status == 0
    assert "Differences from SNIP" in out.read_text(encoding="utf-8")
    assert "--force" in error_of(call(capsys, *arguments))
    assert call(capsys, *arguments, "--force").status == 0


def test_report_command_writes_its_figures_as_files(
    smaller: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figures = tmp_path / "report.html", tmp_path / "figures"
    arguments: list[Any] = ["report", smaller.folder, "--out", out, "--figures", figures]
    assert f"{figures}" in call(capsys, *arguments).out.replace("\n", "")
    names = {path.name for path in figures.iterdir()}
    assert len(names) == out.read_text(encoding="utf-8").count('src="data:image/')
    flops = next(name for name in names if name.startswith("accuracy") and name.endswith("by-flops.svg"))
    assert (figures / flops).read_text(encoding="utf-8").startswith("<?xml")
    out.unlink()
    assert f"{figures} exists" in error_of(call(capsys, *arguments)).replace("\n", " ")
    assert not out.exists()


def test_show_command_prints_the_table_and_what_is_not_there(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "show", results.folder)
    assert result.status == 0
    assert re.search(r"random_ERK +66\.00 ± 7\.45 +52\.67 ± 1\.43", result.out)
    assert "21 finished, 1 failed" in result.out
    assert "DivergedError: the loss is nan" in result.out
    assert "differences" not in result.out
    assert re.search(r"SNIP, shuffle +5 % +51\.00 ± 2\.48 .* −11\.00 ± 2\.48", result.out)
    assert "+4.00 ± 2.48*" in call(capsys, "show", results.folder, "--reference", "SNIP").out


@pytest.fixture
def smaller(tmp_path: Path) -> Results:
    """Methods for channels, one for weights, and the dense network of both."""
    cells = [
        cell_file(label, accuracy + 0.01 * seed, method=label, density=share, seed=seed, measure="flops")
        for label, share, accuracy in (("l1", 0.5, 0.70), ("l1", 0.25, 0.65), ("epi", 0.5, 0.71), ("epi", 0.25, 0.6))
        for seed in range(2)
    ]
    cells[0]["result"]["latency"]["share"] = 0.5
    cells += [cell_file("SNIP", 0.5, density=0.05, seed=seed) for seed in range(2)]
    cells += [cell_file("dense", 0.8, method="dense", density=1.0, seed=seed) for seed in range(2)]
    return read_results(write_cells(tmp_path / "smaller", *cells))


def test_what_is_left_of_smaller_networks_has_a_table(smaller: Results) -> None:
    analysis = analyse(smaller)
    by_flops, by_weights = analysis.titles
    table = size_table(analysis, by_flops)
    assert table.header[:2] == ["method, asked", "FLOPs"]
    rows = {row[0]: list(row[1:]) for row in table.rows}
    assert rows["l1, 50 %"] == ["48.0", "24.0", "69.3", "53.8 (50.0 to 57.6)", "66.7", "90", "1"]
    assert rows["epi, 25 %"] == ["24.0", "12.0", "49.0", "28.8", "66.7", "90", "1"]
    assert "batch size 128" in table.caption
    assert size_table(analysis, by_weights).rows == []
    assert accuracy_table(analysis, by_flops).rows[0] == ["dense, not pruned", "80.00 ± 0.00", "80.00 ± 0.00"]


def test_smaller_networks_are_on_the_page_and_in_the_summary(
    smaller: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    page = page_of(analyse(smaller, "l1"))
    assert "Ranks of methods for channels" in page
    assert "against measured latency" in page
    assert "FLOPs kept 50 %, 25 % and density 5 %" in page
    summary = summarise(smaller)
    assert [setting["measure"] for setting in summary["settings"]] == ["flops", "weights"]
    (group,) = (g for g in summary["groups"] if g["label"] == "l1" and g["density"] == 0.5)
    assert (group["flops"], group["latency"], group["dense_epochs"]) == ([0.48, 0.48], [0.5, 0.576], [1, 1])
    assert [g["setting"] for g in summary["groups"] if g["method"] == "dense"] == [0, 1]
    assert "| dense, not pruned | 80.00 ± 0.00 | 80.00 ± 0.00 |" in summary_tables(summary)
    assert "what is left" in call(capsys, "show", smaller.folder).out


def test_narrow_terminals_fold_the_table(
    results: Results, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autosparse.cli.show.console.width", 34)
    out = call(capsys, "show", results.folder).out
    assert "66.00 ± 7.45" in out
    assert "52.67 ± 1.43" in out
    assert not any("66.00 ± 7.45" in line and "52.67 ± 1.43" in line for line in out.splitlines())
    assert max(len(line) for line in out.splitlines()) <= 34


def test_show_command_in_other_forms(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        "| random_ERK | **66.00 ± 7.45** | **52.67 ± 1.43** |" in call(capsys, "show", results.folder, "--markdown").out
    )
    latex = call(capsys, "show", results.folder, "--latex").out
    assert "random\\_ERK & \\textbf{66.00 $\\pm$ 7.45} & \\textbf{52.67 $\\pm$ 1.43} \\\\" in latex
    assert json.loads(call(capsys, "show", results.folder, "--json").out) == json.loads(
        summary_text(summarise(results))
    )
    assert "exclude each other" in error_of(call(capsys, "show", results.folder, "--markdown", "--latex"))


@pytest.mark.parametrize("command", ["show", "report"])
def test_bad_folders_and_labels_are_one_line_and_status_2(
    command: str, results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out: list[Any] = ["--out", tmp_path / "report.html"] if command == "report" else []
    assert "holds no results" in error_of(call(capsys, command, tmp_path, *out))
    assert "unknown label 'SNAP'" in error_of(call(capsys, command, results.folder, "--reference", "SNAP", *out))
    torn = write_cells(tmp_path / "torn", cell_file("SNIP", 0.5))
    (torn / "cells" / "ffff.json").write_text("{")
    assert "ffff.json" in error_of(call(capsys, command, torn, *out))
    failed = write_cells(tmp_path / "failed", cell_file("SNIP", error="nan"))
    assert "no cell of" in error_of(call(capsys, command, failed, *out))
    assert not (tmp_path / "report.html").exists()
