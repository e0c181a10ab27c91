"""Where the weights of a channel lie.

Some weights *write* a channel (filters), some *read* it, and some it meets on its way inside its group: norms, and
convolutions in blocks (depthwise and grouped ones), which map every block of channels to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from autosparse.channels.groups import ChannelGroup, Coupling, Member, Side
from autosparse.errors import AutoSparseError

_CONV = nn.modules.conv._ConvNd
_LAYERS = (_CONV, nn.Linear)

#: Some members of a group.
Places = Callable[[nn.Module, ChannelGroup], list[Member]]


def writers(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """The layers through which the channels enter their group; not the convolutions in blocks inside it."""
    return [member for member in group.on("out") if not _in_blocks(model.get_submodule(member.module))]


def readers(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """The layers through which the channels leave their group."""
    return [member for member in group.on("in") if not _in_blocks(model.get_submodule(member.module))]


def filters(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """All layers that compute the channels: the writers, and the convolutions in blocks inside the group."""
    return [m for m in group.members if m.side != "in" and isinstance(model.get_submodule(m.module), _LAYERS)]


def batch_norms(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """The batch norms inside the group that scale its channels."""

    def scales(module: nn.Module) -> bool:
        return isinstance(module, nn.modules.batchnorm._BatchNorm) and isinstance(module.weight, Tensor)

    return [member for member in group.on("channel") if scales(model.get_submodule(member.module))]


def _in_blocks(module: nn.Module) -> bool:
    return isinstance(module, _CONV) and module.groups > 1


def _axis(module: nn.Module, side: Side) -> int:
    """The axis of a layer's weight that counts the channels on ``side``; those of a norm have one axis."""
    transposed = bool(getattr(module, "transposed", False))
    return int((side == "in") != transposed)


def slices(model: nn.Module, member: Member, values: Tensor) -> Tensor:
    """Rows [width, n] of ``values``, a tensor of the shape of the member's weight or bias: what belongs to a channel.

    A channel that lies at several positions of its module owns the weights of all of them.
    """
    axis = 0 if values.dim() == 1 else _axis(model.get_submodule(member.module), member.side)
    index = torch.as_tensor(member.positions.ravel(), device=values.device)
    return values.index_select(axis, index).movedim(axis, 0).reshape(len(member.positions), -1)


def weight_of(model: nn.Module, member: Member) -> Tensor:
    """The weight of the member's layer or norm, detached."""
    return model.get_parameter(names_of(model, member)[0]).detach()


def names_of(model: nn.Module, member: Member) -> list[str]:
    """The names of the parameters on the member's side: its weight, and on the side of its outputs its bias."""
    bias = member.side != "in" and isinstance(getattr(model.get_submodule(member.module), "bias", None), Tensor)
    names = ["weight", "bias"] if bias else ["weight"]
    return [f"{member.module}.{name}".removeprefix(".") for name in names]


def channel_sums(
    model: nn.Module, coupling: Coupling, places: Places, values: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """Sums of ``values`` over the weights, and those biases that are among them, of every channel at ``places``.

    Args:
        values: by parameter name, of the parameter's shape; one for every weight at ``places``.

    Raises:
        AutoSparseError: a weight at ``places`` has no value, or something without a weight is there.
    """
    found = {}
    for group in coupling:
        found[group.name] = np.zeros(group.width)
        for member in places(model, group):
            weight, *bias = names_of(model, member)
            if weight not in values:
                raise cannot_be_scored(weight, group)
            for name in (weight, *(name for name in bias if name in values)):
                found[group.name] += float64(slices(model, member, values[name]).sum(1, dtype=torch.float64))
    return found


def cannot_be_scored(weight: str, group: ChannelGroup) -> AutoSparseError:
    """The error of a criterion that has no value for a weight of a channel."""
    return AutoSparseError(
        f"{weight}, which meets the channels of {group.name}, cannot be scored: leave them alone with "
        f"--keep {group.name}, keep=['{group.name}'] in Python"
    )


def float64(values: Tensor) -> np.ndarray:
    """``values`` as a float64 array."""
    return values.detach().cpu().numpy().astype(np.float64, copy=False)


def check_fits(model: nn.Module, coupling: Coupling) -> None:
    """AutoSparseError where the coupling names channels that the network does not have."""
    modules = dict(model.named_modules())
    for group in coupling:
        for member in group.members:
            module = modules.get(member.module)
            if module is None or member.positions.max() >= _channels(module, member.side):
                raise AutoSparseError(
                    f"the coupling is not that of this {type(model).__name__}, which lacks channels of "
                    f"'{member.module}': couple the network as it is now"
                )


def _channels(module: nn.Module, side: Side) -> float:
    """How many channels a module has on ``side``; without bound where it has no weight for each."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.numel() == 1:
        return np.inf
    if weight.dim() == 1:
        return len(weight)
    return weight.shape[_axis(module, side)] * (getattr(module, "groups", 1) if side == "in" else 1)
