from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from autosparse.criteria.base import Scores, criterion
from autosparse.criteria.gradients import Batches, LossFn
from autosparse.criteria.hessian import MeanLoss, check_second_derivatives
from autosparse.errors import AutoSparseError
from autosparse.layers import prunable

Values = Mapping[str, Tensor]
LossOfStep = Callable[[int], MeanLoss]


@criterion("prospr", paper="Alizadeh et al. 2022, arXiv 2202.08132", check=check_second_derivatives)
def prospr(
    model: nn.Module,
    batches: Batches,
    loss_fn: LossFn,
    *,
    steps: int = 3,
    lr: float = 0.5,
    momentum: float = 0.9,
    order: int = 2,
    weights_only: bool = False,
    detach_first: bool = False,
) -> Scores:
    """Meta-gradient |∂L_K/∂m| at m = 1 of the loss after K steps of SGD that start from w ⊙ m.

    The mask multiplies the initial weights alone: the steps move them freely, as in the paper. All K + 1 losses have
    images of their own: the images of ``batches``, in order, are divided into K + 1 parts of equal size (give or take
    one), one for each step and the last for the final loss. A part is cut into equal pieces no larger than the largest
    batch given, which set the memory. Batch norm uses the statistics of a piece.

    The meta-gradient is exact and the unrolled training is never held: the parameters of every step are stored, and
    the adjoint equations of momentum SGD lead back through them by one Hessian-vector product a step.

    The paper prunes in one round. In later rounds the steps would move removed weights away from zero.

    Args:
        steps: K; 0 is SNIP.
        lr: step size of the inner SGD.
        momentum: of the inner SGD.
        order: 2 differentiates through the steps. 1 is the paper's first-order variant |w ⊙ ∇L_K(w_K)|, for which no
            step has a derivative.
        weights_only: the inner SGD moves prunable weights alone. By default it moves every parameter, biases and norms
            included, as in the paper.
        detach_first: treat the first step's gradient as a constant, as the released code does, which drops the
            curvature at the initial weights. By default the meta-gradient is whole, as in the paper.

    Raises:
        AutoSparseError: an option out of range, fewer than K + 1 images, or inner training that diverges.
    """
    if steps < 0 or order not in (1, 2):
        raise AutoSparseError(f"prospr has steps {steps} and order {order}: give steps of at least 0 and order 1 or 2")
    listed = list(batches)
    images = sum(len(x) for x, _ in listed)
    if images < steps + 1:
        raise AutoSparseError(
            f"prospr with {steps} steps needs {steps + 1} images or more, some for each step and for the last loss; "
            f"it was given {images}: pass more data, or lower its option steps"
        )

    def loss_of(k: int) -> MeanLoss:
        who = f"prospr, step {k + 1} of {steps}" if k < steps else f"prospr, after {steps} steps"
        advice = f"lower its option lr, now {lr}" if k else "check the data and the initialisation of the network"
        return MeanLoss(model, _part(listed, k, steps + 1), loss_fn, who, advice=advice)

    weights = {name: weight.detach() for name, weight in prunable(model).items()}
    start = weights if weights_only else {**weights, **_other_parameters(model)}
    *path, end = _descend(loss_of, start, steps, lr, momentum)
    a: Values = loss_of(steps).gradient(end)
    if order == 2:
        a = _back_through_steps(loss_of, path, a, lr, momentum, detach_first)
    return {name: (weight * a[name]).abs() for name, weight in weights.items()}


def _descend(loss_of: LossOfStep, start: Values, steps: int, lr: float, momentum: float) -> list[Values]:
    """The parameters θ_0..θ_K of momentum SGD: u_k+1 = µ u_k + ∇L_k(θ_k) from u_0 = 0, θ_k+1 = θ_k - η u_k+1."""
    path = [start]
    u = {name: torch.zeros_like(value) for name, value in start.items()}
    for k in range(steps):
        theta, g = path[-1], loss_of(k).gradient(path[-1])
        u = {name: momentum * u[name] + g[name] for name in u}
        path.append({name: theta[name] - lr * u[name] for name in u})
    return path


def _back_through_steps(
    loss_of: LossOfStep, path: Sequence[Values], a: Values, lr: float, momentum: float, detach_first: bool
) -> Values:
    """``a`` = ∂L_K/∂θ_K, led back to ∂L_K/∂θ_0 along ``path`` = θ_0..θ_K-1.

    With a_k and b_k the derivatives of L_K by θ_k and u_k, the step gives c = b_k+1 - η a_k+1 for the derivative by
    u_k+1 through both its uses, a_k = a_k+1 + H_k c and b_k = µ c.
    """
    b = {name: torch.zeros_like(value) for name, value in a.items()}
    for k in range(len(path) - 1, 0 if detach_first else -1, -1):
        c = {name: b[name] - lr * a[name] for name in a}
        curvature = loss_of(k).hessian_vector(path[k], c)
        a = {name: a[name] + curvature[name] for name in a}
        b = {name: momentum * c[name] for name in c}
    return a


def _other_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Floating-point parameters that are not prunable: biases, norms and embeddings."""
    weights = {id(weight) for weight in prunable(model).values()}
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if id(parameter) not in weights and parameter.is_floating_point()
    }


def _part(batches: Sequence[tuple[Tensor, Tensor]], part: int, parts: int) -> list[tuple[Tensor, Tensor]]:
    """The images of one of ``parts`` contiguous parts, in equal pieces no larger than the largest batch."""
    sizes = [len(x) for x, _ in batches]
    start, stop = sum(sizes) * part // parts, sum(sizes) * (part + 1) // parts
    pieces = math.ceil((stop - start) / max(sizes))
    edges = [start + (stop - start) * piece // pieces for piece in range(pieces + 1)]
    return [_images(batches, first, last) for first, last in pairwise(edges)]


def _images(batches: Sequence[tuple[Tensor, Tensor]], start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Images ``start`` to ``stop`` of all batches laid end to end, and their labels."""
    xs, ys, offset = [], [], 0
    for x, y in batches:
        inside = slice(max(start - offset, 0), max(stop - offset, 0))
        xs.append(x[inside])
        ys.append(y[inside])
        offset += len(x)
    return torch.cat(xs), torch.cat(ys)
