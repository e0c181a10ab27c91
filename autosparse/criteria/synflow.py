"""SynFlow: how much of the flow of positive signals passes through a weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from autosparse.criteria.base import Scores, criterion
from autosparse.criteria.gradients import untouched
from autosparse.criteria.path_counting import Replaced, check_float64, single_output, substitute
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.masks import Masks

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def _applies(model: nn.Module, x: Tensor) -> None:
    synaptic_saliency(model, x[:1])


@criterion("synflow", paper="Tanaka et al. 2020, arXiv 2006.05467", check=_applies)
def synflow(model: nn.Module, example: Tensor, masks: Masks, *, dtype: str = "float64") -> Scores:
    """Synaptic saliency |w * dR/dw| of the flow R, relative to the largest one.

    The scores lie in [0, 1]: one factor for all layers, so that a global threshold compares them as the paper does,
    and sums over a channel keep their meaning. R itself is a product over the layers and leaves the range of float32
    in any deep network. Weights without flow, the removed ones among them, score exactly 0.

    Meant for many rounds (100 in the paper), each of which scores the network that the last one has left: only then
    does no layer lose all of its weights before it must.

    Args:
        dtype: of the computation and of the scores, ``float64`` or ``float32``. Scores that differ by more than 38
            orders of magnitude keep their order in ``float64`` alone.

    Raises:
        AutoSparseError: as :func:`synaptic_saliency`, or no weight of the whole network has any flow.
    """
    if dtype not in _DTYPES:
        raise UnknownNameError("dtype of synflow", dtype, _DTYPES)
    saliency = synaptic_saliency(model, example, _DTYPES[dtype])
    largest = torch.stack([values.max() for values in saliency.values()]).max()
    if not bool(largest > 0):
        if masks.density < 1:  # what has been removed has cut the network: nothing that is left matters
            return saliency
        raise AutoSparseError(
            f"synflow finds no path from input to output of {type(model).__name__}: a layer or a norm is zero, or "
            f"{dtype} too small for its flow; choose other initial weights or another method"
        )
    return {name: values / largest for name, values in saliency.items()}


def synaptic_saliency(model: nn.Module, example: Tensor, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """|w * dR/dw| of every prunable weight, with R = 1^T f(1; |state|).

    f is the network in eval mode whose parameters and floating-point buffers (biases and norm statistics included, as
    in the authors' code) are replaced by their absolute values, the input ones in the shape of ``example [1, ...]``,
    and R the sum of its outputs. Without biases, flow is conserved: what enters a neuron leaves it, and every layer
    of a chain sums to R.

    Activations that clip (ReLU6, hardtanh) rectify only: without bounds on it the flow rises far above 6, and every
    weight before the last clip would have derivative 0. The paper's theory is for activations that are homogeneous.

    Raises:
        AutoSparseError: the network does not return one tensor, its flow exceeds ``dtype``, or its device has no
            float64.
    """
    if dtype is torch.float64:
        check_float64("synflow", example.device)
    state, weights = substitute(model, lambda _, tensor: tensor.abs().to(dtype), lambda tensor: tensor.abs().to(dtype))
    for weight in weights.values():
        weight.requires_grad_(True)
    with untouched(model), Replaced({"relu6": _rectify, "hardtanh": _rectify}):
        model.eval()
        output = single_output(
            "synflow", model, functional_call(model, state, (torch.ones_like(example, dtype=dtype),))
        )
        gradients = torch.autograd.grad(output.sum(), list(weights.values()), allow_unused=True)
    saliency = {
        name: torch.zeros_like(weight) if gradient is None else (weight.detach() * gradient).abs()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
    if not all(bool(values.isfinite().all()) for values in saliency.values()):
        raise AutoSparseError(
            f"synflow of {type(model).__name__} exceeds {dtype}: choose dtype float64, smaller initial weights or "
            "another method"
        )
    return saliency


def _rectify(input: Tensor, *_: object, **__: object) -> Tensor:
    return F.relu(input)
