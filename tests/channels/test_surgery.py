"""A network without some channels computes what it computed with zeros in their place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import CONCATENATION_AND_SUM, FLATTENED, GATED, GROUPED, RESIDUAL, TWICE
from torch import Tensor, nn

from autosparse.channels.coupling import couple
from autosparse.channels.groups import Coupling, without
from autosparse.channels.surgery import shrink_, zero_
from autosparse.errors import AutoSparseError
from autosparse.models import seeded_model

Keep = dict[str, np.ndarray]


def some(coupling: Coupling, seed: int = 0) -> Keep:
    """About half of every group, at least one channel."""
    rng = np.random.default_rng(seed)
    kept = {}
    for group in coupling:
        kept[group.name] = rng.random(group.width) < 0.5
        kept[group.name][rng.integers(group.width)] = True
    return kept


def trained_like(model: nn.Module) -> nn.Module:
    """Norms that are no identity, and layer scales that let the blocks be seen."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_mean"):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=rng))
            elif name.endswith("running_var") or "layer_scale" in name:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=rng))
            elif tensor.dim() == 1:
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=rng))
    return model.eval()


def outputs(model: nn.Module, coupling: Coupling, kept: Keep, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the dense, the zeroed and the shrunk network."""
    zeroed, small = copy.deepcopy(model), copy.deepcopy(model)
    zero_(zeroed, coupling, kept)
    shrink_(small, coupling, kept)
    with torch.no_grad():
        return model(x), zeroed(x), small(x)


NETWORKS = [
    ("resnet20", 32, {}),
    ("resnet56", 32, {}),
    ("resnet18", 32, {}),
    ("vgg16", 32, {}),
    ("wrn-16-2", 32, {}),
    ("mobilenetv2", 32, {}),
    ("torchvision:resnet50", 64, {}),
    ("torchvision:mobilenet_v2", 64, {}),
    ("torchvision:mobilenet_v3_small", 64, {}),
    ("torchvision:mobilenet_v3_large", 64, {}),
    ("torchvision:efficientnet_b0", 64, {}),
    ("torchvision:densenet121", 64, {}),
    ("torchvision:convnext_tiny", 64, {}),
    ("torchvision:regnet_y_400mf", 64, {}),
    ("torchvision:regnet_x_400mf", 64, {}),
    ("timm:vit_tiny_patch16_224", 32, {"img_size": 32}),
    ("timm:deit_tiny_patch16_224", 32, {"img_size": 32}),
]


@pytest.mark.parametrize(("name", "size", "options"), NETWORKS, ids=[name for name, _, _ in NETWORKS])
def test_shrinking_keeps_the_function(name: str, size: int, options: dict[str, Any]) -> None:
    if name.startswith("timm:") and find_spec("timm") is None:
        pytest.skip("timm is not installed")
    model = trained_like(seeded_model(name, seed=0, num_classes=10, **options))
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    coupling = couple(model, x)
    dense, zeroed, small = outputs(model, coupling, some(coupling), x)
    assert float((small - zeroed).abs().max()) < 1e-5
    assert float((small - dense).abs().max()) > 1e-3  # what was removed had mattered


@pytest.mark.parametrize("build", [RESIDUAL, CONCATENATION_AND_SUM, FLATTENED, GATED, GROUPED, TWICE])
def test_shrinking_keeps_the_function_of_every_kind_of_coupling(build: Callable[[], nn.Module]) -> None:
    model = trained_like(build()).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    coupling = couple(model, x)
    for seed in range(5):
        dense, zeroed, small = outputs(model, coupling, some(coupling, seed), x)
        torch.testing.assert_close(small, zeroed, rtol=1e-12, atol=1e-12)
    assert not torch.equal(dense, zeroed)


def test_shapes_by_hand() -> None:
    model = RESIDUAL()
    coupling = couple(model, torch.zeros(1, 3, 8, 8))
    inner = model.inner.weight.detach().clone()  # type: ignore[union-attr,operator]
    shrink_(model, coupling, {"stem": np.array([True, False, False, True]), "inner": np.arange(6) >= 3})
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        "stem.weight": (2, 3, 3, 3),
        "stem.bias": (2,),
        "norm.weight": (2,),
        "norm.bias": (2,),
        "inner.weight": (3, 2, 3, 3),
        "inner.bias": (3,),
        "back.weight": (2, 3, 3, 3),
        "back.bias": (2,),
        "head.weight": (5, 2),
        "head.bias": (5,),
    }
    assert torch.equal(model.inner.weight, inner[3:][:, [0, 3]])  # type: ignore[arg-type,union-attr]
    assert (model.inner.in_channels, model.inner.out_channels, model.norm.num_features) == (2, 3, 2)  # type: ignore[union-attr]


def test_a_grouped_convolution_has_fewer_groups_of_the_same_size() -> None:
    model = GROUPED()
    coupling = couple(model, torch.zeros(1, 3, 8, 8))
    shrink_(model, coupling, {"stem": np.array([False, True])})
    grouped = model.grouped
    assert isinstance(grouped, nn.Conv2d)
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (1, 2, 3)
    assert tuple(grouped.weight.shape) == (3, 2, 3, 3)


def test_what_is_frozen_stays_frozen() -> None:
    model = RESIDUAL()
    model.inner.weight.requires_grad_(False)  # type: ignore[union-attr]
    coupling = couple(model, torch.zeros(1, 3, 8, 8))
    shrink_(model, coupling, {"inner": np.arange(6) < 2})
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["inner.weight"]


def test_the_shrunk_network_can_be_trained() -> None:
    model = RESIDUAL()
    shrink_(model, couple(model, torch.zeros(1, 3, 8, 8)), {"inner": np.arange(6) < 2})
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"inner": np.zeros(6, dtype=bool)}, "'inner' would vanish"),
        ({"inner": np.ones(5, dtype=bool)}, "'inner' has 6 channels"),
        ({"inner": np.ones(6)}, "'inner' has 6 channels"),
        ({"outer": np.ones(6, dtype=bool)}, "no channel group 'outer': known are stem, inner"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_cut(kept: Keep, message: str) -> None:
    model = RESIDUAL()
    coupling = couple(model, torch.zeros(1, 3, 8, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for cut in (shrink_, zero_):
        with pytest.raises(AutoSparseError, match=message):
            cut(model, coupling, {"stem": np.array([True, False, True, False]), **kept})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "build",
    [
        RESIDUAL,
        CONCATENATION_AND_SUM,
        FLATTENED,
        GATED,
        GROUPED,
        partial(seeded_model, "mobilenetv2", seed=0, num_classes=10),
    ],
)
def test_the_coupling_of_what_is_left_is_known_without_tracing(build: Callable[[], nn.Module]) -> None:
    model, image = build(), torch.zeros(1, 3, 8, 8)
    coupling = couple(model, image)
    kept = some(coupling)
    shrink_(model, coupling, kept)
    left, traced = without(coupling, kept), couple(model, image)
    assert left.widths == traced.widths
    for ours, theirs in zip(left, traced, strict=True):
        assert [(m.module, m.side, m.positions.tolist()) for m in ours.members] == [
            (m.module, m.side, m.positions.tolist()) for m in theirs.members
        ]
