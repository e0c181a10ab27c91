"""Signal propagation: weights at the edge of chaos, and residual branches that keep signals from growing with depth.

Hayou et al. 2021, Robust Pruning at Initialization, arXiv 2002.08797. In a ReLU network whose weights have variance
2 / fan-in, on the edge of chaos, gradients neither vanish nor explode with depth. Pruning takes a network off the edge;
a factor a layer brings it back. A residual network adds up its branches; scaled by L^(-1/2) for L of them, their sum
stays bounded (Stable ResNet).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from autosparse.errors import AutoSparseError
from autosparse.layers import layers_of, prunable

#: σ_w² of ReLU networks on the edge of chaos, where σ_b = 0.
RELU_VARIANCE = 2.0


def edge_of_chaos_factors(
    model: nn.Module, masks: Mapping[str, Tensor], *, variance: float = RELU_VARIANCE
) -> dict[str, Tensor]:
    """The factor sqrt(σ_w² / (fan_in · mean(W² M))) of every prunable layer, a tensor without dimensions each.

    The mean is over the whole layer, removed weights included. A layer without any weight left has the factor 1.

    Args:
        masks: M, True where a weight is left.
        variance: σ_w².
    """
    if not variance > 0:
        raise AutoSparseError(f"the variance of the edge of chaos is {variance}: give a positive number, 2 for ReLU")
    weights, factors = prunable(model), {}
    for layer in layers_of(model):
        weight = weights[layer.name].detach()
        second_moment = layer.fan_in * (weight * masks[layer.name].to(weight.device)).square().mean()
        factors[layer.name] = torch.where(second_moment > 0, (variance / second_moment).sqrt(), 1.0)
    return factors


@torch.no_grad()
def edge_of_chaos(model: nn.Module, masks: Mapping[str, Tensor], *, variance: float = RELU_VARIANCE) -> None:
    """Bring a pruned network back to the edge of chaos, in place: the rescaling trick.

    Every prunable layer, the classifier included, is multiplied by its factor (:func:`edge_of_chaos_factors`), after
    which fan_in · mean(W²) = σ_w²; removed weights become zero. Layers without any weight left, biases and norms stay
    as they are: σ_b = 0 holds where biases start at zero. That the trick is a factor a layer, and which, comes from
    the theory of networks without normalisation; that it is applied to every layer alike is a choice of ours.

    Batch norm divides the factor of the layer before it out again, so that the function of the network does not change;
    the gradient of that layer is divided by it, and with it the effective learning rate by its square.
    """
    factors = edge_of_chaos_factors(model, masks, variance=variance)
    for name, weight in prunable(model).items():
        weight.mul_(factors[name]).masked_fill_(~masks[name].to(weight.device), 0.0)


class StableResiduals(TorchFunctionMode):
    """While active, the branch of every residual sum is multiplied by ``scale``; for other code nothing changes.

    A residual sum is the addition of two activations of one shape that lie at different depths, depth being the most
    linear layers, convolutions and attentions on a path from the input. The deeper one is the branch, the other the
    shortcut, identity or projection. That finds the blocks of every network that adds them in Python, whatever its
    classes are called. It misses a sum of equally deep branches, a shortcut around the very first layer, and compiled
    or scripted networks.

    ``found`` counts the residual sums so far.
    """

    _LAYERS = frozenset({F.linear, F.conv1d, F.conv2d, F.conv3d, F.multi_head_attention_forward})
    _SUMS = frozenset({torch.add, Tensor.add, Tensor.add_})

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.found = 0
        self._depths: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self._SUMS:
            args = self._stabilised(func, args)
        result = func(*args, **(kwargs or {}))
        is_layer = func in self._LAYERS
        depth = max((self._depths.get(tensor, 0) for tensor in _tensors(args)), default=0) + is_layer
        if depth:
            for tensor in _tensors((result,)):
                self._depths[tensor] = depth
        return result

    def _stabilised(self, func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
        terms = args[:2]
        if not all(isinstance(term, Tensor) for term in terms) or len(terms) < 2 or terms[0].shape != terms[1].shape:
            return args
        # Without two dimensions they are losses, not activations.
        depths = [self._depths.get(term, 0) for term in terms] if terms[0].dim() > 1 else [0, 0]
        if min(depths) == 0 or depths[0] == depths[1]:
            return args
        self.found += 1
        if depths[0] < depths[1]:
            return (terms[0], terms[1] * self.scale, *args[2:])
        # An addition in place must still change the tensor that it was asked to change.
        branch = terms[0].mul_(self.scale) if func is Tensor.add_ else terms[0] * self.scale
        return (branch, *args[1:])


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
