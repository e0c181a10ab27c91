"""What a network of given widths costs: parameters and FLOPs, without building it.

Every weight has as many entries as its outputs times its inputs (times its taps), and each of these counts is linear
in the widths of the groups. Parameters and FLOPs are therefore sums of products of two linear forms.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autosparse.channels.groups import Coupling
from autosparse.criteria.gradients import untouched

_CONV = nn.modules.conv._ConvNd


@dataclass(frozen=True)
class Bilinear:
    """``sum over t of coefficients[t] * (left[t] . v) * (right[t] . v)`` with v = (1, widths of the groups).

    Args:
        names: of the groups, in the order of the widths.
        left, right: ``[terms, 1 + groups]``.
    """

    names: tuple[str, ...]
    coefficients: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def __call__(self, widths: Mapping[str, float]) -> float:
        return self.at(np.array([widths[name] for name in self.names], dtype=np.float64))

    def at(self, widths: np.ndarray) -> float:
        """The cost of ``widths [groups]``."""
        v = np.concatenate([[1.0], widths])
        return float((self.coefficients * (self.left @ v) * (self.right @ v)).sum())

    def gradient(self, widths: np.ndarray) -> np.ndarray:
        """How the cost grows with each width: ``[groups]``."""
        v = np.concatenate([[1.0], widths])
        left, right = self.coefficients * (self.left @ v), self.coefficients * (self.right @ v)
        return (left @ self.right + right @ self.left)[1:]


@dataclass(frozen=True)
class Costs:
    """Parameters and FLOPs (of one image; a multiplication and an addition are two) as functions of the widths."""

    params: Bilinear
    flops: Bilinear


def costs_of(model: nn.Module, coupling: Coupling, example: Tensor) -> Costs:
    """The costs of ``model`` as functions of the widths of its channel groups; the model is left as it was.

    FLOPs are those that torch's counter sees: convolutions, matrix products and attention. At full width both costs
    are exact; elsewhere too, but for an operation whose FLOPs are in no layer and no attention: it counts as constant.

    Args:
        example: images ``[N, C, H, W]`` as the network will see them.
    """
    forms = _Forms(model, coupling)
    counted = count_flops(model, example)
    params = _Terms(forms)
    flops = _Terms(forms)
    inside = 0.0
    for name, module in model.named_modules():
        own = list(module.named_parameters(recurse=False))
        if isinstance(module, (_CONV, nn.Linear)):
            # A grouped convolution's kernels keep their inputs: its cost follows its outputs alone.
            grouped = getattr(module, "groups", 1) > 1
            written, read = _sides(module)
            outputs = forms.of(name, "out", written)
            inputs = forms.constant(1.0) if grouped else forms.of(name, "in", read)
            per_weight = module.weight.numel() / (outputs.full * inputs.full)
            params.add(per_weight, outputs, inputs)
            if module.bias is not None:
                params.add(1.0, outputs, forms.constant(1.0))
            cost = counted.get(name, 0)
            flops.add(cost / (outputs.full * inputs.full), outputs, inputs)
            inside += cost
        else:
            for _, parameter in own:
                width = forms.of(name, "channel", parameter.numel())
                params.add(parameter.numel() / width.full, width, forms.constant(1.0))
    for group in coupling:
        if group.attention is not None:
            attention = model.get_submodule(group.attention)
            layers = [name for name, _ in attention.named_modules(prefix=group.attention)][1:]
            own_flops = counted.get(group.attention, 0) - sum(
                counted.get(name, 0) for name in layers if isinstance(model.get_submodule(name), nn.Linear)
            )
            flops.add(own_flops / group.width, forms.width(group.name), forms.constant(1.0))
            inside += own_flops
    flops.add(counted[""] - inside, forms.constant(1.0), forms.constant(1.0))
    return Costs(params.sum(), flops.sum())


def layer_forms(model: nn.Module, coupling: Coupling) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Outputs and inputs of every ungrouped convolution and linear layer as rows r: their count is r . (1, widths)."""
    forms = _Forms(model, coupling)
    for name, module in model.named_modules():
        if isinstance(module, (_CONV, nn.Linear)) and getattr(module, "groups", 1) == 1:
            written, read = _sides(module)
            yield name, forms.of(name, "out", written).row, forms.of(name, "in", read).row


def _sides(layer: nn.modules.conv._ConvNd | nn.Linear) -> tuple[int, int]:
    """How many outputs and inputs a layer has."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels


def count_flops(model: nn.Module, example: Tensor) -> dict[str, int]:
    """FLOPs of one image in every module by name, and of the whole network under ``""``; the model is left as it was.

    Nothing is computed where the network can be run on meta tensors.
    """
    with untouched(model), torch.no_grad():
        try:
            twin = copy.deepcopy(model).to("meta").eval()
            return _counted(twin, example[:1].to("meta"))
        except (NotImplementedError, RuntimeError):  # it makes tensors of its own on a real device
            model.eval()
            return _counted(model, example[:1].to(next(model.parameters()).device))


def _counted(model: nn.Module, example: Tensor) -> dict[str, int]:
    counter = FlopCounterMode(display=False)
    with counter:
        model(example)
    root = type(model).__name__
    found = {name: sum(by_operation.values()) for name, by_operation in counter.get_flop_counts().items()}
    modules = {name.removeprefix(f"{root}."): flops for name, flops in found.items() if name.startswith(f"{root}.")}
    return {**modules, "": found.get("Global", 0)}


@dataclass(frozen=True)
class _Form:
    """A count that is linear in the widths: ``row . (1, widths)``; ``full`` at full width."""

    row: np.ndarray
    full: float


class _Forms:
    def __init__(self, model: nn.Module, coupling: Coupling) -> None:
        self.names = tuple(group.name for group in coupling)
        self._widths = np.array([1.0, *(group.width for group in coupling)])
        self._rows: dict[tuple[str, str], np.ndarray] = {}
        for index, group in enumerate(coupling):
            for member in group.members:
                row = self._rows.setdefault((member.module, member.side), np.zeros(len(self._widths)))
                row[1 + index] += member.multiplicity

    def of(self, module: str, side: str, count: int) -> _Form:
        """The ``count`` channels of a module's side; a depthwise convolution has both sides in one."""
        row = self._rows.get((module, side), self._rows.get((module, "channel"), np.zeros(len(self._widths)))).copy()
        row[0] = count - row[1:] @ self._widths[1:]  # those of no group
        return _Form(row, count)

    def width(self, group: str) -> _Form:
        row = np.zeros(len(self._widths))
        row[1 + self.names.index(group)] = 1.0
        return _Form(row, float(row @ self._widths))

    def constant(self, value: float) -> _Form:
        row = np.zeros(len(self._widths))
        row[0] = value
        return _Form(row, value)


class _Terms:
    def __init__(self, forms: _Forms) -> None:
        self._forms = forms
        self._terms: list[tuple[float, _Form, _Form]] = []

    def add(self, coefficient: float, left: _Form, right: _Form) -> None:
        if coefficient:
            self._terms.append((coefficient, left, right))

    def sum(self) -> Bilinear:
        coefficients = np.array([term[0] for term in self._terms])
        shape = (len(self._terms), 1 + len(self._forms.names))
        left = np.array([term[1].row for term in self._terms]).reshape(shape)
        right = np.array([term[2].row for term in self._terms]).reshape(shape)
        return Bilinear(self._forms.names, coefficients, left, right)
