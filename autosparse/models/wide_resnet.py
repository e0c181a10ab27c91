"""Wide residual network: wrn-16-2.

Zagoruyko & Komodakis 2016, Wide Residual Networks, arXiv 1605.07146: depth 6n + 4, three stages of 16k, 32k and 64k
channels, blocks in pre-activation order (He et al. 2016, Identity Mappings, arXiv 1603.05027), without dropout.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.models.building import conv1x1, conv3x3, initialise, scaled
from autosparse.models.registry import register_model


class PreActivationBlock(nn.Module):
    """Normalise, rectify, convolve, twice: (N, C_in, H, W) -> (N, C_out, H / stride, W / stride).

    Where shapes change, the shortcut is a 1x1 convolution of the activated input, else the input itself.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride=stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = None if same_shape else conv1x1(in_channels, out_channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv1(active)
        out = self.conv2(F.relu(self.bn2(out)))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A 3x3 stem, three stages of pre-activation blocks, global average pooling, one linear classifier.

    Maps (N, in_channels, H, W) to logits (N, num_classes) for any H and W.

    Args:
        depth: layers, 6n + 4 for n blocks a stage.
        factor: k of the paper, which widens the three stages but not the stem.
        width: multiplier of all channel counts, the stem's included, rounded to integers of at least 1.
    """

    def __init__(self, depth: int, factor: int, *, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        channels = scaled(16, width)
        self.conv = conv3x3(in_channels, channels)
        blocks: list[nn.Module] = []
        for stage, base in enumerate((16, 32, 64)):
            for index in range((depth - 4) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                out_channels = scaled(base * factor, width)
                blocks.append(PreActivationBlock(channels, out_channels, stride))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.conv(x))
        x = self.pool(F.relu(self.bn(x)))
        return self.classifier(x.flatten(1))


@register_model("wrn-16-2")
def wrn_16_2(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> WideResNet:
    """16 layers, widened twofold; 691,674 parameters."""
    return WideResNet(16, 2, num_classes=num_classes, in_channels=in_channels, width=width)
