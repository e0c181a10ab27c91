"""Residual networks for small images, and the widths-64-to-512 family: resnet18, resnet34, resnet50.

He et al. 2016, Deep Residual Learning for Image Recognition, arXiv 1512.03385. The ImageNet stem (7x7 stride 2 and
max-pooling) would reduce 32x32 to 8x8 before the first block; here it is one 3x3 convolution at stride 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.models.building import conv1x1, conv3x3, initialise, scaled
from autosparse.models.registry import register_model


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Option B of the paper: identity where shapes agree, else a 1x1 convolution with batch normalisation."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv1x1(in_channels, out_channels, stride=stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: (N, C_in, H, W) -> (N, channels, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions: (N, C_in, H, W) -> (N, 4 * channels, H / stride, W / stride).

    The stride sits on the 3x3 convolution, as in current implementations; on the first 1x1, as in the paper, it would
    discard three quarters of the input.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = conv1x1(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride=stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv1x1(channels, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, stages of residual blocks, global average pooling, one linear classifier.

    Maps (N, in_channels, H, W) to logits (N, num_classes) for any H and W. Every stage after the first halves H and W.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        widths: channels of each stage before ``width`` scales them; the stem has those of the first stage.
        depths: blocks of each stage.
        width: multiplier of all channel counts, which are rounded to integers of at least 1.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        widths: Sequence[int],
        depths: Sequence[int],
        *,
        num_classes: int,
        in_channels: int,
        width: float,
    ) -> None:
        super().__init__()
        channels = scaled(widths[0], width)
        self.conv = conv3x3(in_channels, channels)
        self.bn = nn.BatchNorm2d(channels)
        blocks: list[nn.Module] = []
        for stage, (stage_width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                inner = scaled(stage_width, width)
                blocks.append(block(channels, inner, stride))
                channels = block.expansion * inner
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = self.pool(self.blocks(x))
        return self.classifier(x.flatten(1))


WIDTHS = (64, 128, 256, 512)


@register_model("resnet18")
def resnet18(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """18 layers of basic blocks; 11,173,962 parameters, of which 11,164,352 weights of convolutions and classifier."""
    return ResNet(BasicBlock, WIDTHS, (2, 2, 2, 2), num_classes=num_classes, in_channels=in_channels, width=width)


@register_model("resnet34")
def resnet34(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """34 layers of basic blocks; 21,282,122 parameters."""
    return ResNet(BasicBlock, WIDTHS, (3, 4, 6, 3), num_classes=num_classes, in_channels=in_channels, width=width)


@register_model("resnet50")
def resnet50(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """50 layers of bottleneck blocks; 23,520,842 parameters."""
    return ResNet(Bottleneck, WIDTHS, (3, 4, 6, 3), num_classes=num_classes, in_channels=in_channels, width=width)
