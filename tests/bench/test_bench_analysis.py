"""What is concluded from a folder of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_results import cell_file, small_grid, write_cells

from autosparse.bench.analysis import Analysis, analyse
from autosparse.bench.comparison import BETTER, NOT_SHOWN, WORSE
from autosparse.bench.results import read_results
from autosparse.errors import AutoSparseError, UnknownNameError


def analysis_of(folder: Path, *contents: dict[str, Any], reference: str | None = None) -> Analysis:
    return analyse(read_results(write_cells(folder, *contents)), reference)


def series(label: str, accuracies: list[float], **changes: Any) -> list[dict[str, Any]]:
    """One cell a seed."""
    return [cell_file(label, accuracy, seed=seed, **changes) for seed, accuracy in enumerate(accuracies)]


def only_ranking(analysis: Analysis) -> Any:
    (ranking,) = analysis.rankings
    assert ranking.ranks is not None
    return ranking


def test_seeds_are_grouped(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path, *small_grid())
    (setting,) = analysis.titles
    group = analysis.group(setting, "SNIP", 0.05)
    assert group is not None
    assert group.accuracies == {0: 0.60, 1: 0.62, 2: 0.64}
    assert group.estimate is not None
    assert group.estimate.mean == pytest.approx(0.62)
    assert group.measurements("prune_seconds") == [1.5, 1.5, 1.5]
    dense = analysis.dense(setting)
    assert dense is not None
    assert dense.accuracies == {0: 0.80, 1: 0.81, 2: 0.82}
    assert analysis.densities(setting) == [0.05, 0.01]
    assert analysis.group(setting, "magnitude", 0.05) is None
    failed = analysis.group(setting, "magnitude", 0.01)
    assert failed is not None
    assert (failed.estimate, len(failed.failed)) == (None, 1)


def test_labels_are_ordered_by_rank_and_dense_is_none(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path, *small_grid())
    assert analysis.labels == ("random_ERK", "SNIP", "magnitude")
    ranking = only_ranking(analysis)
    assert ranking.ranks.mean_ranks == {"random_ERK": 1.0, "SNIP": 2.0}
    assert ranking.ranks.blocks == ranking.blocks == 6
    assert ranking.unranked == {"magnitude": 6}


def test_ranks_use_only_blocks_in_which_all_have_finished(tmp_path: Path) -> None:
    contents = [*series("a", [0.5, 0.5, 0.5]), *series("b", [0.6, 0.4], method="magnitude")]
    analysis = analysis_of(tmp_path, *contents)
    ranking = only_ranking(analysis)
    assert (ranking.ranks.blocks, ranking.blocks) == (2, 3)
    assert ranking.ranks.mean_ranks == {"a": 1.5, "b": 1.5}
    assert ranking.unranked == {"b": 1}


def test_patterns_with_a_density_of_their_own_do_not_spoil_the_ranks(tmp_path: Path) -> None:
    pattern = series("2:4", [0.7, 0.7], density=0.5, granularity="2:4", method="magnitude")
    contents = [*series("a", [0.5, 0.6]), *series("b", [0.6, 0.7], method="magnitude"), *pattern]
    analysis = analysis_of(tmp_path, *contents)
    assert only_ranking(analysis).ranks.mean_ranks == {"b": 1.0, "a": 2.0}
    assert set(analysis.labels) == {"a", "b", "2:4"}
    assert analysis.absent == ()


def test_comparisons_pair_by_seed_at_the_same_density(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path, *small_grid(), reference="SNIP")
    found = {(c.ours.label, c.ours.density): c for c in analysis.comparisons}
    assert set(found) == {("random_ERK", 0.05), ("random_ERK", 0.01), ("magnitude", 0.01)}
    high = found["random_ERK", 0.05].difference
    assert high is not None
    # differences 0.03, 0.04, 0.05
    assert high.estimate.mean == pytest.approx(0.04)
    assert high.estimate.std == pytest.approx(0.01)
    assert found["magnitude", 0.01].difference is None
    assert found["magnitude", 0.01].verdict == "no seed in common"


def test_a_dense_reference_is_compared_at_every_density(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path, *small_grid(), reference="dense")
    found = {(c.ours.label, c.ours.density): c.difference for c in analysis.comparisons}
    assert {key for key, difference in found.items() if difference is not None} == {
        (label, density) for label in ("SNIP", "random_ERK") for density in (0.05, 0.01)
    }
    difference = found["SNIP", 0.05]
    assert difference is not None
    assert difference.estimate.mean == pytest.approx(-0.19)


def test_verdicts_follow_the_corrected_p(tmp_path: Path) -> None:
    """Alone, p = 0.0305 would do; as one of the two largest of four it is doubled, and does not."""
    base = [0.50, 0.51, 0.52, 0.53]
    contents = series("base", base)
    shifts = {
        "clear": [0.10, 0.11, 0.10, 0.11],
        "worse": [-0.10, -0.11, -0.10, -0.11],
        "faint": [0.01, 0.03, 0.02, 0.04],
        "faint too": [0.04, 0.02, 0.01, 0.03],
    }
    for label, shift in shifts.items():
        contents += series(label, [b + s for b, s in zip(base, shift, strict=True)], method=label)
    contents += series("one seed", [0.9], method="sap") + series("constant", [b + 0.1 for b in base], method="gmp")
    analysis = analysis_of(tmp_path, *contents, reference="base")
    found = {c.ours.label: c for c in analysis.comparisons}
    assert {label: c.verdict for label, c in found.items()} == {
        "clear": BETTER,
        "worse": WORSE,
        "faint": NOT_SHOWN,
        "faint too": NOT_SHOWN,
        "one seed": "one seed: no test",
        "constant": "equal differences: no test",
    }
    faint = found["faint"]
    assert faint.difference is not None
    assert faint.difference.p is not None
    # mean 0.025, s = 0.0129: t = 3.873 with 3 degrees of freedom
    assert faint.difference.p == pytest.approx(0.0305, abs=1e-4)
    assert faint.holm == pytest.approx(2 * faint.difference.p)


def test_overall_averages_places_before_it_looks_at_seeds(tmp_path: Path) -> None:
    contents = [*series("base", [0.5, 0.6], density=0.1), *series("base", [0.4, 0.4], density=0.05)]
    contents += series("other", [0.6, 0.8], density=0.1, method="sap")
    contents += series("other", [0.5, 0.4], density=0.05, method="sap")
    (found,) = analysis_of(tmp_path, *contents, reference="base").overall
    assert (found.label, found.places) == ("other", 2)
    assert found.difference is not None
    # seed 0: (0.1 + 0.1) / 2, seed 1: (0.2 + 0.0) / 2: equal, so nothing to test
    assert found.difference.estimate.mean == pytest.approx(0.1)
    assert found.verdict == "equal differences: no test"


def test_sanity_checks_are_compared_with_the_same_use_of_the_method(tmp_path: Path) -> None:
    contents = [*series("SynFlow-50", [0.6, 0.7], method="synflow", options={"rounds": 50})]
    contents += series("SynFlow-1", [0.1, 0.1], method="synflow", options={"rounds": 1})
    contents += series("checked", [0.58, 0.66], method="synflow", options={"rounds": 50}, sanity="shuffle")
    analysis = analysis_of(tmp_path, *contents)
    (found,) = analysis.sanity
    assert (found.ours.name, found.theirs.label) == ("checked [shuffle]", "SynFlow-50")
    assert found.difference is not None
    assert found.difference.estimate.mean == pytest.approx(-0.03)
    assert analysis.labels == ("SynFlow-50", "SynFlow-1")  # a check is no method


def test_channels_have_a_table_and_ranks_of_their_own_and_share_the_dense_networks(tmp_path: Path) -> None:
    smaller = [*series("l1", [0.7, 0.6], method="l1", measure="flops", density=0.5)]
    smaller += series("epi", [0.6, 0.5], method="epi", measure="flops", density=0.5)
    weights = [*series("a", [0.5, 0.5]), *series("b", [0.6, 0.4], method="magnitude")]
    dense = series("dense", [0.8, 0.9], method="dense", density=1.0)
    analysis = analysis_of(tmp_path, *smaller, *weights, *dense, reference="dense")
    title = "resnet20 (width 0.5), cifar10-jpeg"
    by_flops, by_weights = analysis.titles
    assert analysis.titles == {by_flops: f"{title}, by FLOPs", by_weights: title}
    assert (by_flops.share, by_weights.share) == ("FLOPs kept", "density")
    assert (analysis.labels_of(by_flops), analysis.labels_of(by_weights)) == (["l1", "epi"], ["a", "b"])
    assert analysis.dense(by_flops) is analysis.dense(by_weights) is not None
    assert [group.label for group in analysis.groups_of(by_flops)] == ["dense", "l1", "epi"]
    assert [(r.what, r.labels, r.blocks) for r in analysis.rankings] == [
        ("weights", ("a", "b"), 2),
        ("channels", ("l1", "epi"), 2),
    ]
    assert {(c.ours.label, round(c.difference.estimate.mean, 9)) for c in analysis.comparisons if c.difference} == {
        ("l1", -0.2), ("epi", -0.3), ("a", -0.35), ("b", -0.35)
    }  # fmt: skip
    (group,) = (group for group in analysis.groups if group.label == "epi")
    assert group.shares("flops") == [0.48, 0.48]


def test_dense_networks_beside_channels_alone_have_no_table_of_their_own(tmp_path: Path) -> None:
    dense = series("dense", [0.8], method="dense", density=1.0)
    broken = cell_file("dense", error="the loss is nan", method="dense", density=1.0, seed=1)
    smaller = series("l1", [0.7, 0.6], method="l1", measure="params", density=0.5)
    analysis = analysis_of(tmp_path, *dense, broken, *smaller)
    (setting,) = analysis.titles
    assert setting.measure == "params"
    assert analysis.shown_with(analysis.results.failed[0].setting) == setting


def test_gaps_of_the_crossing_are_missing(tmp_path: Path) -> None:
    analysis = analysis_of(tmp_path, *small_grid())
    missing = {entry[1:] for entry in analysis.absent}
    assert missing == {("magnitude", d, s) for d in (0.05, 0.01) for s in range(3)} - {("magnitude", 0.01, 0)}


def test_networks_and_images_are_kept_apart(tmp_path: Path) -> None:
    contents = [
        *series("a", [0.5, 0.6]),
        *series("a", [0.7, 0.8], model="vgg16"),
        *series("b", [0.9], model="vgg16", budget="erk"),
    ]
    analysis = analysis_of(tmp_path, *contents, reference="a")
    resnet, vgg = analysis.titles
    assert list(analysis.titles.values()) == ["resnet20 (width 0.5), cifar10-jpeg", "vgg16 (width 0.5), cifar10-jpeg"]
    assert (analysis.labels_of(resnet), analysis.labels_of(vgg)) == (["a"], ["b", "a"])
    (comparison,) = analysis.comparisons
    assert comparison.difference is not None
    assert comparison.difference.estimate.mean == pytest.approx(0.2)


def test_unknown_references_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown label 'random-ERK': did you mean random_ERK"):
        analysis_of(tmp_path, *small_grid(), reference="random-ERK")


def test_nothing_but_failures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        AutoSparseError, match=r"no cell of .* has finished \(1 failed, the first with DivergedError: nan"
    ):
        analysis_of(tmp_path, cell_file("SNIP", error="nan"))
