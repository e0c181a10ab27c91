"""Networks with substituted weights, in which signals are never negative; with ones, what flows is the paths' number.

A *path* leads from one input value to one output through one weight of each layer that it passes. In a network of
ones the output is their number, and its derivative by a weight the number of paths through that connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from autosparse.criteria.gradients import untouched
from autosparse.errors import AutoSparseError
from autosparse.layers import layers_of, prunable

# Path counts grow exponentially with depth. Starting this low on both sides leaves float64 room for 1e440 of them.
_START = 2.0**-450


def substitute(
    model: nn.Module, parameter_value: Callable[[str, Tensor], Tensor], buffer_value: Callable[[Tensor], Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """New tensors for ``functional_call``: the whole state but for integers, and the prunable weights among it.

    Both are by name; a parameter that has several names gets one substitute.
    """
    state = {name: parameter_value(name, parameter.detach()) for name, parameter in model.named_parameters()}
    substitutes = {id(parameter): state[name] for name, parameter in model.named_parameters()}
    weights = {name: substitutes[id(weight)] for name, weight in prunable(model).items()}
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            state[name] = buffer_value(buffer.detach())
    return state, weights


def check_float64(criterion: str, device: torch.device) -> None:
    """AutoSparseError on a device that has no float64."""
    if device.type == "mps":
        raise AutoSparseError(f"{criterion} computes in float64, which {device.type} lacks: move the model to the CPU")


def single_output(criterion: str, model: nn.Module, output: object) -> Tensor:
    """``output``; AutoSparseError unless it is one tensor."""
    if not isinstance(output, Tensor):
        raise AutoSparseError(
            f"{criterion} needs a network that returns one tensor, but {type(model).__name__} returns "
            f"{type(output).__name__}: wrap it in a module that returns its logits"
        )
    return output


class Replaced(TorchFunctionMode):
    """Inside the block, calls of torch functions with the given names (in place or not) go to ``rules``."""

    def __init__(self, rules: Mapping[str, Callable[..., Tensor]]) -> None:
        super().__init__()
        self._rules = rules

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = self._rules.get(getattr(func, "__name__", "").rstrip("_"), func)
        return rule(*args, **(kwargs or {}))


def _pass(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


def _open_gate(input: Tensor, *_: Any, **__: Any) -> Tensor:
    """1 with a positive derivative: what a gate multiplies passes, and the gate's own weights lie on paths."""
    return (_START + input) / (_START + input.detach())  # of the signals' own order: else the derivative vanishes


def _averaged(dimensions: int) -> Callable[..., Tensor]:
    """Average in place of maximum: every pooled position lies on a path, not only the first that is largest."""
    maximum, average = getattr(F, f"max_pool{dimensions}d"), getattr(F, f"avg_pool{dimensions}d")

    def pool(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        spread = dilation if isinstance(dilation, int) else max(dilation)
        if spread != 1 or return_indices:  # averages have neither
            return maximum(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        return average(input, kernel_size, stride or kernel_size, padding, ceil_mode, count_include_pad=False)

    return pool


#: Of networks whose gradients are to be positive exactly where paths are.
LINEAR: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"), _pass),
    **dict.fromkeys(("celu", "elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish", "prelu"), _pass),
    **dict.fromkeys(("relu", "relu6", "selu", "silu", "softplus", "tanh"), _pass),
    **dict.fromkeys(("hardsigmoid", "sigmoid"), _open_gate),
    **{f"max_pool{dimensions}d": _averaged(dimensions) for dimensions in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d": getattr(F, f"adaptive_avg_pool{d}d") for d in (1, 2, 3)},
}


class PathNetwork:
    """``model`` as a linear network of non-negative weights, on an input of the shape of ``example [1, ...]``.

    Biases are 0 and all other parameters 1; norms and activations pass their input on, gates (sigmoids) are open, and
    maximum pooling averages, which leaves out a constant factor. The model itself stays as it is.

    Attributes:
        weights: float64 weights by name, to be set in place; ones at first.
    """

    def __init__(self, criterion: str, model: nn.Module, example: Tensor) -> None:
        """AutoSparseError on a device without float64."""
        check_float64(criterion, example.device)
        self._criterion, self._model = criterion, model
        self._input = torch.full_like(example, _START, dtype=torch.float64)
        self._state, self.weights = substitute(model, _ones, Tensor.double)

    def decide(self, choose: Callable[[str, Tensor], Tensor]) -> None:
        """Set each layer's weights to ``choose(name, P)``, in the order in which the network runs its layers.

        ``P [C_in]``, on the CPU, is proportional to the number of paths that arrive at each input channel, summed over
        space, through the layers decided before.
        """
        waiting = {layer.name: layer for layer in layers_of(self._model)}

        def decide_layer(name: str, arriving: Tensor) -> None:
            del waiting[name]
            self.weights[name].copy_(choose(name, arriving.cpu()))

        def before(name: str, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            if name in waiting:
                signal = args[0] if args else kwargs["input"]
                channels = signal.movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
                decide_layer(name, self._finite(channels.flatten(1).sum(dim=1)))

        handles = [
            self._model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(
                partial(before, name), with_kwargs=True
            )
            for name in waiting
        ]
        try:
            with torch.no_grad():
                self._run()
        finally:
            for handle in handles:
                handle.remove()
        for name, layer in list(waiting.items()):  # its module is never called: its weight is used by another
            decide_layer(name, torch.ones(layer.shape[1] * layer.groups, dtype=torch.float64))

    def paths_through(self, *names: str) -> dict[str, Tensor]:
        """For each connection of the named layers a number proportional, in its layer, to the paths through it.

        Zero where it lies on no path. A connection whose weight is zero counts the paths that it would open alone.
        """
        leaves = [self.weights[name].requires_grad_(True) for name in names]
        with torch.enable_grad():
            total = self._run().sum() * _START
            used = total.requires_grad
            gradients = torch.autograd.grad(total, leaves, allow_unused=True) if used else [None] * len(leaves)
        for weight in leaves:
            weight.requires_grad_(False)
        return {
            name: torch.zeros_like(weight) if gradient is None else self._finite(gradient)
            for name, weight, gradient in zip(names, leaves, gradients, strict=True)
        }

    def _run(self) -> Tensor:
        with untouched(self._model), Replaced(LINEAR):
            self._model.eval()
            output = functional_call(self._model, self._state, (self._input,))
        return single_output(self._criterion, self._model, output)

    def _finite(self, paths: Tensor) -> Tensor:
        if not bool(paths.isfinite().all()):
            raise AutoSparseError(
                f"{self._criterion}: {type(self._model).__name__} has too many paths for float64: use a higher "
                "sparsity, or another method"
            )
        return paths


def _ones(name: str, tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, 0.0 if name.rpartition(".")[2].endswith("bias") else 1.0, dtype=torch.float64)
