"""What the built-in networks share: width scaling, convolutions without bias, initialisation."""

from __future__ import annotations

import math

from torch import nn

from autosparse.errors import AutoSparseError


def check_width(width: float) -> None:
    """AutoSparseError unless ``width`` is a positive, finite number."""
    is_number = isinstance(width, (int, float)) and not isinstance(width, bool)
    if not is_number or not math.isfinite(width) or width <= 0:
        raise AutoSparseError(f"width must be a positive number such as 0.5, not {width!r}")


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, rounded to an integer of at least 1; AutoSparseError on an invalid width."""
    check_width(width)
    return max(1, round(channels * width))


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps H x W at stride 1. No bias: batch normalisation would cancel it."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def initialise(model: nn.Module) -> None:
    """Initialise all layers of ``model`` in place, from torch's global RNG.

    Convolutions: Kaiming normal for ReLU over the fan-out, N(0, 2 / fan_out) (He et al. 2015, arXiv 1502.01852).
    Batch normalisation: weight 1, bias 0. Linear layers keep torch's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for
    weight and bias.

    The fan-out is that of one group. ``nn.init.kaiming_normal_`` takes all groups together, which would make depthwise
    weights smaller by sqrt(groups); criteria that compare magnitudes across layers would then remove them first.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
