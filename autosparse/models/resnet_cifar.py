"""The narrow residual networks made for CIFAR: resnet20, resnet32, resnet56.

He et al. 2016, Deep Residual Learning for Image Recognition, arXiv 1512.03385, section 4.2: three stages of 16, 32
and 64 channels with n blocks each, 6n + 2 layers. The paper pads shortcuts with zeros there (option A); these project
(option B), so that removing channels needs no special case for padding. It adds 2,752 parameters.
"""

from __future__ import annotations

from autosparse.models.registry import register_model
from autosparse.models.resnet import BasicBlock, ResNet

WIDTHS = (16, 32, 64)


@register_model("resnet20")
def resnet20(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """n = 3; 272,474 parameters."""
    return ResNet(BasicBlock, WIDTHS, (3, 3, 3), num_classes=num_classes, in_channels=in_channels, width=width)


@register_model("resnet32")
def resnet32(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """n = 5; 466,906 parameters."""
    return ResNet(BasicBlock, WIDTHS, (5, 5, 5), num_classes=num_classes, in_channels=in_channels, width=width)


@register_model("resnet56")
def resnet56(*, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """n = 9; 855,770 parameters."""
    return ResNet(BasicBlock, WIDTHS, (9, 9, 9), num_classes=num_classes, in_channels=in_channels, width=width)
