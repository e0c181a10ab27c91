"""Networks from elsewhere: torchvision:NAME, timm:NAME and package.module:factory.

None of them is ever given trained weights: a network is pruned at its initialisation.
"""

from __future__ import annotations

import importlib
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from autosparse._torchvision import ensure_torchvision
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.models.registry import RGB_CHANNELS, ModelFactory, call_checked, call_factory

# Arguments by which torchvision and timm load trained weights, the older spellings included.
_TRAINED_WEIGHTS = frozenset({"weights", "weights_backbone", "pretrained", "pretrained_backbone", "checkpoint_path"})

# These return a tuple with auxiliary logits while training, which no loss here expects.
_WITH_AUXILIARY_LOGITS = frozenset({"googlenet", "inception_v3"})


def from_torchvision(name: str, *, num_classes: int, in_channels: int, options: Mapping[str, Any]) -> nn.Module:
    """The image classifier ``name`` of torchvision, freshly initialised by torchvision's own rules.

    ``googlenet`` and ``inception_v3`` come without auxiliary classifiers unless ``aux_logits`` is given.

    Raises:
        UnknownNameError: no classifier of that name.
        AutoSparseError: ``in_channels`` is not 3, or an option that the network does not take.
    """
    ensure_torchvision()
    from torchvision import models

    label = f"model 'torchvision:{name}'"
    known = models.list_models(module=models)  # without detection, segmentation, video and quantised networks
    if name not in known:
        raise UnknownNameError("torchvision model", name, known)
    if in_channels != RGB_CHANNELS:
        raise AutoSparseError(
            f"{label} needs images of 3 channels, not {in_channels}; use a built-in network or timm:NAME"
        )
    _refuse_trained_weights(label, options)
    defaults = {"aux_logits": False} if name in _WITH_AUXILIARY_LOGITS else {}
    factory = partial(models.get_model, name, weights=None)
    return call_checked(label, factory, {**defaults, **options, "num_classes": num_classes})


def from_timm(name: str, *, num_classes: int, in_channels: int, options: Mapping[str, Any]) -> nn.Module:
    """The network ``name`` of timm, freshly initialised by timm's own rules.

    Raises:
        UnknownNameError: timm has no network of that name.
        AutoSparseError: timm is not installed, or an option that the network does not take.
    """
    ensure_torchvision()
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise AutoSparseError(f"model 'timm:{name}' needs timm; run: pip install autosparse[timm]") from error

    label = f"model 'timm:{name}'"
    if not timm.is_model(name):
        raise UnknownNameError("timm model", name, timm.list_models())
    _refuse_trained_weights(label, options)
    if "in_chans" in options:
        raise AutoSparseError(f"{label}: 'in_chans' follows from the images; remove it")
    factory = partial(timm.create_model, name, pretrained=False)
    return call_checked(label, factory, {**options, "num_classes": num_classes, "in_chans": in_channels})


def from_module(name: str, *, num_classes: int, in_channels: int, options: Mapping[str, Any]) -> nn.Module:
    """The network that the user's ``package.module:factory`` returns.

    Modules of the current directory are importable. The factory gets ``options``, and ``num_classes`` and
    ``in_channels`` as far as its signature accepts them.

    Raises:
        AutoSparseError: the module or the factory does not exist, cannot be called with these arguments, or returns
            something other than an ``nn.Module``. Errors of the factory's own code keep their traceback.
    """
    label = f"model '{name}'"
    with _current_directory_importable():  # also for what the factory itself imports
        factory = _find_factory(name, label)
        return call_factory(label, factory, num_classes=num_classes, in_channels=in_channels, options=options)


def _find_factory(name: str, label: str) -> ModelFactory:
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise AutoSparseError(f"{label} is not of the form package.module:factory, such as mypackage.nets:make")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise AutoSparseError(
                f"{label}: there is no module '{error.name}'; run from the directory that holds it or install it"
            ) from error
        raise AutoSparseError(f"{label}: importing '{module_name}' failed: {error}; install what it needs") from error
    except (ImportError, SyntaxError) as error:
        reason = str(error).partition("\n")[0]
        raise AutoSparseError(f"{label}: importing '{module_name}' failed: {reason}; correct the module") from error
    try:
        factory: object = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UnknownNameError(f"factory of module '{module_name}'", attribute, public) from error
    if not callable(factory):
        raise AutoSparseError(f"{label}: '{attribute}' is {type(factory).__name__}, not a function or class to call")
    return factory


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    """Put the current directory first on ``sys.path``: ``python -m`` does so, an installed command does not."""
    directory = os.getcwd()
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        sys.path.remove(directory)


def _refuse_trained_weights(label: str, options: Mapping[str, Any]) -> None:
    for name in sorted(_TRAINED_WEIGHTS & options.keys()):
        raise AutoSparseError(f"{label}: '{name}' is not accepted, networks are pruned at initialisation; remove it")


SOURCES: dict[str, Callable[..., nn.Module]] = {"torchvision": from_torchvision, "timm": from_timm}
