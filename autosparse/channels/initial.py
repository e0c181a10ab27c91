"""Fresh weights for new widths: drawn from the distributions that the network's author used, at the new fans."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from autosparse.channels.groups import Coupling
from autosparse.channels.laws import Distribution, Resampled, fans_of, initial_distributions
from autosparse.channels.sizes import sizes_of
from autosparse.channels.surgery import drop_heads
from autosparse.errors import AutoSparseError

_CONV = nn.modules.conv._ConvNd
_LAYER = (_CONV, nn.Linear)
_NORM = nn.modules.batchnorm._NormBase  # batch and instance norms


def reinitialise_(
    model: nn.Module, coupling: Coupling, widths: Mapping[str, int], generator: torch.Generator
) -> dict[str, Distribution]:
    """Give channel groups new widths, fewer or more channels, and draw what changes anew, in place.

    Every layer that one of these groups passes gets new parameters, drawn from the distribution that
    :func:`initial_distributions` finds in the dense network, at the new fans; norms become as they are in a fresh
    network. All other layers keep their values bit for bit. Afterwards the coupling describes the network no more:
    couple it again.

    Args:
        model: as it was coupled, freshly initialised. An optimizer of it does not know the new parameters.
        widths: of groups by name; the others keep theirs.
        generator: on any device. Its numbers alone decide the new weights; the global generators are not touched.

    Returns:
        From every parameter that was drawn to what it was drawn from. A warning names those that follow no law: they
        were :class:`Resampled`.

    Raises:
        AutoSparseError: a group that the coupling does not have, a width below 1, or a module of another kind than
            convolutions, linear layers, batch and instance norms and PReLU. Nothing has been changed then.
    """
    _check_widths(coupling, widths)
    growth = _growth(model, coupling, widths)
    initial = initial_distributions(model)
    for group in coupling:
        if group.attention is not None:
            drop_heads(model.get_submodule(group.attention), group.width - int(widths.get(group.name, group.width)))
    drawn: dict[str, Distribution] = {}
    for prefix, module in model.named_modules():
        if prefix in growth:
            names = {role: f"{prefix}.{role}".lstrip(".") for role, _ in module.named_parameters(recurse=False)}
            _build_anew(module, growth[prefix], {role: initial[name] for role, name in names.items()}, generator)
            drawn |= {name: initial[name] for name in names.values()}
    unknown = [name for name, distribution in drawn.items() if isinstance(distribution, Resampled)]
    if unknown:
        warnings.warn(
            f"{', '.join(unknown)}: initialised by no known law; the new values are picked from the old ones, "
            "whatever the new fans",
            stacklevel=2,
        )
    return drawn


def _check_widths(coupling: Coupling, widths: Mapping[str, int]) -> None:
    known = coupling.widths
    for name, width in widths.items():
        if name not in known:
            raise AutoSparseError(f"there is no channel group '{name}': known are {', '.join(known) or 'none'}")
        if isinstance(width, bool) or not isinstance(width, (int, np.integer)) or width < 1:
            raise AutoSparseError(f"channel group '{name}' cannot have {width!r} channels: give an integer from 1 up")


def _growth(model: nn.Module, coupling: Coupling, widths: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """By how much the sides of those modules grow that do not stay as they are."""
    growth: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for group in coupling:
        more = int(widths.get(group.name, group.width)) - group.width
        for member in group.members:
            growth[member.module][member.side] += more * member.multiplicity
    for name in list(growth):
        module = model.get_submodule(name)
        if not any(growth[name].values()) or (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            del growth[name]
        elif not isinstance(module, (*_LAYER, _NORM, nn.PReLU)) or "weight" not in module._parameters:  # parametrised
            raise AutoSparseError(f"{name} ({type(module).__name__}) cannot be built anew: leave its channels alone")
    return growth


def _build_anew(
    module: nn.Module,
    growth: Mapping[str, int],
    distributions: Mapping[str, Distribution],
    generator: torch.Generator,
) -> None:
    shapes = _grow(module, growth)
    fans = fans_of(shapes["weight"], getattr(module, "groups", 1)) if isinstance(module, _LAYER) else {}
    for name, distribution in distributions.items():
        old = getattr(module, name)
        dtype = torch.float64 if old.dtype == torch.float64 else torch.float32  # not every generator knows the others
        values = distribution.draw(shapes[name], fans, dtype, generator).to(old)
        setattr(module, name, nn.Parameter(values, requires_grad=old.requires_grad))
    if isinstance(module, _NORM) and module.running_mean is not None and module.running_var is not None:
        module.running_mean = module.running_mean.new_empty(shapes["running_mean"])
        module.running_var = module.running_var.new_empty(shapes["running_var"])
        module.reset_running_stats()


def _grow(module: nn.Module, growth: Mapping[str, int]) -> Mapping[str, tuple[int, ...]]:
    """Set what a module knows of its widths; returns the shapes that its tensors must have."""
    outputs, inputs, both = growth.get("out", 0), growth.get("in", 0), growth.get("channel", 0)
    if isinstance(module, _CONV):
        if both:  # depthwise
            module.groups += both
        elif module.groups > 1:  # its groups keep their size
            module.groups += outputs * module.groups // module.out_channels
        module.out_channels += outputs + both
        module.in_channels += inputs + both
    elif isinstance(module, nn.Linear):
        module.out_features += outputs
        module.in_features += inputs
    elif isinstance(module, _NORM):
        module.num_features += both
    elif isinstance(module, nn.PReLU):
        module.num_parameters += both
    sizes = sizes_of(module)
    assert sizes is not None
    return sizes.shapes(module)
