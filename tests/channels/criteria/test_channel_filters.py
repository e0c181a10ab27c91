"""Norms of filters, distances between them, scales of norms, and entropies, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from criteria_networks import GROUPED, RESIDUAL, blank, coupled, linear, randomised
from torch import nn

from autosparse.channels.coupling import couple
from autosparse.channels.criteria import CHANNEL_CRITERIA, ChannelScores, score_channels
from autosparse.channels.criteria.afie import entropy, singular_values
from autosparse.channels.groups import Coupling
from autosparse.errors import AutoSparseError

F64 = torch.float64


def found(name: str, given: tuple[nn.Module, Coupling], **options: object) -> ChannelScores:
    return score_channels(name, *given, options=options)


# --------------------------------------------------------------------------------------------------------- norms


def test_norms_of_filters_by_hand() -> None:
    network = linear([[3, -4], [6, 8], [0, 0]], [[1, 1, 1]])
    assert found("l1", network, normalise="none")["0"].tolist() == [7, 14, 0]
    assert found("l2", network, normalise="none")["0"].tolist() == [5, 10, 0]
    assert found("l1", network, normalise="mean")["0"].tolist() == [1, 2, 0]
    assert found("l2", network, normalise="max")["0"].tolist() == [0.5, 1, 0]
    np.testing.assert_allclose(found("l2", network, normalise="fan-in")["0"], [5 / 2**0.5, 10 / 2**0.5, 0])


def test_the_mean_is_the_default() -> None:
    network = linear([[3, -4], [6, 8]], [[1, 1]])
    for name in ("l1", "l2", "fpgm"):
        assert np.array_equal(found(name, network)["0"], found(name, network, normalise="mean")["0"])
        assert found(name, network)["0"].mean() == 1


@pytest.mark.parametrize("name", ["l1", "l2", "fpgm"])
def test_a_group_of_zeros_scores_zero(name: str) -> None:
    for normalise in ("mean", "max", "none"):
        assert found(name, linear([[0, 0], [0, 0]], [[1, 1]]), normalise=normalise)["0"].tolist() == [0, 0]


def test_norms_of_tied_layers_are_added_up() -> None:
    model = RESIDUAL()
    stem, back = (model.get_parameter(f"{name}.weight").detach().double() for name in ("stem", "back"))
    expected = stem.flatten(1).norm(dim=1) + back.flatten(1).norm(dim=1)
    network = (model, coupled(model))
    np.testing.assert_allclose(found("l2", network, normalise="none")["stem"], expected, rtol=1e-6)
    by_fan_in = stem.flatten(1).norm(dim=1) / 27**0.5 + back.flatten(1).norm(dim=1) / 54**0.5
    np.testing.assert_allclose(found("l2", network, normalise="fan-in")["stem"], by_fan_in, rtol=1e-6)


def test_convolutions_in_blocks_count_with_their_blocks() -> None:
    model = GROUPED()  # stem 3 -> 4, then two blocks 2 -> 3
    stem, grouped = (model.get_parameter(f"{name}.weight").detach() for name in ("stem", "grouped"))
    expected = [stem[:2].abs().sum() + grouped[:3].abs().sum(), stem[2:].abs().sum() + grouped[3:].abs().sum()]
    np.testing.assert_allclose(found("l1", (model, coupled(model)), normalise="none")["stem"], expected, rtol=1e-6)


def test_a_channel_at_two_places_of_a_layer_has_the_norm_of_both() -> None:
    model = blank("gated")  # conv 3 -> 8, halves tied
    weight = model.get_parameter("conv.weight").detach()
    expected = [torch.cat([weight[i], weight[i + 4]]).norm() for i in range(4)]
    np.testing.assert_allclose(found("l2", (model, coupled(model)), normalise="none")["conv"], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["l1", "l2", "fpgm"])
def test_the_scale_of_a_whole_layer_means_nothing(name: str) -> None:
    model = randomised(blank("flattened"))
    network = (model, coupled(model))
    before = found(name, network)
    with torch.no_grad():
        model.get_parameter("hidden.weight").mul_(100)
    for group, values in found(name, network).items():
        np.testing.assert_allclose(values, before[group], rtol=1e-9)


@pytest.mark.parametrize("name", ["l1", "l2", "fpgm"])
def test_an_unknown_normaliser_is_named(name: str) -> None:
    with pytest.raises(AutoSparseError, match=f"unknown normalise of {name} 'men': did you mean mean"):
        found(name, linear([[1], [2]], [[1, 1]]), normalise="men")


# ------------------------------------------------------------------------------------------------------ distances


def test_distances_between_filters_by_hand() -> None:
    # On a line, 5 apart: the middle one is the geometric median.
    network = linear([[0, 0], [6, 8], [3, 4]], [[1, 1, 1]])
    np.testing.assert_allclose(found("fpgm", network, normalise="none")["0"], [15, 15, 10])
    np.testing.assert_allclose(found("fpgm", network, normalise="max")["0"], [1, 1, 2 / 3])


def test_distances_do_not_see_where_the_filters_lie() -> None:
    far = linear([[1000, 1000], [1006, 1008], [1003, 1004]], [[1, 1, 1]])
    np.testing.assert_allclose(found("fpgm", far, normalise="none")["0"], [15, 15, 10])


def test_distances_of_tied_layers_are_added_up() -> None:
    model = RESIDUAL().double()
    expected = np.zeros(4)
    for name in ("stem", "back"):
        rows = model.get_parameter(f"{name}.weight").detach().flatten(1)
        expected += [sum(float((a - b).norm()) for b in rows) for a in rows]
    np.testing.assert_allclose(found("fpgm", (model, coupled(model)), normalise="none")["stem"], expected)


# --------------------------------------------------------------------------------------------------------- scales


def test_scales_of_batch_norm_by_hand_and_groups_without_go_last() -> None:
    model = RESIDUAL()
    with torch.no_grad():
        model.get_parameter("norm.weight").copy_(torch.tensor([1.0, -3.0, 0.5, 2.0]))
    scores = found("bn-scale", (model, coupled(model)))
    assert scores["stem"].tolist() == [1, 3, 0.5, 2]
    assert scores["inner"].tolist() == [3] * 6


def test_scales_of_several_norms_are_averaged() -> None:
    model = blank("depthwise")
    with torch.no_grad():
        model.get_parameter("norm.weight").copy_(torch.tensor([1.0, 2, 3, 4, 5, 6]))
        model.get_parameter("second.weight").copy_(torch.tensor([-3.0, 0, 0, 0, 0, 2]))
    assert found("bn-scale", (model, coupled(model)))["expand"].tolist() == [2, 1, 1.5, 2, 2.5, 4]


def test_a_network_without_batch_norm_is_refused() -> None:
    check, x = CHANNEL_CRITERIA.get("bn-scale").check, torch.zeros(2, 3, 8, 8)
    check(RESIDUAL(), x)
    with pytest.raises(AutoSparseError, match="no removable channel of Sequential has one: use another criterion"):
        check(nn.Sequential(nn.Linear(2, 2)), x)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1))
    with pytest.raises(AutoSparseError, match="no removable channel of Sequential has one: use another criterion"):
        found("bn-scale", (plain, couple(plain, torch.zeros(1, 3, 8, 8))))


# ------------------------------------------------------------------------------------------------------ entropies


def test_entropy_by_hand() -> None:
    p = math.e / (math.e + 1)
    assert entropy(np.array([3.0, 1.0])) == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))
    assert entropy(np.array([5.0, 5.0, 5.0])) == pytest.approx(math.log(3))  # as an orthogonal layer has
    assert entropy(np.array([7.0])) == 0


def test_afie_by_hand() -> None:
    # Singular values 3 and 1, two filters; by L1 the second one ranks first.
    network = linear([[0, 1], [-3, 0]], [[1, 1]])
    p = math.e / (math.e + 1)
    each = (-p * math.log(p) - (1 - p) * math.log(1 - p)) / 2
    np.testing.assert_allclose(found("afie", network)["0"], [each / 2, each])


def test_filters_rank_by_the_norm_that_is_asked_for_and_the_earlier_first_on_a_tie() -> None:
    network = linear([[2, 2], [0, 3], [3, 0]], [[1, 1, 1]])
    l1, l2 = found("afie", network)["0"], found("afie", network, within="l2")["0"]
    np.testing.assert_allclose(l1 / l1.max(), [1, 2 / 3, 1 / 3])
    np.testing.assert_allclose(l2 / l2.max(), [1 / 3, 1, 2 / 3])


def test_a_threshold_removes_in_inverse_proportion_to_afie() -> None:
    stream = torch.Generator().manual_seed(0)
    network = linear(
        torch.randn(60, 4, generator=stream).tolist(), torch.randn(20, 60, generator=stream).tolist(), [[1] * 20]
    )
    scores = found("afie", network)
    importance = {group: values.max() for group, values in scores.items()}  # the best filter has rank 1
    assert importance["0"] < importance["1"]
    for threshold in (0.3 * importance["0"], 0.9 * importance["0"]):
        for group, values in scores.items():
            expected = math.floor(threshold / importance[group] * len(values) + 1e-9)
            assert (values <= threshold * (1 + 1e-12)).sum() == expected


def test_kernels_are_averaged_or_flattened() -> None:
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for kernels, matrix in (("mean", weight.mean((2, 3))), ("flatten", weight.flatten(1))):
        expected = torch.linalg.svdvals(matrix).sort().values
        np.testing.assert_allclose(np.sort(singular_values(weight, 1, kernels)), expected, rtol=1e-9)


def test_a_layer_of_one_input_has_more_than_one_singular_value() -> None:
    weight = torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    expected = torch.linalg.svdvals(weight.flatten(1)).sort().values
    np.testing.assert_allclose(np.sort(singular_values(weight, 1, "mean")), expected, rtol=1e-9)


def test_a_grouped_convolution_is_a_matrix_of_blocks() -> None:
    weight = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    means = weight.mean((2, 3))
    matrix = torch.block_diag(means[:2], means[2:4], means[4:])
    expected = torch.linalg.svdvals(matrix).sort().values
    np.testing.assert_allclose(np.sort(singular_values(weight, 3, "mean")), expected, rtol=1e-9)


def test_tied_layers_average_their_afie() -> None:
    model = RESIDUAL().double()
    each = []
    for name in ("stem", "back"):
        weight = model.get_parameter(f"{name}.weight").detach()
        each.append(entropy(singular_values(weight, 1, "mean")) / 4)
    assert found("afie", (model, coupled(model)))["stem"].max() == pytest.approx(np.mean(each))


@pytest.mark.parametrize("option", ["kernels", "within"])
def test_unknown_settings_of_afie_are_named(option: str) -> None:
    with pytest.raises(AutoSparseError, match=f"unknown {option} of afie 'none'"):
        found("afie", linear([[1], [2]], [[1, 1]]), **{option: "none"})
