"""Does the output of a pruned network still depend on its input, and how to keep it so.

Both questions are asked of a *flow network*: the same module, in eval mode and float64, whose prunable weights are
replaced by non-negative ones, biases by 0, other parameters by 1 and running statistics by (0, 1). Signals then never
cancel, so a gradient from output to input is positive exactly when some path of kept weights joins them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from autosparse.criteria.gradients import untouched
from autosparse.criteria.path_counting import LINEAR, Replaced
from autosparse.errors import AutoSparseError
from autosparse.features import SEE_SHORTCUTS
from autosparse.layers import prunable

_DUST = 1e-9  # weight of a removed connection when looking for a path: used only where no kept one exists


@contextmanager
def in_float64(task: str, instead: str) -> Iterator[None]:
    """Turn what a model raises that cannot be evaluated in float64 into an AutoSparseError.

    Args:
        task: what cannot be done then, naming the model.
        instead: what to do.
    """
    try:
        yield
    except (RuntimeError, TypeError) as error:  # TypeError: a device without float64
        reason = str(error).partition(chr(10))[0]
        raise AutoSparseError(f"cannot {task}, it cannot be evaluated in float64 ({reason}): {instead}") from error


def _flow(model: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The summed output of the flow network. ``x [N, ...]`` is positive and float64."""
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if name in weights:
            continue
        is_bias = name.rpartition(".")[2].endswith("bias")
        state[name] = torch.full_like(parameter, 0.0 if is_bias else 1.0, dtype=torch.float64)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            last = name.rpartition(".")[2]
            state[name] = (
                torch.full_like(buffer, float(last == "running_var"), dtype=torch.float64)
                if last in ("running_mean", "running_var")
                else buffer.double()
            )
    output = functional_call(model, {**state, **weights}, (x,))
    return output.sum()


def _probe(x: Tensor) -> Tensor:
    """A fixed positive input of one image in the shape of ``x``; not constant, so that norms over it do not vanish.

    Tiny: every residual block can double the signal, and a bounded activation such as ReLU6 must not cut it off.
    """
    values = torch.rand((1, *x.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ((values + 0.5) * 2.0**-40).to(x.device)


def _normalised(weight: Tensor) -> Tensor:
    """Rows that sum to about 1, so that signals neither explode nor vanish with depth."""
    rows = weight.flatten(1)
    return (rows / rows.sum(dim=1, keepdim=True).clamp(min=_DUST)).reshape(weight.shape)


def is_connected(model: nn.Module, masks: Mapping[str, Tensor], x: Tensor) -> bool:
    """Whether some path of kept weights leads from the input to the output.

    Args:
        x: a batch of inputs; only its shape and device are used.

    Raises:
        RuntimeError: the model cannot be evaluated in float64.
    """
    weights = {name: _normalised(mask.double()) for name, mask in masks.items()}
    with untouched(model):
        model.eval()
        probe = _probe(x).requires_grad_(True)
        flow = _flow(model, weights, probe)
        if not flow.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(flow, probe, allow_unused=True)
    return gradient is not None and bool((gradient > 0).any())


def useful_weights(model: nn.Module, masks: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The weights, kept or removed, that would carry something: kept ones lead from the input to them and from them on
    to the output; bool tensors a layer.

    Of the kept weights the others are wasted: no output depends on them. A removed one that is useful would, by itself,
    make a path. Costs one backward pass of one image.

    Args:
        x: a batch of inputs; only its shape and device are used.

    Raises:
        RuntimeError: the model cannot be evaluated in float64.
    """
    # Not only above zero: a softmax passes on to one what it takes from others.
    return {name: gradient != 0 for name, (_, gradient) in _gradients(model, masks, x).items()}


def flow_through(model: nn.Module, masks: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """How much of the flow from input to output passes through each kept weight, when all pass on alike.

    Arguments, cost and errors as for :func:`useful_weights`; float64 tensors a layer.
    """
    return {name: weight * gradient for name, (weight, gradient) in _gradients(model, masks, x).items()}


def passing_by(model: nn.Module, x: Tensor) -> dict[str, float]:
    """For each layer the share of the dense network's flow that does not pass through it, in [0, 1].

    Nothing passes by a layer of a chain, about half by one in a residual branch. Where that cannot be told, everything
    counts as passing through: of a weight that another module uses than its own, and where no gradient arrives (before
    a softmax, which passes on to one what it takes from others), and of all where the model or its device knows no
    float64. Costs one backward pass of one image, without the gradients of weights.

    Args:
        x: a batch of inputs; only its shape and device are used.
    """
    try:
        through = _flow_through_layers(model, x)
    except (RuntimeError, TypeError):  # as in in_float64
        return dict.fromkeys(prunable(model), 0.0)
    most = max(through.values(), default=0.0)
    return {name: 1 - flow / most if flow > _DUST * most else 0.0 for name, flow in through.items()}


def bypass_for(features: str, model: nn.Module, x: Tensor) -> dict[str, float] | None:
    """What :func:`passing_by` tells, for a feature set that has use for it."""
    return passing_by(model, x) if features in SEE_SHORTCUTS else None


def _flow_through_layers(model: nn.Module, x: Tensor) -> dict[str, float]:
    """How much of the dense network's flow passes through each layer."""
    weights = {
        name: torch.full_like(weight, weight.shape[0] / weight.numel(), dtype=torch.float64)
        for name, weight in prunable(model).items()
    }
    outputs: dict[str, list[Tensor]] = {name: [] for name in weights}

    def keep(name: str, module: nn.Module, args: Any, output: object) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            outputs[name].append(output)  # linear in the weight: times its gradient, it is what flows through

    hooks = [
        model.get_submodule(name.rpartition(".")[0]).register_forward_hook(partial(keep, name)) for name in weights
    ]
    try:
        with untouched(model), torch.enable_grad(), Replaced(LINEAR):
            model.eval()
            total = _flow(model, weights, _probe(x).requires_grad_(True))
    finally:
        for hook in hooks:
            hook.remove()
    found = [output for kept in outputs.values() for output in kept]
    gradients = iter(torch.autograd.grad(total, found, allow_unused=True) if found else ())
    return {
        name: sum(
            float((output * gradient).detach().sum())
            for output, gradient in zip(kept, gradients, strict=False)  # the next layer takes up where this stops
            if gradient is not None
        )
        for name, kept in outputs.items()
    }


def _gradients(model: nn.Module, masks: Mapping[str, Tensor], x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The weights of the flow network and the gradients of its output."""
    weights = {name: _normalised(mask.double()).requires_grad_(True) for name, mask in masks.items()}
    with untouched(model):
        model.eval()
        with Replaced(LINEAR):
            flow = _flow(model, weights, _probe(x))
        found = torch.autograd.grad(flow, list(weights.values()), allow_unused=True) if flow.requires_grad else ()
    gradients = dict(zip(weights, found, strict=False))
    return {
        name: (weight.detach(), torch.zeros_like(weight) if gradients.get(name) is None else gradients[name])
        for name, weight in weights.items()
    }


@torch.no_grad()
def responds(model: nn.Module, masks: Mapping[str, Tensor], x: Tensor) -> bool:
    """Whether the pruned, untrained network's outputs differ between the images of ``x [N, ...]``.

    Stricter than :func:`is_connected`: real weights have signs, and ReLUs can block every path that there is. Batch
    norm uses batch statistics. True also where nothing can be said: one image, or a dense network that does not
    respond either (a classifier that starts at zero).
    """
    weights = prunable(model)

    def varies(state: Mapping[str, Tensor]) -> bool:
        output = functional_call(model, dict(state), (x,))
        return bool((output - output[:1]).abs().max() > 1e-6 * output.abs().max())

    with untouched(model):
        model.train()
        masked = {name: weight * masks[name].to(weight.device) for name, weight in weights.items()}
        return len(x) < 2 or varies(masked) or not varies(weights)


def connecting_weights(
    model: nn.Module, masks: Mapping[str, Tensor], scores: Mapping[str, Tensor], x: Tensor
) -> dict[str, Tensor]:
    """One weight of every layer, such that they form paths from input to output; bool tensors a layer.

    Layers are decided in order. Each keeps the weight through which most flow passes, in a network where kept weights
    count fully, removed ones almost nothing (the better their score's rank within the layer, the more), and layers
    already decided consist of their chosen weight alone; so the next choice continues the path of the last one.
    Negative weights come last: between ReLUs a lone negative weight can leave an output that no image changes.
    Costs one backward pass of one image a layer.

    Raises:
        RuntimeError: the model cannot be evaluated in float64.
    """
    current = {}
    for name, weight in prunable(model).items():
        rank = scores[name].flatten().argsort().argsort().reshape(scores[name].shape).double()
        preference = masks[name].double() + _DUST * (1 + rank / rank.numel())
        current[name] = _normalised(torch.where(weight.detach() < 0, _DUST * _DUST * preference, preference))
    chosen: dict[str, Tensor] = {}
    with untouched(model):
        model.eval()
        probe = _probe(x)
        for name in current:
            weights = {key: value.detach().requires_grad_(key == name) for key, value in current.items()}
            (gradient,) = torch.autograd.grad(_flow(model, weights, probe), weights[name], allow_unused=True)
            mask = torch.zeros(masks[name].shape, dtype=torch.bool, device=masks[name].device)
            if gradient is not None:
                passing = weights[name].detach() * gradient
                mask.view(-1)[passing.flatten().argmax()] = True
                current[name] = mask.double()
            chosen[name] = mask
    return chosen
