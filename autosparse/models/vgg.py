"""VGG with batch normalisation: vgg11, vgg16, vgg19.

Simonyan & Zisserman 2015, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv 1409.1556,
table 1, columns A, D and E. The three fully connected layers, sized for 7x7 maps of ImageNet, are one linear
classifier behind global average pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from autosparse.models.building import conv3x3, initialise, scaled
from autosparse.models.registry import register_model

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each closed by 2x2 max-pooling, and one linear classifier.

    Maps (N, in_channels, H, W) to logits (N, num_classes) for any H and W.

    Args:
        depths: convolutions of each stage.
        width: multiplier of all channel counts, which are rounded to integers of at least 1.
    """

    def __init__(self, depths: Sequence[int], *, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage_width, depth in zip(WIDTHS, depths, strict=True):
            for _ in range(depth):
                out_channels = scaled(stage_width, width)
                layers += [conv3x3(channels, out_channels), nn.BatchNorm2d(out_channels), nn.ReLU()]
                channels = out_channels
            # Rounding up leaves even sizes as they are and keeps a 1x1 map, where rounding down would leave nothing
            # of a 28x28 image after the fifth pooling.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x))
        return self.classifier(x.flatten(1))


@register_model("vgg11")
def vgg11(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> VGG:
    """Column A, 8 convolutions; 9,228,362 parameters."""
    return VGG((1, 1, 2, 2, 2), num_classes=num_classes, in_channels=in_channels, width=width)


@register_model("vgg16")
def vgg16(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> VGG:
    """Column D, 13 convolutions; 14,724,042 parameters, of which 14,715,584 weights of convolutions and classifier."""
    return VGG((2, 2, 3, 3, 3), num_classes=num_classes, in_channels=in_channels, width=width)


@register_model("vgg19")
def vgg19(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> VGG:
    """Column E, 16 convolutions; 20,035,018 parameters."""
    return VGG((2, 2, 4, 4, 4), num_classes=num_classes, in_channels=in_channels, width=width)
