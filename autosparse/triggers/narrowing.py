"""Channels that are removed once, on the way of a training: what the training loop knows of it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autosparse.channels.groups import Coupling, Kept
from autosparse.channels.surgery import shrink_


class Narrowing(ABC):
    """One removal of channels at a moment that it chooses itself.

    The training loop calls :meth:`start` before the first step, or :meth:`restore` when it continues, and
    :meth:`after_epoch` after every epoch until channels are removed; the loop removes them. What it decides follows
    from the weights, the epoch and its own state, so that a resumed run decides as one that was never killed.

    Attributes:
        coupling: the channel groups of the dense network.
        kept: which channels stay; ``None`` while nothing is removed.
        identity: JSON-able facts that must agree between a checkpoint and the run that continues it.
    """

    coupling: Coupling
    kept: Kept | None = None
    identity: Mapping[str, Any]

    @abstractmethod
    def start(self, model: nn.Module) -> bool:
        """Before the first step, where the weights lie on the device that trains them: whether to prune now."""

    @abstractmethod
    def after_epoch(self, model: nn.Module, epoch: int) -> bool:
        """After epoch ``epoch`` (from 1): whether to prune now, in which case ``kept`` says what stays."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What has happened so far, JSON-able, for the result file and the checkpoint."""

    @abstractmethod
    def restore_facts(self, facts: Mapping[str, Any]) -> None:
        """Continue from what :meth:`facts` said."""

    def tensors(self) -> dict[str, Tensor]:
        """The state that a checkpoint needs beside :meth:`facts`."""
        return {f"kept.{name}": torch.from_numpy(mask) for name, mask in (self.kept or {}).items()}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from what :meth:`tensors` and :meth:`facts` said; the network is still dense."""
        self.restore_facts(copy.deepcopy(dict(facts)))
        kept = {name[5:]: tensor.numpy().astype(np.bool_) for name, tensor in tensors.items() if name[:5] == "kept."}
        self.kept = kept or None


def narrowed_(model: nn.Module, optimizer: torch.optim.Optimizer, narrowing: Narrowing) -> None:
    """:func:`narrow_` by what ``narrowing`` keeps."""
    assert narrowing.kept is not None  # it has said so
    narrow_(model, optimizer, narrowing.coupling, narrowing.kept)


@torch.no_grad()
def narrow_(model: nn.Module, optimizer: torch.optim.Optimizer, coupling: Coupling, kept: Kept) -> None:
    """Remove channels from a network in training, and from what its optimizer has accumulated for it, in place.

    The weights that stay go on with their own momentum: training continues as that of the same, smaller function.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    keys = sorted({key for state in optimizer.state.values() for key in state})
    shrunk: dict[str, dict[str, Tensor]] = {}
    for key in keys:  # a copy of the network that holds, in the place of each weight, what belongs to it
        twin = copy.deepcopy(model)
        for parameter, (_, place) in zip(names, twin.named_parameters(), strict=True):
            value = optimizer.state.get(parameter, {}).get(key)
            if isinstance(value, Tensor) and value.shape == place.shape:
                place.copy_(value)
            else:
                place.zero_()
        shrink_(twin, coupling, kept)
        shrunk[key] = {name: place.detach() for name, place in twin.named_parameters()}
    had = {names[parameter] for parameter in optimizer.state}
    shrink_(model, coupling, kept)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    now = dict(model.named_parameters())
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["params"] = [now[names[parameter]] for parameter in group["params"]]
    for name in had:
        optimizer.state[now[name]] = {key: shrunk[key][name] for key in keys}
