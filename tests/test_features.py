"""Features of weights: hand-computed columns, storage order, and independence of scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.features import (
    AT_ANY_MOMENT,
    FEATURE_SETS,
    GRADIENT_REACH,
    LOG_FLOOR,
    FeaturesOfRest,
    NetworkFeatures,
    feature_set,
)
from autosparse.layers import Layer, layers_of, prunable

W = torch.tensor([[1.0, -1.0], [3.0, -3.0]]).reshape(2, 2, 1, 1)  # σ = √5
G = torch.tensor([[0.0, 2.0], [-2.0, 0.0]]).reshape(2, 2, 1, 1)  # ρ = √2
LAYERS = [
    Layer("a", "conv2d", (2, 2, 1, 1), groups=1, depth=0, offset=0),
    Layer("b", "linear", (3, 4), groups=1, depth=1, offset=4),
    Layer("c", "conv2d", (4, 1, 3, 3), groups=4, depth=2, offset=16),
]

BYPASS = {"a": 0.25, "b": 0.0, "c": 1.0}


def tensors(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and gradients of the three layers; the first layer's are the ones above."""
    rng = torch.Generator().manual_seed(seed)
    weights = {layer.name: torch.randn(layer.shape, generator=rng) for layer in LAYERS}
    gradients = {layer.name: torch.randn(layer.shape, generator=rng) * 0.01 for layer in LAYERS}
    return {**weights, "a": W}, {**gradients, "a": G}


def matrix_of(layer: Layer, weights: dict[str, Tensor], gradients: dict[str, Tensor]) -> Tensor:
    return NetworkFeatures("scale-free", LAYERS, weights, gradients).layer(layer).matrix()


def test_scale_free_features_by_hand() -> None:
    weights, gradients = tensors()
    rows = matrix_of(LAYERS[0], weights, gradients)
    assert rows.shape == (4, len(FEATURE_SETS["scale-free"].names)) == (4, 15)
    z = [1 / math.sqrt(5), -1 / math.sqrt(5), 3 / math.sqrt(5), -3 / math.sqrt(5)]
    h = [0, math.sqrt(2), -math.sqrt(2), 0]
    total = 4 + 12 + 36
    network_rms = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()) / total)
    context = [
        math.log(2),  # fan-in
        math.log(2),  # fan-out
        0.0,  # first of three layers
        1.0,  # a 1x1 kernel
        math.log(4 / total),
        math.log(math.sqrt(2) / network_rms),
    ]
    for row, (zi, hi, out, inp) in enumerate(zip(z, h, (0, 0, 1, 1), (0, 1, 0, 1), strict=True)):
        expected = [
            zi,
            hi,
            math.log(abs(zi)),
            math.log(max(abs(hi), LOG_FLOOR)),
            zi * hi,
            (1 / math.sqrt(5), 3 / math.sqrt(5))[out],  # mean |z| of the output channel
            math.sqrt(2) / 2,  # one gradient of each channel is 0, the other √2
            (2 / math.sqrt(5), 2 / math.sqrt(5))[inp],  # mean |z| of the input channel: (1 + 3) / 2
            math.sqrt(2) / 2,
            *context,
        ]
        assert rows[row].tolist() == pytest.approx(expected, abs=1e-6), row


def test_context_of_a_depthwise_convolution_by_hand() -> None:
    weights, gradients = tensors()
    rows = matrix_of(LAYERS[2], weights, gradients)
    names = FEATURE_SETS["scale-free"].names
    context = dict(zip(names, rows[0].tolist(), strict=True))
    assert context["log fan-in"] == pytest.approx(math.log(9))
    assert context["log fan-out"] == pytest.approx(math.log(9))
    assert context["relative depth"] == 1
    assert context["kernel size"] == 3
    assert context["log share of weights"] == pytest.approx(math.log(36 / 52))
    # The only input channel of the tensor: the mean over all its weights.
    sigma = weights["c"].std(correction=0)
    assert context["in mean|z|"] == pytest.approx(float((weights["c"] / sigma).abs().mean()))


def test_paper_features_are_the_raw_values() -> None:
    weights, gradients = tensors()
    features = NetworkFeatures("paper", LAYERS, weights, gradients)
    for layer in LAYERS:
        expected = torch.stack([weights[layer.name].flatten(), gradients[layer.name].flatten()], dim=1)
        assert torch.equal(features.layer(layer).matrix(), expected)


@pytest.mark.parametrize("name", list(FEATURE_SETS))
def test_rows_are_in_storage_order_and_ranges_are_slices(name: str) -> None:
    weights, gradients = tensors()
    for layer in LAYERS:
        features = NetworkFeatures(name, LAYERS, weights, gradients, bypass=BYPASS).layer(layer)
        whole = features.matrix()
        assert whole.shape == (layer.size, len(feature_set(name).names))
        flat = weights[layer.name].flatten()
        if name in AT_ANY_MOMENT:
            everything = torch.cat([weights[layer.name].flatten() for layer in LAYERS])
            assert torch.allclose(whole[:, 0].exp() * everything.square().mean().sqrt(), flat.abs(), atol=1e-5)
        else:
            scale = 1.0 if name == "paper" else float(flat.std(correction=0))
            assert torch.allclose(whole[:, 0] * scale, flat)
        per_channel = layer.size // layer.shape[0]
        for start in range(layer.shape[0]):
            for stop in range(start + 1, layer.shape[0] + 1):
                part = features.matrix(start, stop)
                assert torch.equal(part, whole[start * per_channel : stop * per_channel])


def test_state_features_by_hand() -> None:
    weights, gradients = tensors()
    masks = {layer.name: torch.ones(layer.shape, dtype=torch.bool) for layer in LAYERS}
    masks["a"] = torch.tensor([[True, False], [True, True]]).reshape(2, 2, 1, 1)
    masks["b"] = torch.zeros(3, 4, dtype=torch.bool)
    weights = {name: value * masks[name] for name, value in weights.items()}
    rows = NetworkFeatures("state", LAYERS, weights, gradients, masks).layer(LAYERS[0]).matrix()
    c_w, c_g = (float(values["c"].double().square().sum()) for values in (weights, gradients))
    left = 3 + 36
    sigma = math.sqrt((1 + 9 + 9 + c_w) / left)
    rho = math.sqrt((0 + 4 + 0 + c_g) / left)  # the gradient 2 of a removed weight does not count
    first = dict(zip(FEATURE_SETS["state"].names, rows[2].tolist(), strict=True))  # the weight 3 with gradient -2
    expected = {
        "log|z|": math.log(3 / sigma),
        "log|h|": math.log(2 / rho),
        "log out share": math.log(2 / 1.5 + 0.1),  # 1 and 2 are left of the output channels
        "log in share": math.log(2 / 1.5 + 0.1),  # 2 and 1 of the input channels
        "log fan-in": math.log(2),
        "log fan-out": math.log(2),
        "relative depth": 0.0,
        "kernel size": 1.0,
        "log share of weights": math.log(4 / 52),
        "log gradient scale / network's": math.log(math.sqrt(4 / 3) / rho),
        "log weight scale / network's": math.log(math.sqrt(19 / 3) / sigma),
        "log density / network's": math.log((3 / 4) / (left / 52)),
    }
    assert first == pytest.approx(expected, abs=1e-5)
    with_flow = NetworkFeatures("flow", LAYERS, weights, gradients, masks, BYPASS).layer(LAYERS[0]).matrix()
    more = {"bypass": 0.25, "bypass * log density": 0.25 * expected["log density / network's"]}
    assert dict(zip(FEATURE_SETS["flow"].names, with_flow[2].tolist(), strict=True)) == pytest.approx(
        {**expected, **more}, abs=1e-5
    )
    with pytest.raises(AutoSparseError, match="no network is here: choose 'state'"):
        NetworkFeatures("flow", LAYERS, weights, gradients, masks)


@pytest.mark.parametrize("name", ["state", "flow"])
def test_features_of_the_rest_are_rows_of_the_whole(name: str) -> None:
    weights, gradients = tensors()
    masks = {layer.name: torch.rand(layer.shape, generator=torch.Generator().manual_seed(3)) < 0.6 for layer in LAYERS}
    masks["c"] = torch.ones_like(masks["c"])
    weights = {name: value * masks[name] for name, value in weights.items()}
    whole = NetworkFeatures(name, LAYERS, weights, gradients, masks, BYPASS)
    places = {name: mask.flatten().nonzero().squeeze(1) for name, mask in masks.items()}
    left_weights, left_gradients = (
        {name: value.flatten()[places[name]] for name, value in kind.items()} for kind in (weights, gradients)
    )
    for of_c in (places["c"], None):  # everything is left of it
        rest = FeaturesOfRest(name, LAYERS, left_weights, left_gradients, {**places, "c": of_c}, BYPASS)
        for layer in LAYERS:
            expected = whole.layer(layer).matrix()[places[layer.name]]
            assert torch.allclose(rest.layer(layer).matrix(), expected, atol=1e-5)


def test_outputs_of_the_network_do_not_compete_as_channels_do() -> None:
    weights, gradients = tensors()
    masks = {layer.name: torch.rand(layer.shape, generator=torch.Generator().manual_seed(3)) < 0.6 for layer in LAYERS}
    masks["c"][0] = False
    weights = {name: value * masks[name] for name, value in weights.items()}
    column = FEATURE_SETS["flow"].names.index("log out share")
    state, flow = (NetworkFeatures(name, LAYERS, weights, gradients, masks, BYPASS) for name in ("state", "flow"))
    for layer in LAYERS:
        found, inner = (features.layer(layer).matrix()[:, column] for features in (flow, state))
        if layer.name == "c":
            assert torch.allclose(found, torch.tensor(1.1).log())  # as if as much were left of each
            assert not torch.allclose(inner, found)
        else:
            assert torch.equal(found, inner)
    left = {name: mask.flatten().nonzero().squeeze(1) for name, mask in masks.items()}
    weights, gradients = (
        {name: value.flatten()[left[name]] for name, value in kind.items()} for kind in (weights, gradients)
    )
    rest = FeaturesOfRest("flow", LAYERS, weights, gradients, left, BYPASS)
    assert torch.allclose(rest.layer(LAYERS[-1]).matrix(), flow.layer(LAYERS[-1]).matrix()[left["c"]], atol=1e-5)


@pytest.mark.parametrize("tiny", [("b",), ("a", "c")])
def test_gradients_far_below_the_networks_count_as_just_within_reach_in_flow(tiny: tuple[str, ...]) -> None:
    """Behind a layer scale of 10^-6 a layer's gradients are a millionth of the others'."""
    weights, gradients = tensors()
    gradients = {name: value / value.square().mean().sqrt() for name, value in gradients.items()}
    gradients = {name: value * 1e-7 if name in tiny else value for name, value in gradients.items()}
    h, share = (FEATURE_SETS["flow"].names.index(name) for name in ("log|h|", "log gradient scale / network's"))
    state, flow = (NetworkFeatures(name, LAYERS, weights, gradients, bypass=BYPASS) for name in ("state", "flow"))
    places = {layer.name: torch.arange(layer.size) for layer in LAYERS}
    flat_weights, flat_gradients = (
        {name: value.flatten() for name, value in kind.items()} for kind in (weights, gradients)
    )
    rest = FeaturesOfRest("flow", LAYERS, flat_weights, flat_gradients, places, BYPASS)
    for layer in LAYERS:
        unbound, bound = (features.layer(layer).matrix()[:, [h, share]] for features in (state, flow))
        if layer.name in tiny:
            assert unbound[:, 1].tolist() == pytest.approx([math.log(LOG_FLOOR)] * layer.size)
            own = gradients[layer.name].flatten().abs() / 1e-7
            assert torch.allclose(bound[:, 0], (own / GRADIENT_REACH).clamp(min=LOG_FLOOR).log(), atol=1e-5)
            assert bound[:, 1].tolist() == pytest.approx([-math.log(GRADIENT_REACH)] * layer.size)
        else:
            assert torch.equal(bound, unbound)
        assert torch.allclose(rest.layer(layer).matrix(), flow.layer(layer).matrix(), atol=1e-5)


def test_state_features_of_a_layer_with_nothing_left_are_finite() -> None:
    weights, gradients = tensors()
    masks = {layer.name: torch.ones(layer.shape, dtype=torch.bool) for layer in LAYERS}
    masks["b"] = torch.zeros(3, 4, dtype=torch.bool)
    weights["b"] = torch.zeros(3, 4)
    rows = NetworkFeatures("state", LAYERS, weights, gradients, masks).layer(LAYERS[1]).matrix()
    assert rows.isfinite().all()
    everything = NetworkFeatures("state", LAYERS, tensors()[0], gradients)
    whole = {layer.name: torch.ones(layer.shape, dtype=torch.bool) for layer in LAYERS}
    same = NetworkFeatures("state", LAYERS, tensors()[0], gradients, whole)
    for layer in LAYERS:
        assert torch.allclose(everything.layer(layer).matrix(), same.layer(layer).matrix(), atol=1e-6)


def test_channels_last_weights_have_the_same_features() -> None:
    weights, gradients = tensors()
    moved = {
        name: value.to(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in weights.items()
    }
    for layer in LAYERS:
        assert torch.equal(matrix_of(layer, weights, gradients), matrix_of(layer, moved, gradients))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.floats(0.01, 100), st.integers(0, 50))
def test_ratios_do_not_change_when_a_layer_is_rescaled(c: float, seed: int) -> None:
    """A layer times c before a norm computes the same, and its gradient shrinks by c: nothing but scale changed."""
    weights, gradients = tensors(seed)
    moved = ({**weights, "b": weights["b"] * c}, {**gradients, "b": gradients["b"] / c})
    before, after = matrix_of(LAYERS[1], weights, gradients), matrix_of(LAYERS[1], *moved)
    # All but the last column, which compares the layer's gradient with the network's.
    assert torch.allclose(before[:, :-1], after[:, :-1], rtol=1e-4, atol=1e-4)


def test_the_gradient_scale_is_compared_with_the_networks() -> None:
    weights, gradients = tensors()
    before = matrix_of(LAYERS[1], weights, gradients)
    scaled = {name: gradient * 1000 for name, gradient in gradients.items()}
    assert torch.allclose(before, matrix_of(LAYERS[1], weights, scaled), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_a_layer_without_spread_has_finite_features(constant: float) -> None:
    weights, gradients = tensors()
    weights["b"] = torch.full_like(weights["b"], constant)
    gradients["b"] = torch.zeros_like(gradients["b"])
    rows = matrix_of(LAYERS[1], weights, gradients)
    assert rows.isfinite().all()
    assert (rows[:, 3] == math.log(LOG_FLOOR)).all()
    nothing = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    assert all(matrix_of(layer, weights, nothing).isfinite().all() for layer in LAYERS)


def test_a_whole_network_has_features(conv_net: Callable[[], nn.Module]) -> None:
    model = conv_net()
    layers, weights = layers_of(model), prunable(model)
    features = NetworkFeatures("scale-free", layers, weights, {n: torch.ones_like(w) for n, w in weights.items()})
    rows = torch.cat([features.layer(layer).matrix() for layer in layers])
    assert rows.shape == (368, 15)
    assert rows.isfinite().all()
    assert not rows.requires_grad
    assert rows[:, 11].unique().tolist() == pytest.approx([0, 0.5, 1])  # relative depth


def test_an_unknown_feature_set_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown feature set 'scale': did you mean scale-free"):
        feature_set("scale")
