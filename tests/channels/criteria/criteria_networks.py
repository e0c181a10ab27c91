"""Networks in float64 for tests of channel criteria, one for each way in which channels are coupled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autosparse.channels.coupling import couple
from autosparse.channels.groups import Coupling
from autosparse.models import create_model
from autosparse.seeding import generator, global_stream

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where the small networks lie

from small_networks import CONCATENATION_AND_SUM, FLATTENED, GATED, GROUPED, RESIDUAL, TWICE, Small, conv

Batch = tuple[Tensor, Tensor]
__all__ = ["GROUPED", "NETWORKS", "RESIDUAL", "Batch", "blank", "coupled", "images", "linear", "randomised"]


def _upsampled() -> nn.Module:
    """A transposed convolution, whose axes are swapped, reads."""
    layers = {"stem": conv(3, 4), "up": nn.ConvTranspose2d(4, 3, 2, stride=2), "head": nn.Linear(3, 5)}
    return Small(lambda net, x: net.head(net.up(net.stem(x).relu()).relu().mean((2, 3))), **layers)


def _depthwise() -> nn.Module:
    layers = {
        "expand": conv(3, 6, bias=False),
        "norm": nn.BatchNorm2d(6),
        "depthwise": conv(6, 6, groups=6),
        "second": nn.BatchNorm2d(6),
        "project": conv(6, 4),
        "head": nn.Linear(4, 5),
    }

    def run(net: Any, x: Tensor) -> Tensor:
        x = net.norm(net.expand(x)).relu()
        x = net.second(net.depthwise(x)).relu()
        return net.head(net.project(x).relu().mean((2, 3)))

    return Small(run, **layers)


def _attention() -> nn.Module:
    options = {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 3}
    return create_model("timm:vit_tiny_patch16_224", num_classes=5, **options)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": RESIDUAL,
    "concatenation and sum": CONCATENATION_AND_SUM,
    "flattened": FLATTENED,
    "gated": GATED,
    "grouped": GROUPED,
    "twice": TWICE,
    "upsampled": _upsampled,
    "depthwise": _depthwise,
    "attention": _attention,
}


def blank(name: str) -> nn.Module:
    """The network as it is built."""
    with global_stream(0, "tests"):
        return NETWORKS[name]()


def randomised(model: nn.Module) -> nn.Module:
    """The model in float64 with random biases and norms, so that nothing is zero or one by chance."""
    stream = generator(0, "tests")
    model = model.double()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dim() == 1:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=stream, dtype=torch.float64))
    return model


def images(*sizes: int, classes: int = 5) -> list[Batch]:
    """The same 8x8 images for every grouping of the same total."""
    stream = generator(1, "tests")
    x = torch.randn(sum(sizes), 3, 8, 8, generator=stream, dtype=torch.float64)
    y = torch.randint(0, classes, (sum(sizes),), generator=stream)
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def coupled(model: nn.Module) -> Coupling:
    """The coupling of a network of 8x8 images."""
    return couple(model, torch.zeros(1, 3, 8, 8, dtype=next(model.parameters()).dtype))


def linear(*rows: list[list[float]]) -> tuple[nn.Sequential, Coupling]:
    """Linear layers of given weights without biases, one after the other, and their coupling."""
    weights = [torch.tensor(values, dtype=torch.float64) for values in rows]
    model = nn.Sequential(*(nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype) for w in weights))
    with torch.no_grad():
        for layer, weight in zip(model.parameters(), weights, strict=True):
            layer.copy_(weight)
    return model, couple(model, torch.zeros(1, weights[0].shape[1], dtype=torch.float64))
