import numpy as np
from torch import nn

from autosparse.channels.criteria.base import ChannelScores, channel_criterion
from autosparse.channels.criteria.gates import Gates
from autosparse.channels.groups import Coupling
from autosparse.criteria.gradients import Batches, LossFn


@channel_criterion("snip", paper="Lee et al. 2019, arXiv 1810.02340; van Amersfoort et al. 2020, arXiv 2007.00389")
def snip(
    model: nn.Module, coupling: Coupling, batches: Batches, loss_fn: LossFn, *, gates: str = "reads"
) -> ChannelScores:
    """Sensitivity |dL/dc| of the loss to a gate c = 1 that multiplies the channel.

    Scores are not normalised: a global threshold compares them across groups.

    Args:
        gates: ``reads`` multiplies what is read of the channel. ``writes`` multiplies what is written to it, in front
            of any norm; batch norm then uses its running statistics, for it undoes such a gate otherwise.
    """
    gradient = Gates(model, coupling, gates, "snip").loss_gradient(batches, loss_fn)
    return {group: np.abs(derivative) for group, derivative in gradient.items()}
