"""Training state as safetensors: enough to continue bit-equal, nothing that could run code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autosparse.errors import FileFormatError
from autosparse.files import load_tensors, save_tensors
from autosparse.triggers.base import MaskSchedule, named
from autosparse.triggers.narrowing import Narrowing, narrowed_

_KIND = "checkpoint"
_STATE_KIND = "state"


def save_state(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a model's ``state_dict()`` with JSON metadata."""
    save_tensors(path, _STATE_KIND, state, metadata)


def load_state(path: Path, model: nn.Module) -> dict[str, Any]:
    """Load :func:`save_state`'s file into ``model`` and return the metadata; FileFormatError if it does not fit."""
    tensors, metadata = load_tensors(path, _STATE_KIND)
    load_into(path, model, tensors)
    return metadata


def load_into(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy ``tensors`` into the model's state; FileFormatError naming the first entry that does not fit."""
    state = model.state_dict()
    for name in sorted(state.keys() | tensors.keys()):
        here, there = state.get(name), tensors.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = [None if t is None else list(t.shape) for t in (here, there)]
            raise FileFormatError(
                f"{path} does not fit {type(model).__name__}: '{name}' is {shapes[0]} in the model, {shapes[1]} in the "
                "file; give the model that it was made from"
            )
    model.load_state_dict(dict(tensors))


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    metadata: Mapping[str, Any],
    schedule: MaskSchedule | None = None,
    narrowing: Narrowing | None = None,
) -> None:
    """Write model and optimizer state, and that of what prunes on the way, with JSON metadata, atomically."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
    if schedule is not None:
        tensors |= {f"schedule.{name}": value for name, value in schedule.tensors().items()}
        metadata = {**metadata, "schedule": schedule.facts()}
    if narrowing is not None:
        tensors |= {f"narrowing.{name}": value for name, value in narrowing.tensors().items()}
        metadata = {**metadata, "narrowing": narrowing.facts()}
    save_tensors(path, _KIND, tensors, metadata)


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: MaskSchedule | None = None,
    narrowing: Narrowing | None = None,
    check: Callable[[Mapping[str, Any]], None] = lambda metadata: None,
) -> dict[str, Any]:
    """Restore :func:`save_checkpoint`'s file and return its metadata, which ``check`` may refuse before.

    A file that was written without a schedule leaves ``schedule`` as it is. Where the file's network has lost
    channels, ``model``, which is dense, loses them too.
    """
    tensors, metadata = load_tensors(path, _KIND)
    check(metadata)
    if narrowing is not None and "narrowing" in metadata:
        narrowing.restore(named(tensors, "narrowing."), metadata["narrowing"])
        if narrowing.kept is not None:
            narrowed_(model, optimizer, narrowing)
    load_into(path, model, named(tensors, "model."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in named(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if schedule is not None and "schedule" in metadata:
        schedule.restore(model, named(tensors, "schedule."), metadata["schedule"])
    return metadata
