"""Parameters and FLOPs as functions of the widths."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import FLATTENED, GROUPED, RESIDUAL
from torch import nn

from autosparse.channels.costs import costs_of, count_flops
from autosparse.channels.coupling import couple
from autosparse.channels.surgery import shrink_
from autosparse.models import create_model

IMAGE = torch.zeros(1, 3, 8, 8)


def test_by_hand() -> None:
    model = RESIDUAL()  # conv 3 -> s, s -> i, i -> s at 8x8, a norm of s, a classifier s -> 5
    costs = costs_of(model, couple(model, IMAGE), IMAGE)

    def params(s: float, i: float) -> float:
        return (27 * s + s) + 2 * s + (9 * s * i + i) + (9 * i * s + s) + (5 * s + 5)

    def flops(s: float, i: float) -> float:
        return 2 * 64 * (27 * s + 9 * s * i + 9 * i * s) + 2 * 5 * s

    for s, i in [(4, 6), (1, 1), (2, 5), (2.5, 0.5), (8, 12)]:
        assert costs.params({"stem": s, "inner": i}) == pytest.approx(params(s, i), abs=1e-9)
        assert costs.flops({"stem": s, "inner": i}) == pytest.approx(flops(s, i), abs=1e-9)


def test_gradient_is_that_of_finite_differences() -> None:
    model = RESIDUAL()
    cost = costs_of(model, couple(model, IMAGE), IMAGE).flops
    at, h = np.array([3.0, 5.0]), 1e-4
    numeric = [(cost.at(at + h * e) - cost.at(at - h * e)) / (2 * h) for e in np.eye(2)]
    np.testing.assert_allclose(cost.gradient(at), numeric, rtol=1e-8)


def test_a_grouped_convolution_keeps_the_inputs_of_its_kernels() -> None:
    model = GROUPED()
    costs = costs_of(model, couple(model, IMAGE), IMAGE)
    # one group of two: stem 3 -> 2, grouped 2 -> 3, classifier 3 -> 5
    assert costs.params({"stem": 1}) == (27 * 2 + 2) + (3 * 2 * 9 + 3) + (15 + 5)


def test_a_flattened_image_costs_for_every_position() -> None:
    model = FLATTENED()
    costs = costs_of(model, couple(model, IMAGE), IMAGE)
    assert costs.params({"conv": 1, "hidden": 3}) == (27 + 1) + (64 * 3 + 3) + (3 * 5 + 5)


def test_a_transposed_convolution_that_reads_is_counted_the_right_way_round() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2), nn.Flatten(), nn.Linear(243, 5))
    costs = costs_of(model, couple(model, IMAGE), IMAGE)
    assert costs.params({"0": 2}) == (3 * 2 + 2) + (2 * 3 * 4 + 3) + (243 * 5 + 5)


NETWORKS = [
    ("resnet20", 32, {}),
    ("mobilenetv2", 32, {}),
    ("torchvision:resnet50", 64, {}),
    ("torchvision:efficientnet_b0", 64, {}),
    ("torchvision:densenet121", 64, {}),
    ("torchvision:convnext_tiny", 64, {}),
    ("torchvision:regnet_y_400mf", 64, {}),
    ("timm:vit_tiny_patch16_224", 32, {"img_size": 32}),
]


@pytest.mark.parametrize(("name", "size", "options"), NETWORKS, ids=[name for name, _, _ in NETWORKS])
def test_costs_are_those_of_the_network_when_it_is_built(name: str, size: int, options: dict[str, Any]) -> None:
    if name.startswith("timm:") and find_spec("timm") is None:
        pytest.skip("timm is not installed")
    model, image = create_model(name, **options), torch.zeros(1, 3, size, size)
    coupling = couple(model, image)
    costs = costs_of(model, coupling, image)
    rng = np.random.default_rng(0)
    kept = {group.name: np.arange(group.width) <= rng.integers(group.width) for group in coupling}
    small = copy.deepcopy(model).eval()
    shrink_(small, coupling, kept)
    widths = {group: int(mask.sum()) for group, mask in kept.items()}
    assert costs.params(widths) == sum(p.numel() for p in small.parameters())
    assert costs.flops(widths) == pytest.approx(count_flops(small, image)[""], rel=1e-12)


def test_flops_of_every_module_and_the_model_left_as_it_was() -> None:
    model = RESIDUAL().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = count_flops(model, IMAGE)
    assert found["head"] == 2 * 4 * 5
    assert found[""] == sum(found[name] for name in ("stem", "inner", "back", "head"))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_attention_counts_its_two_products() -> None:
    model, image = create_model("timm:vit_tiny_patch16_224", img_size=32), torch.zeros(1, 3, 32, 32)
    tokens, heads, size = 5, 3, 64
    found = count_flops(model, image)
    layers = found["blocks.0.attn.qkv"] + found["blocks.0.attn.proj"]
    assert found["blocks.0.attn"] - layers == 2 * 2 * tokens * tokens * heads * size
    assert found["blocks.0.attn.qkv"] == 2 * tokens * 192 * 3 * 192
