"""The table of built-in networks, and the one way in which any factory is called."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from autosparse.errors import AutoSparseError
from autosparse.registry import Registry

ModelFactory = Callable[..., nn.Module]

MODELS: Registry[ModelFactory] = Registry(
    "model", hint="other networks: torchvision:NAME, timm:NAME or package.module:factory"
)

RGB_CHANNELS = 3

_REFUSED_ARGUMENT = re.compile(r"(?:unexpected keyword argument|multiple values for (?:keyword )?argument) '(\w+)'")


def register_model(name: str) -> Callable[[ModelFactory], ModelFactory]:
    """Decorator that enters a factory ``(*, num_classes, in_channels, **options) -> nn.Module`` under ``name``."""
    return MODELS.register(name)


def call_factory(
    label: str, factory: ModelFactory, *, num_classes: int, in_channels: int, options: Mapping[str, Any]
) -> nn.Module:
    """Build a network with ``factory`` and explain arguments that do not fit.

    ``options`` are the user's and always passed on. ``num_classes`` and ``in_channels`` describe the data and are
    passed only to a factory that accepts them. One that takes ``**kwargs`` may hand them to a constructor that knows
    ``num_classes`` only, as torchvision's do, so it gets ``in_channels`` only when that differs from RGB.

    Raises:
        AutoSparseError: an argument that the factory does not take or lacks, or a result that is no ``nn.Module``.
            ``label`` opens the message.
    """
    arguments = dict(options)
    try:
        signature = inspect.signature(factory)
    except ValueError:  # some callables written in C have none
        return call_checked(label, factory, arguments)

    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    if takes_any or "num_classes" in signature.parameters:
        arguments["num_classes"] = num_classes
    if "in_channels" in signature.parameters or (takes_any and in_channels != RGB_CHANNELS):
        arguments["in_channels"] = in_channels

    try:
        signature.bind(**arguments)
    except TypeError as error:
        accepted = _accepted_options(signature)
        raise AutoSparseError(f"{label}: {error}; accepted arguments: {', '.join(accepted) or 'none'}") from error
    return call_checked(label, factory, arguments)


def call_checked(label: str, factory: ModelFactory, arguments: Mapping[str, Any]) -> nn.Module:
    """``factory(**arguments)``; AutoSparseError for an argument refused further inside, or a result of another type.

    A TypeError about anything but the given arguments is a mistake in the factory and keeps its traceback.
    """
    try:
        model: object = factory(**arguments)
    except TypeError as error:
        refused = _REFUSED_ARGUMENT.search(str(error))
        if refused is None or refused[1] not in arguments:
            raise
        raise AutoSparseError(f"{label} takes no argument '{refused[1]}'; remove it or correct its name") from error
    if not isinstance(model, nn.Module):
        raise AutoSparseError(f"{label} returned {type(model).__name__}, not a torch.nn.Module; return the network")
    return model


def _accepted_options(signature: inspect.Signature) -> list[str]:
    """Names that a user may set: keywords other than the two which follow from the data."""
    named = (p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return [name for name in named if name not in ("num_classes", "in_channels")]
