"""Removing channels: physically, or by zeros in the network as it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from autosparse._torchvision import ensure_torchvision
from autosparse.channels.groups import ChannelGroup, Coupling, Kept, Member, check_kept

_CONV = nn.modules.conv._ConvNd


def shrink_(model: nn.Module, coupling: Coupling, kept: Kept) -> None:
    """Remove the channels that do not stay, in place: layers, norms and what reads them become narrower.

    Parameters are new tensors: an optimizer of the wide network does not know them.

    Args:
        kept: for groups by name; the others stay whole.

    Raises:
        AutoSparseError: ``kept`` does not fit the coupling, or leaves a group nothing.
    """
    check_kept(coupling, kept)
    ensure_torchvision()
    lost: dict[tuple[str, str], list[int]] = defaultdict(list)
    for group, member, gone in _removed(coupling, kept):
        lost[member.module, member.side] += gone.tolist()
        if group.attention is not None and member is group.members[0]:
            drop_heads(model.get_submodule(group.attention), int((~kept[group.name]).sum()))
    # Inputs first: a grouped convolution that lost its outputs down to one group looks like an ungrouped one.
    for (name, side), positions in sorted(lost.items(), key=lambda item: item[0][1] != "in"):
        _cut(model.get_submodule(name), side, sorted(positions))


@torch.no_grad()
def zero_(model: nn.Module, coupling: Coupling, kept: Kept) -> None:
    """Zero what computes the channels that do not stay, in place: the same function as without them, at full width.

    Weights and biases of the layers that compute them, and weights and biases of norms behind these, become zero.

    Raises:
        AutoSparseError: ``kept`` does not fit the coupling, or leaves a group nothing.
    """
    check_kept(coupling, kept)
    for _, member, gone in _removed(coupling, kept):
        if member.side == "in":
            continue
        module = model.get_submodule(member.module)
        for tensor in (getattr(module, "weight", None), getattr(module, "bias", None)):
            if isinstance(tensor, Tensor) and tensor.numel() > 1:
                tensor[torch.as_tensor(gone, device=tensor.device)] = 0


def _removed(coupling: Coupling, kept: Kept) -> Iterator[tuple[ChannelGroup, Member, np.ndarray]]:
    """Groups, their members, and the positions on the member's side that go."""
    for group in coupling:
        if group.name in kept and not kept[group.name].all():
            for member in group.members:
                yield group, member, member.positions[~kept[group.name]].ravel()


def _cut(module: nn.Module, side: str, positions: list[int]) -> None:
    import torch_pruning as tp

    trainable = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    if isinstance(module, _CONV) and module.groups > 1 and not _is_depthwise(module):
        _cut_grouped(module, side, positions)
    else:
        pruner = tp.pruner.function.PrunerBox[tp.ops.module2type(module)]
        (pruner.prune_in_channels if side == "in" else pruner.prune_out_channels)(module, positions)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trainable[name])


def _is_depthwise(conv: nn.modules.conv._ConvNd) -> bool:
    return conv.groups == conv.out_channels == conv.in_channels


def _cut_grouped(conv: nn.modules.conv._ConvNd, side: str, positions: list[int]) -> None:
    """Whole groups of a grouped convolution: each kernel keeps its number of inputs."""
    if side == "in":  # with the outputs of the same groups, which carry the weights
        conv.in_channels -= len(positions)
        return
    conv.groups -= len(positions) * conv.groups // conv.out_channels
    conv.out_channels -= len(positions)
    stay = torch.ones(len(conv.weight), dtype=torch.bool, device=conv.weight.device)
    stay[positions] = False
    conv.weight = nn.Parameter(conv.weight.detach()[stay])
    if conv.bias is not None:
        conv.bias = nn.Parameter(conv.bias.detach()[stay])


def drop_heads(attention: nn.Module, count: int) -> None:
    """Tell an attention module that it has ``count`` heads less (or more, if negative); its layers are not touched."""
    size = attention.proj.in_features // attention.num_heads  # type: ignore[union-attr,operator]
    attention.num_heads -= count  # type: ignore[assignment,operator]
    if isinstance(getattr(attention, "attn_dim", None), int):
        attention.attn_dim = attention.num_heads * size  # type: ignore[operator]
