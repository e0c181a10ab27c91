"""Gradients and Hessian-vector products of the mean loss, at any values of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from autosparse.criteria.gradients import LossFn, untouched
from autosparse.errors import AutoSparseError
from autosparse.layers import prunable

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
#: What torch says of operations whose backward pass it cannot differentiate once more.
_NOT_TWICE = ("is not implemented", "double backward")

Derivative = Callable[[Tensor, list[Tensor]], Sequence[Tensor | None]]


@dataclass(frozen=True)
class MeanLoss:
    """The mean loss over all images of ``batches``, a function L(theta) of named parameters.

    ``theta`` maps names of parameters of ``model`` to the values at which to differentiate, and names the parameters
    to differentiate by; the others keep the model's values. Results have the same names and shapes. Batches count by
    their number of images, so that results are means over images however they are grouped, and the graph of one batch
    is freed before the next is built, so that memory is that of the largest batch.

    L is a fixed function: everything random or adaptive (dropout, stochastic depth) is in evaluation mode, for the
    Hessian must be that of the gradient it multiplies. Only batch norm has a choice. The model is never changed.

    Args:
        loss_fn: ``loss_fn(output, labels)``, a mean over its batch.
        criterion: who asks, for messages.
        batch_statistics: batch norm normalises by the batch, as in training, instead of by its running statistics. The
            mean over batches then depends on how images are grouped.
        advice: what to do when the loss or a derivative is not finite.
    """

    model: nn.Module
    batches: Sequence[tuple[Tensor, Tensor]]
    loss_fn: LossFn
    criterion: str
    batch_statistics: bool = True
    advice: str = "check the data and the initialisation of the network"

    def gradient(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradient of L at ``theta``; zero for a parameter that the loss does not depend on.

        Raises:
            AutoSparseError: there is no batch, or the loss or a gradient is not finite.
        """
        return self._mean(theta, lambda loss, leaves: torch.autograd.grad(loss, leaves, allow_unused=True))

    def hessian_vector(self, theta: Mapping[str, Tensor], v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """H v, with H the Hessian of L at ``theta``: the derivative of the gradient along ``v``.

        Exact, by differentiating the gradient once more. Costs two to four times the time and memory of a gradient.

        Raises:
            AutoSparseError: as :meth:`gradient`; or the network has an operation without second derivatives.
        """
        directions = [v[name] for name in theta]

        def product(loss: Tensor, leaves: list[Tensor]) -> Sequence[Tensor | None]:
            gradients = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
            # A gradient that does not depend on the parameters adds nothing, and torch would refuse it.
            curved = [(g, d) for g, d in zip(gradients, directions, strict=True) if g is not None and g.requires_grad]
            if not curved:
                return [None] * len(leaves)
            outputs, along = zip(*curved, strict=True)
            return self._second_derivative(outputs, leaves, along)

        # Fused attention kernels have no second derivatives; the plain formula has.
        with sdpa_kernel(SDPBackend.MATH):
            return self._mean(theta, product)

    def _second_derivative(
        self, gradients: Sequence[Tensor], leaves: list[Tensor], along: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        if _has_opaque_backward(gradients):
            raise AutoSparseError(self._no_second_derivatives("a function marked once_differentiable"))
        try:
            return torch.autograd.grad(gradients, leaves, grad_outputs=along, allow_unused=True)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            if any(phrase in reason for phrase in _NOT_TWICE):
                raise AutoSparseError(self._no_second_derivatives(reason)) from error
            raise

    def _no_second_derivatives(self, reason: str) -> str:
        return (
            f"{self.criterion} needs second derivatives, and {type(self.model).__name__} has an operation without "
            f"({reason}): replace it, or use a criterion of first derivatives such as snip"
        )

    def _mean(self, theta: Mapping[str, Tensor], derivative: Derivative) -> dict[str, Tensor]:
        leaves = {name: value.detach().requires_grad_(True) for name, value in theta.items()}
        total = {name: torch.zeros_like(value) for name, value in theta.items()}
        images = 0
        with evaluation(self.model, self.batch_statistics):
            for x, y in self.batches:
                # In a function of its own, so that nothing of its graph is alive when the next one is built.
                self._add_batch(total, leaves, x, y, images, derivative)
                images += len(x)
        if images == 0:
            raise AutoSparseError("no batch of images was given: pass data=, any iterable of (images, labels) batches")
        mean = {name: value.div_(images) for name, value in total.items()}
        if not bool(torch.stack([value.isfinite().all() for value in mean.values()]).all()):
            raise AutoSparseError(f"{self.criterion}: a derivative of the loss is not finite: {self.advice}")
        return mean

    def _add_batch(
        self,
        total: Mapping[str, Tensor],
        leaves: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        first_image: int,
        derivative: Derivative,
    ) -> None:
        device = next(iter(leaves.values())).device
        loss = self.loss_fn(functional_call(self.model, leaves, (x.to(device),)), y.to(device))
        if not bool(loss.isfinite()):
            raise AutoSparseError(
                f"{self.criterion}: the loss is {loss.item()} on images {first_image}..{first_image + len(x) - 1}: "
                f"{self.advice}"
            )
        for accumulated, part in zip(total.values(), derivative(loss, list(leaves.values())), strict=True):
            if part is not None:
                accumulated.add_(part, alpha=len(x))


def check_second_derivatives(model: nn.Module, x: Tensor) -> None:
    """AutoSparseError for a network that cannot be differentiated twice; ``x [2, ...]`` are images."""
    weights = {name: weight.detach() for name, weight in prunable(model).items()}
    labels = torch.zeros(len(x), dtype=torch.int64)
    # Bounded, so that an extreme output is not taken for a network without second derivatives.
    MeanLoss(model, [(x, labels)], lambda output, _: output.tanh().mean(), "it").hessian_vector(weights, weights)


def curvature_along_gradient(
    loss: MeanLoss, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """H (M ⊙ ∇L) at ``weights``: half the gradient of the gradient flow ‖M ⊙ ∇L‖² by each weight.

    ``masks`` M are True where a weight is left: a removed one does not train, so its gradient is no part of the flow.
    """
    gradient = loss.gradient(weights)
    return loss.hessian_vector(weights, {name: g * masks[name].to(g.device) for name, g in gradient.items()})


def _has_opaque_backward(gradients: Sequence[Tensor]) -> bool:
    """Whether the graph of ``gradients`` has a function marked ``once_differentiable``.

    ``torch.autograd.grad`` does not raise for one: it leaves out the terms behind it.
    """
    pending = [gradient.grad_fn for gradient in gradients]
    seen = set(pending)
    while pending:
        node = pending.pop()
        if node is None:
            continue
        if node.name() == "torch::autograd::Error":
            return True
        new = {parent for parent, _ in node.next_functions} - seen
        seen |= new
        pending.extend(new)
    return False


@contextmanager
def evaluation(model: nn.Module, batch_statistics: bool) -> Iterator[None]:
    with untouched(model):
        model.eval()
        for module in model.modules():
            if isinstance(module, _BATCH_NORMS):
                module.train(batch_statistics)
        yield
