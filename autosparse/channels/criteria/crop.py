import numpy as np
from torch import nn

from autosparse.channels.criteria.base import ChannelScores, channel_criterion
from autosparse.channels.criteria.gates import Gates, check_flow
from autosparse.channels.groups import Coupling
from autosparse.criteria.gradients import Batches, LossFn


@channel_criterion("crop", paper="Rachwan et al. 2022, arXiv 2206.10451 (CroP-S)", check=check_flow)
def crop(
    model: nn.Module, coupling: Coupling, batches: Batches, loss_fn: LossFn, *, gates: str = "writes"
) -> ChannelScores:
    """Conservative gradient flow |dz/dc|: how much removing a channel changes the gradient flow, up or down.

    z(c) = <ḡ, ∇L(θ; c)> with gates c = 1, the weights θ, and their gradient ḡ as a constant. Gradients are means over
    all images, where the authors add up their batches: a common factor, which no selection sees. The authors gate
    every layer for itself and tie no more than the widths of the layers that are added up; here all that write a
    channel share its gate.

    Args:
        gates: ``writes`` multiplies what is written to the channel, in front of any norm, and batch norm uses its
            running statistics, as in the authors' code. These are what training measured when the pruning waits for it
            (EarlyCroP), but 0 and 1 at initialisation, where a deep network then saturates the softmax. ``reads``
            multiplies what is read of the channel, and batch norm normalises by the batch.
    """
    gradient = Gates(model, coupling, gates, "crop").flow_gradient(batches, loss_fn)
    return {group: np.abs(derivative) for group, derivative in gradient.items()}
