"""Mean gradients, and the guarantee that measuring leaves a model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from autosparse.errors import AutoSparseError
from autosparse.layers import prunable

Batches = Iterable[tuple[Tensor, Tensor]]
LossFn = Callable[[Tensor, Tensor], Tensor]

#: Images that a batch is not divided below: batch norm needs several.
FEWEST_IMAGES = 8


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore weights' ``grad``, buffers, train/eval flags and torch's global RNG when the block ends.

    Gradients are recorded inside, also where the caller has switched them off.
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    grads = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, grad, requires_grad in grads:
            parameter.grad = grad
            parameter.requires_grad_(requires_grad)


def mean_gradient(model: nn.Module, batches: Batches, loss_fn: LossFn) -> dict[str, Tensor]:
    """Gradient of the loss over all images of ``batches``, one tensor a prunable weight.

    ``loss_fn(output, target)`` is a mean over its batch; batches count by their number of images, so that the result
    is the mean over images however they are grouped. Batch norm uses batch statistics (training mode), as in the
    first step of training; its running statistics, and everything else of the model, stay as they were.

    Raises:
        AutoSparseError: there is no batch, or the loss is not finite.
    """
    weights = prunable(model)
    device = next(iter(weights.values())).device
    found: Sequence[Tensor] = ()  # of one batch its gradient, the mean already; of more the sum over images
    images = index = 0
    with untouched(model):
        model.train()
        for weight in weights.values():
            weight.requires_grad_(True)
        for index, (x, y) in enumerate(batches):
            loss = loss_fn(model(x.to(device)), y.to(device))
            grads = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
            if not bool(loss.isfinite()):
                raise AutoSparseError(
                    f"the loss is {loss.item()} at initialisation, batch of images {images}..{images + len(x)}: "
                    f"check the data and the initialisation of {type(model).__name__}"
                )
            if index == 0:
                found = grads
            elif index == 1:
                found = [grad * images for grad in found]
            if index > 0:
                for accumulated, grad in zip(found, grads, strict=True):
                    accumulated.add_(grad, alpha=len(x))
            images += len(x)
    if images == 0:
        raise AutoSparseError("no batch of images was given: pass data=, any iterable of (images, labels) batches")
    if index > 0:
        found = [accumulated.div_(images) for accumulated in found]
    return dict(zip(weights, found, strict=True))
