"""Networks by name: built-in CIFAR networks, ``torchvision:NAME``, ``timm:NAME``, ``package.module:factory``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from autosparse.arguments import parse_arguments
from autosparse.errors import AutoSparseError

# Importing a file of networks enters them into the registry.
from autosparse.models import mobilenetv2, resnet, resnet_cifar, vgg, wide_resnet  # noqa: F401
from autosparse.models.registry import MODELS, RGB_CHANNELS, call_factory, register_model
from autosparse.models.sources import SOURCES, from_module
from autosparse.seeding import global_stream

__all__ = ["create_model", "list_models", "parse_model_args", "register_model", "seeded_model"]

# Named parameters of create_model and seeded_model: the command line sets them from other options and the data.
_RESERVED = ("name", "seed", "num_classes", "in_channels")


def list_models() -> list[str]:
    """Names of the built-in networks, sorted."""
    return MODELS.names()


def create_model(name: str, *, num_classes: int = 10, in_channels: int = RGB_CHANNELS, **kwargs: Any) -> nn.Module:
    """A freshly initialised network that maps images (N, in_channels, H, W) to logits (N, num_classes).

    Args:
        name: a built-in network (see :func:`list_models`), ``torchvision:NAME``, ``timm:NAME``, or
            ``package.module:factory`` for your own function or class.
        num_classes: outputs of the classifier.
        in_channels: channels of the images; torchvision's networks have 3.
        **kwargs: options of the network. The built-in ones take ``width``, a multiplier of channel counts.

    Initial weights are drawn from torch's global RNG; :func:`seeded_model` leaves that untouched.

    Raises:
        UnknownNameError: no such network; the message proposes near names.
        AutoSparseError: a number out of range, an option that the network does not take, or a source that is missing.
    """
    _check_count("num_classes", num_classes)
    _check_count("in_channels", in_channels)
    if ":" not in name:
        return call_factory(
            f"model '{name}'", MODELS.get(name), num_classes=num_classes, in_channels=in_channels, options=kwargs
        )
    source, _, rest = name.partition(":")
    if source in SOURCES:
        return SOURCES[source](rest, num_classes=num_classes, in_channels=in_channels, options=kwargs)
    return from_module(name, num_classes=num_classes, in_channels=in_channels, options=kwargs)


def seeded_model(
    name: str, *, seed: int, num_classes: int, in_channels: int = RGB_CHANNELS, **kwargs: Any
) -> nn.Module:
    """:func:`create_model` on the CPU with weights that ``seed`` fixes bit by bit; torch's RNG state is left as it was.

    A factory of your own that draws from numpy or ``random`` has to seed them itself.
    """
    with global_stream(seed, "init"), torch.device("cpu"):
        return create_model(name, num_classes=num_classes, in_channels=in_channels, **kwargs)


def parse_model_args(args: Iterable[str]) -> dict[str, Any]:
    """Options of :func:`create_model` from ``key=value`` texts.

    Values and errors are those of :func:`~autosparse.arguments.parse_arguments`; what follows from the data
    (``num_classes``) is reserved.
    """
    return parse_arguments(args, "model", "width=0.5", _RESERVED)


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise AutoSparseError(f"{name} must be an integer of at least 1, not {value!r}")
