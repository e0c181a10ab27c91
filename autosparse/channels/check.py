"""Is the coupling right? Asked of the network itself: without a group's channels it must compute the same function as
with zeros in their place.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from autosparse.channels.groups import ChannelGroup, Coupling
from autosparse.channels.surgery import shrink_, zero_
from autosparse.criteria.gradients import untouched
from autosparse.errors import AutoSparseError, first_line
from autosparse.outputs import tensors_in
from autosparse.seeding import generator

_TOLERANCE = 1e-3  # of the largest output: far above rounding in float32, far below a channel in the wrong place

#: Operations that treat every channel alike; others are named when a group turns out not to be removable.
_FAMILIAR = (
    "Adaptive", "Add", "Alias", "Avg", "Bernoulli", "Cat", "Clamp", "Clone", "Convolution", "Div", "Dropout", "Elu",
    "Expand", "Gelu", "Hardsigmoid", "Hardswish", "Hardtanh", "Leaky", "Max", "Mean", "Mish", "Mul", "NativeBatchNorm",
    "Neg", "Permute", "Relu", "Reshape", "Select", "Sigmoid", "Silu", "Slice", "Split", "Squeeze", "Sub", "Sum",
    "Tanh", "TBackward", "Threshold", "ToCopy", "Transpose", "Unsafe", "Unsqueeze", "Upsample", "View",
)  # fmt: skip


def check_coupling(model: nn.Module, coupling: Coupling, example: Tensor) -> None:
    """Remove half of every group from a copy of ``model`` with random weights, and compare.

    Raises:
        AutoSparseError: the outputs differ, or the smaller network fails; names the groups at fault.
    """
    if not coupling.groups:
        return
    with untouched(model), torch.no_grad():
        twin = _randomised(model)
        noise = torch.randn(1, *example.shape[1:], generator=generator(0, "coupling"))
        x = noise.to(device=example.device, dtype=example.dtype)
        if _difference(twin, coupling, coupling.groups, x) is None:
            return
        faults = {group: _difference(twin, coupling, (group,), x) for group in coupling}
    culprits = {group: fault for group, fault in faults.items() if fault}
    if culprits:
        raise AutoSparseError(_message(model, culprits))
    raise AutoSparseError(
        f"{type(model).__name__} cannot be shrunk: without half of all channels it is another function, though no "
        "channel group alone is at fault; leave some alone with keep"
    )


def _difference(twin: nn.Module, coupling: Coupling, groups: tuple[ChannelGroup, ...], x: Tensor) -> str | None:
    """What goes wrong without half of the channels of ``groups``; ``None`` if nothing does."""
    kept = {group.name: _half(group) for group in groups if group.width > 1}
    network = copy.deepcopy(twin)
    zero_(network, coupling, kept)
    expected = next(tensors_in(network(x)))
    try:
        shrink_(network, coupling, kept)
        found = next(tensors_in(network(x)))
    except Exception as error:  # whatever the user's module raises when its shapes no longer fit
        return first_line(error)
    scale = float(expected.abs().max())
    if found.shape != expected.shape or not float((found - expected).abs().max()) <= _TOLERANCE * max(scale, 1e-6):
        return "the output changes"
    return None


def _half(group: ChannelGroup) -> np.ndarray:
    return np.arange(group.width) % 2 == 0


def _randomised(model: nn.Module) -> nn.Module:
    """A copy in eval mode in which every channel matters: freshly built networks hide some behind zeros."""
    twin = copy.deepcopy(model).eval()
    stream = generator(0, "coupling weights")
    for name, parameter in twin.named_parameters():
        if parameter.dim() > 1:
            centre, deviation = 0.0, 1 / math.sqrt(max(1, parameter[0].numel()))
        else:
            centre, deviation = (0.0, 0.1) if name.endswith("bias") else (1.0, 0.2)
        reach = deviation * math.sqrt(3)  # uniform numbers, which take a fraction of the time of normal ones
        values = torch.empty(parameter.shape).uniform_(centre - reach, centre + reach, generator=stream)
        parameter.copy_(values)
    for name, buffer in twin.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=stream))
    return twin


def _message(model: nn.Module, culprits: Mapping[ChannelGroup, str]) -> str:
    names = [group.name for group in culprits]
    passed = {operation for group in culprits for operation in group.operations}
    odd = sorted(name for name in passed if not name.startswith(_FAMILIAR))
    through = f"; they pass {', '.join(odd)}, which cannot be followed" if odd else ""
    return (
        f"channels of {type(model).__name__} cannot be removed from {', '.join(names)} "
        f"({next(iter(culprits.values()))}{through}): leave them alone with {' '.join(f'--keep {n}' for n in names)}, "
        f"keep={names} in Python"
    )
