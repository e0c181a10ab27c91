"""Networks that a file describes: built without running code that the file chose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autosparse.errors import AutoSparseError, FileFormatError, first_line
from autosparse.models import create_model, seeded_model
from autosparse.models.sources import SOURCES

_MOST_CHANNELS = 2**20
_MOST_VALUES = 2**33  # 32 GiB in single precision: far above any network that is pruned here
_TYPES = {"model": str, "model_args": dict, "num_classes": int, "in_channels": int}


def is_own_code(name: str) -> bool:
    """Whether a network of this name is made by code of the user's: ``package.module:factory``."""
    source, colon, _ = name.partition(":")
    return bool(colon) and source not in SOURCES


def check_description(path: Path, network: Any) -> dict[str, Any]:
    """FileFormatError unless ``network`` names a network with ``model_args``, ``num_classes`` and ``in_channels``.

    Args:
        path: of the file that holds the description, for messages.
    """
    for key, kind in _TYPES.items():
        value = network.get(key) if isinstance(network, Mapping) else None
        absurd = kind is int and (
            isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST_CHANNELS
        )
        if absurd or not isinstance(value, kind):
            raise FileFormatError(
                f"{path} is damaged: its network's '{key}' is {value!r}; restore or remake the folder"
            )
    return {key: network[key] for key in _TYPES}


def rebuild(path: Path, network: Mapping[str, Any], own: str | None = None) -> nn.Module:
    """The network that ``network`` describes, with initial weights, on the CPU.

    Args:
        path: of the file that holds the description, for messages.
        network: as in every summary: ``model``, ``model_args``, ``num_classes`` and ``in_channels``.
        own: the network's name if it is ``package.module:factory``. A file alone must not choose what is run.

    Raises:
        FileFormatError: a description that is damaged, absurdly large, or of a network that cannot be built.
        AutoSparseError: code of the user's that ``own`` does not name.
    """
    described = check_description(path, network)
    name = described["model"]
    if is_own_code(name) and own != name:
        raise AutoSparseError(
            f"{path} names {name}, code of your own that is not run because a file says so: give --model {name}, or in "
            "Python the dense network itself"
        )
    arguments = {**described["model_args"], **{key: described[key] for key in ("num_classes", "in_channels")}}
    try:
        if not is_own_code(name):
            _refuse_absurd(name, arguments)
        return seeded_model(name, seed=0, **arguments)
    except Exception as error:  # whatever a factory raises at arguments that it does not like
        reason = first_line(error)
        raise FileFormatError(
            f"{path} describes a network that cannot be built ({reason}): restore or remake the folder"
        ) from error


def _refuse_absurd(name: str, arguments: Mapping[str, Any]) -> None:
    """AutoSparseError for a network too large for any machine, found out where it takes no memory."""
    try:
        with torch.random.fork_rng(), torch.device("meta"):
            values = sum(parameter.numel() for parameter in create_model(name, **arguments).parameters())
    except (NotImplementedError, RuntimeError):  # it computes something while it is built
        return
    if values > _MOST_VALUES:
        raise AutoSparseError(f"{name} with these arguments has {values:,} weights")
