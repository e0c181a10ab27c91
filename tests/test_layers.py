"""Which weights are prunable, in one fixed order, and what is said of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from autosparse.errors import AutoSparseError
from autosparse.layers import Layer, layers_of, prunable, total_weights
from autosparse.models import create_model


def test_layers_are_described_in_order_of_registration(conv_net: Callable[[], nn.Module]) -> None:
    assert layers_of(conv_net()) == [
        Layer("stem.weight", "conv2d", (8, 3, 3, 3), groups=1, depth=0, offset=0),
        Layer("depthwise.weight", "conv2d", (8, 1, 3, 3), groups=8, depth=1, offset=216),
        Layer("classifier.weight", "linear", (10, 8), groups=1, depth=2, offset=288),
    ]


@pytest.mark.parametrize(
    ("shape", "groups", "size", "taps", "fan_in", "fan_out"),
    [
        ((8, 3, 3, 3), 1, 216, 9, 27, 72),
        ((8, 1, 3, 3), 8, 72, 9, 9, 9),  # depthwise: each input reaches one output
        ((8, 2, 1, 5), 4, 80, 5, 10, 10),  # 4 groups of 2 inputs and 2 outputs
        ((10, 8), 1, 80, 1, 8, 10),
    ],
)
def test_sizes_and_fans(shape: tuple[int, ...], groups: int, size: int, taps: int, fan_in: int, fan_out: int) -> None:
    layer = Layer("w", "any", shape, groups, 0, 0)
    assert (layer.size, layer.taps, layer.fan_in, layer.fan_out) == (size, taps, fan_in, fan_out)


def test_only_convolution_and_linear_weights_are_prunable() -> None:
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "one": nn.Conv1d(4, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "three": nn.Conv3d(4, 4, 3),
            "up": nn.ConvTranspose2d(4, 4, 3),
            "attention": nn.MultiheadAttention(4, 2),
            "head": nn.Linear(4, 4),
        }
    )
    kinds = {layer.name: layer.kind for layer in layers_of(model)}
    assert kinds == {
        "one.weight": "conv1d",
        "three.weight": "conv3d",
        "attention.out_proj.weight": "linear",
        "head.weight": "linear",
    }


def test_names_lead_to_the_parameters_themselves() -> None:
    model = create_model("resnet20", width=0.25)
    weights = prunable(model)
    assert len(weights) == 22  # stem, 9 blocks of two, 2 shortcuts, classifier
    assert all(model.get_parameter(name) is weight for name, weight in weights.items())
    layers = layers_of(model)
    assert [layer.name for layer in layers] == list(weights)
    assert [layer.depth for layer in layers] == list(range(22))
    flat = torch.cat([weight.flatten() for weight in weights.values()])
    assert total_weights(layers) == len(flat)
    for layer in layers:
        part = flat[layer.offset : layer.offset + layer.size].reshape(layer.shape)
        assert torch.equal(part, weights[layer.name])


def test_a_bare_layer_is_called_weight() -> None:
    assert list(prunable(nn.Linear(2, 3))) == ["weight"]


def test_a_shared_weight_is_listed_once_where_it_appears_first() -> None:
    first, middle, last = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 3)
    last.weight = first.weight
    model = nn.Sequential(first, middle, last)
    assert [layer.name for layer in layers_of(model)] == ["0.weight", "1.weight"]
    assert total_weights(layers_of(model)) == 15


def test_a_model_without_prunable_weights_is_refused_by_name() -> None:
    with pytest.raises(AutoSparseError, match="BatchNorm2d has no prunable weights"):
        prunable(nn.BatchNorm2d(3))
    with pytest.raises(AutoSparseError, match="Sequential has no prunable weights"):
        layers_of(nn.Sequential())
