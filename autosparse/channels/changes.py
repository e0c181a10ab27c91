"""What became narrower or wider: found by comparing two networks, and done to a third."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autosparse.channels.sizes import Shape, attributes_of, check_sizes, sizes_of, tensors_of
from autosparse.errors import AutoSparseError


@dataclass(frozen=True)
class Change:
    """How a module differs from the dense one.

    Args:
        type: the name of its class.
        attributes: those that have other values, and these.
        tensors: its own parameters and buffers of other shapes, and these.
    """

    type: str
    attributes: Mapping[str, int | Shape]
    tensors: Mapping[str, Shape]


def changes_between(small: nn.Module, dense: nn.Module) -> dict[str, Change]:
    """The modules of ``small`` whose widths differ from those of the same name in ``dense``.

    Raises:
        AutoSparseError: the two differ in more than the widths of layers, norms, PReLUs and attention.
    """
    ours, theirs = dict(small.named_modules()), dict(dense.named_modules())
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs:
            raise AutoSparseError(
                f"{type(small).__name__} is not the dense network with other widths: '{name}' is only in "
                f"{'it' if name in ours else 'the dense one'}; give the network that it was shrunk from"
            )
    found = {name: _change(name, module, theirs[name]) for name, module in ours.items()}
    return {name: change for name, change in found.items() if change.attributes or change.tensors}


def _change(name: str, module: nn.Module, dense: nn.Module) -> Change:
    kind = type(module).__qualname__
    if kind != type(dense).__qualname__:
        raise AutoSparseError(
            f"module '{name}' is {kind}, in the dense network {type(dense).__qualname__}: give the network that it was "
            "shrunk from"
        )
    before, after = attributes_of(dense), attributes_of(module)
    was, now = tensors_of(dense), tensors_of(module)
    if was.keys() != now.keys():
        raise AutoSparseError(
            f"module '{name}' ({kind}) has the tensors {', '.join(now) or 'none'}, in the dense network "
            f"{', '.join(was) or 'none'}: give the network that it was shrunk from"
        )
    change = Change(
        kind,
        {key: value for key, value in after.items() if value != before[key]},
        {key: tuple(tensor.shape) for key, tensor in now.items() if tensor.shape != was[key].shape},
    )
    if change.tensors and sizes_of(module) is None:
        raise AutoSparseError(
            f"the widths of module '{name}' ({kind}) have changed, and no attribute of it that could be kept says so: "
            "only layers, norms, PReLU and attention may differ from the dense network"
        )
    try:
        check_sizes(module)
    except ValueError as error:
        raise AutoSparseError(f"module '{name}' ({kind}) does not agree with itself: {error}") from None
    return change


def resize_(model: nn.Module, changes: Mapping[str, Change]) -> None:
    """Make the changes to the dense ``model``, in place; tensors of other shapes are empty ones on the meta device.

    Tied parameters stay tied.

    Raises:
        ValueError: a change that ``model`` cannot undergo, or that contradicts itself.
    """
    modules = dict(model.named_modules())
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for name, change in changes.items():
        if name not in modules:
            raise ValueError(f"{type(model).__name__} has no module '{name}'")
        with _naming(name):
            _resize(modules[name], change, replaced)
    for name in changes:  # once all have changed: attention depends on its projections
        with _naming(name):
            check_sizes(modules[name])


@contextmanager
def _naming(module: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"module '{module}': {error}") from None


def _resize(module: nn.Module, change: Change, replaced: dict[nn.Parameter, nn.Parameter]) -> None:
    kind = type(module).__qualname__
    if change.type != kind:
        raise ValueError(f"it is {kind}, not {change.type}")
    known, tensors = attributes_of(module), tensors_of(module)
    for key, value in change.attributes.items():
        if key not in known:
            raise ValueError(f"{kind} has no width called '{key}'")
        if not _alike(value, known[key]):
            raise ValueError(f"'{key}' is {known[key]} and cannot become {value}")
        setattr(module, key, value)
    for key, shape in change.tensors.items():
        if key not in tensors or not known:
            raise ValueError(f"{kind} has no tensor '{key}' whose shape may change")
        old = tensors[key]
        new = torch.empty(shape, dtype=old.dtype, device="meta")
        if isinstance(old, nn.Parameter):
            fresh = replaced.setdefault(old, nn.Parameter(new, requires_grad=old.requires_grad))
            if fresh.shape != new.shape:
                raise ValueError(f"'{key}' is tied to a tensor of shape {list(fresh.shape)}, not {list(shape)}")
            module._parameters[key] = fresh
        else:
            module._buffers[key] = new


def _alike(value: int | Shape, known: int | Shape) -> bool:
    """Whether both are numbers, or tuples of one length."""
    if isinstance(value, int) or isinstance(known, int):
        return isinstance(value, int) and isinstance(known, int)
    return len(value) == len(known)


def fill_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put ``tensors``, named and shaped as in ``state_dict()``, into ``model`` as they are, dtype included.

    Tied parameters stay tied, and gradients are required where they were.
    """
    placed: dict[Tensor, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for key, old in tensors_of(module).items():
            name = f"{prefix}.{key}" if prefix else key
            if name not in tensors:  # a buffer that is not stored
                continue
            if isinstance(old, nn.Parameter):
                fresh = nn.Parameter(tensors[name], requires_grad=old.requires_grad)
                module._parameters[key] = placed.setdefault(old, fresh)
            else:
                module._buffers[key] = tensors[name]
