"""Networks of a few channels, one for each way in which channels are coupled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autosparse.seeding import global_stream


class Small(nn.Module):
    """Layers by name, and how images pass them."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._run = run

    def forward(self, x: Tensor) -> Any:
        return self._run(self, x)


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def _build(run: Callable[[Any, Tensor], Any], layers: Callable[[], dict[str, nn.Module]]) -> Small:
    with global_stream(0, "small networks"):
        return Small(run, **layers())


def _pooled(net: Any, x: Tensor) -> Tensor:
    return net.head(x.relu().mean((2, 3)))


def _residual(net: Any, x: Tensor) -> Tensor:
    x = net.norm(net.stem(x)).relu()
    return _pooled(net, x + net.back(net.inner(x).relu()))


RESIDUAL = partial(
    _build,
    _residual,
    lambda: {
        "stem": conv(3, 4),
        "norm": nn.BatchNorm2d(4),
        "inner": conv(4, 6),
        "back": conv(6, 4),
        "head": nn.Linear(4, 5),
    },
)
CONCATENATION_AND_SUM = partial(
    _build,
    lambda net, x: _pooled(net, net.conv(torch.cat([net.a(x), net.b(x)], 1) + net.total(x))),
    lambda: {
        "a": conv(3, 2),
        "b": conv(3, 3),
        "total": conv(3, 5),
        "conv": conv(5, 4),
        "head": nn.Linear(4, 5),
    },
)
FLATTENED = partial(
    _build,
    lambda net, x: net.head(net.hidden(net.conv(x).relu().flatten(1)).relu()),
    lambda: {"conv": conv(3, 2), "hidden": nn.Linear(128, 7), "head": nn.Linear(7, 5)},
)


def _gated(net: Any, x: Tensor) -> Tensor:
    values, gates = net.conv(x).chunk(2, 1)
    return _pooled(net, values * gates.sigmoid())


GATED = partial(_build, _gated, lambda: {"conv": conv(3, 8), "head": nn.Linear(4, 5)})
GROUPED = partial(
    _build,
    lambda net, x: _pooled(net, net.grouped(net.stem(x))),
    lambda: {"stem": conv(3, 4), "grouped": conv(4, 6, groups=2), "head": nn.Linear(6, 5)},
)


def _returns_features(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = net.first(x).relu()
    return x, _pooled(net, net.second(x))


RETURNS_FEATURES = partial(
    _build, _returns_features, lambda: {"first": conv(3, 4), "second": conv(4, 6), "head": nn.Linear(6, 5)}
)


def _twice(net: Any, x: Tensor) -> Tensor:
    x = net.again(net.first(x).relu()).relu()
    return _pooled(net, net.conv(net.again(x).relu()))


TWICE = partial(
    _build,
    _twice,
    lambda: {"first": conv(3, 4), "again": conv(4, 4), "conv": conv(4, 6), "head": nn.Linear(6, 5)},
)
PIXEL_SHUFFLE = partial(
    _build,
    lambda net, x: _pooled(net, net.after(nn.functional.pixel_shuffle(net.conv(net.stem(x).relu()), 2))),
    lambda: {"stem": conv(3, 4), "conv": conv(4, 16), "after": conv(4, 6), "head": nn.Linear(6, 5)},
)


def _shuffled(net: Any, x: Tensor) -> Tensor:
    x = net.conv(x)
    mixed = x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
    return _pooled(net, net.after(mixed))


SHUFFLED = partial(_build, _shuffled, lambda: {"conv": conv(3, 8), "after": conv(8, 6), "head": nn.Linear(6, 5)})
INPUT_ADDED = partial(
    _build,
    lambda net, x: _pooled(net, net.after(x + net.back(net.inner(x).relu()))),
    lambda: {"inner": conv(3, 4), "back": conv(4, 3), "after": conv(3, 6), "head": nn.Linear(6, 5)},
)
