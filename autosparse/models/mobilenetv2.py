"""MobileNetV2 for small images: mobilenetv2.

Sandler et al. 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv 1801.04381, table 2. The paper
reduces 224x224 by 32; here the stem and the 24-channel stage have stride 1, which reduces 32x32 to 4x4. No dropout.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.models.building import check_width, conv1x1, conv3x3, initialise
from autosparse.models.registry import register_model

STEM_CHANNELS = 32
HEAD_CHANNELS = 1280

# (t: expansion, c: output channels, n: blocks, s: stride of the first block), in the paper's letters
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def scaled_to_eights(channels: int, width: float) -> int:
    """``channels`` times ``width``, rounded to a multiple of 8, never below 8 nor below 90 % of the product."""
    check_width(width)
    target = channels * width
    rounded = max(8, int(target + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * target else rounded + 8


class InvertedResidual(nn.Module):
    """Widen (1x1), filter depthwise (3x3), narrow (1x1): (N, C_in, H, W) -> (N, C_out, H / stride, W / stride).

    Activations are ReLU6; the narrow output is linear, because a rectifier would destroy information there. With
    ``expansion`` 1 there is nothing to widen and the first convolution is left out.
    """

    def __init__(self, in_channels: int, out_channels: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * in_channels
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [conv1x1(in_channels, inner), nn.BatchNorm2d(inner), nn.ReLU6()]
        layers += [conv3x3(inner, inner, stride=stride, groups=inner), nn.BatchNorm2d(inner), nn.ReLU6()]
        layers += [conv1x1(inner, out_channels), nn.BatchNorm2d(out_channels)]
        self.layers = nn.Sequential(*layers)
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return x + out if self.is_residual else out


class MobileNetV2(nn.Module):
    """A 3x3 stem, seven stages of inverted residuals, a 1x1 head, global average pooling, one linear classifier.

    Maps (N, in_channels, H, W) to logits (N, num_classes) for any H and W.

    Args:
        width: multiplier of all channel counts, rounded to multiples of 8. As in the paper, a multiplier below 1
            leaves the head at 1280 channels.
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        channels = scaled_to_eights(STEM_CHANNELS, width)
        self.conv = conv3x3(in_channels, channels)
        self.bn = nn.BatchNorm2d(channels)
        blocks: list[nn.Module] = []
        for expansion, base, depth, first_stride in STAGES:
            for index in range(depth):
                out_channels = scaled_to_eights(base, width)
                stride = first_stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, out_channels, expansion=expansion, stride=stride))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        head_channels = scaled_to_eights(HEAD_CHANNELS, max(1.0, width))
        self.head_conv = conv1x1(channels, head_channels)
        self.head_bn = nn.BatchNorm2d(head_channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(head_channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn(self.conv(x)))
        x = self.blocks(x)
        x = self.pool(F.relu6(self.head_bn(self.head_conv(x))))
        return self.classifier(x.flatten(1))


@register_model("mobilenetv2")
def mobilenetv2(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> MobileNetV2:
    """2,236,682 parameters."""
    return MobileNetV2(num_classes=num_classes, in_channels=in_channels, width=width)
