"""Gates c = 1 that multiply coupled channels, and derivatives by them.

Where a gate sits decides what its derivative says. In front of a batch norm that normalises by the batch it is zero,
for the norm undoes the gate. Hence two placements:

``reads``
    The gate multiplies what every layer reads of the channel. Batch norm normalises by the batch, as in training.
``writes``
    The gate multiplies what every layer writes to the channel, bias included, before any norm. Batch norm uses its
    running statistics, which an untrained network has not measured yet; norms that have none undo the gate.

A convolution in blocks (depthwise, grouped) inside a group has no gate of its own: its channels are those of the group.

No gate is inserted. One that multiplies a channel is one that multiplies all weights w through which the channel is
read, or written, so that derivatives by it are sums over those weights: dL/dc = sum of w dL/dw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.channels.criteria.slices import Places, cannot_be_scored, channel_sums, names_of, readers, writers
from autosparse.channels.groups import Coupling
from autosparse.criteria.gradients import Batches, LossFn
from autosparse.criteria.hessian import MeanLoss, check_second_derivatives
from autosparse.criteria.path_counting import Replaced
from autosparse.errors import UnknownNameError
from autosparse.layers import prunable

PLACEMENTS: dict[str, Places] = {"reads": readers, "writes": writers}


def _hardsigmoid(input: Tensor, *_: object, **__: object) -> Tensor:
    return F.relu6(input + 3) / 6


#: Functions whose backward pass torch cannot differentiate, by the same functions of others.
_TWICE_DIFFERENTIABLE = {"hardsigmoid": _hardsigmoid}


def check_flow(model: nn.Module, x: Tensor) -> None:
    """AutoSparseError for a network whose gradient flow cannot be differentiated; ``x [2, ...]`` are images."""
    with Replaced(_TWICE_DIFFERENTIABLE):
        check_second_derivatives(model, x)


def placement_of(gates: str, criterion: str) -> Places:
    """The members at which gates sit; UnknownNameError for a placement that is not in :data:`PLACEMENTS`."""
    if gates not in PLACEMENTS:
        raise UnknownNameError(f"gates of {criterion}", gates, PLACEMENTS)
    return PLACEMENTS[gates]


@dataclass(frozen=True)
class Gates:
    """One gate a channel of ``coupling``, at one of the :data:`PLACEMENTS`, and the loss as a function of them.

    Args:
        criterion: who asks, for messages.
    """

    model: nn.Module
    coupling: Coupling
    placement: str
    criterion: str

    def __post_init__(self) -> None:
        placement_of(self.placement, self.criterion)

    def loss_gradient(self, batches: Batches, loss_fn: LossFn) -> dict[str, np.ndarray]:
        """dL/dc = sum of w dL/dw, with L the mean loss over all images, a number a channel of every group."""
        theta = self._multiplied()
        g = self._loss(batches, loss_fn).gradient(theta)
        return self._sums({name: theta[name] * g[name] for name in theta})

    def flow_gradient(self, batches: Batches, loss_fn: LossFn) -> dict[str, np.ndarray]:
        """dz/dc with z(c) = <ḡ, ∇L(θ; c)>: half the derivative of the gradient flow ‖∇L(θ; c)‖² at c = 1.

        θ are the weights of all convolutions and linear layers, and ḡ their gradient, a constant. As ∇L(θ; c) is
        c ⊙ ∇L at c ⊙ θ, dz/dc sums ḡ ⊙ ∇L + θ ⊙ (H ḡ) over the weights that a gate multiplies. Biases have a row
        of H, but are no part of the flow.
        """
        loss = self._loss(batches, loss_fn)
        weights = {name: weight.detach() for name, weight in prunable(self.model).items()}
        multiplied = self._multiplied()
        theta = {**weights, **multiplied}
        with Replaced(_TWICE_DIFFERENTIABLE):
            g = loss.gradient(weights)
            direction = {name: g.get(name, torch.zeros_like(value)) for name, value in theta.items()}
            curvature = loss.hessian_vector(theta, direction)
        return self._sums({n: direction[n].square() + w * curvature[n] for n, w in multiplied.items()})

    def _multiplied(self) -> dict[str, Tensor]:
        """The parameters that gates multiply, by name."""
        parameters = dict(self.model.named_parameters())
        found: dict[str, Tensor] = {}
        for group in self.coupling:
            for member in PLACEMENTS[self.placement](self.model, group):
                names = names_of(self.model, member)
                if names[0] not in parameters:
                    raise cannot_be_scored(names[0], group)
                found |= {name: parameters[name].detach() for name in names}
        return found

    def _sums(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
        return channel_sums(self.model, self.coupling, PLACEMENTS[self.placement], values)

    def _loss(self, batches: Batches, loss_fn: LossFn) -> MeanLoss:
        advice = "check the data and the initialisation of the network"
        if self.placement == "writes":
            advice += ", or set its option gates to reads if batch norm has not measured its running statistics yet"
        return MeanLoss(self.model, list(batches), loss_fn, self.criterion, self.placement == "reads", advice)
