import numpy as np
from torch import nn

from autosparse.channels.criteria.base import ChannelScores, channel_criterion
from autosparse.channels.criteria.gates import Gates
from autosparse.channels.groups import Coupling
from autosparse.criteria.gradients import Batches, LossFn
from autosparse.errors import AutoSparseError


@channel_criterion("taylor", paper="Molchanov et al. 2019, arXiv 1906.10771")
def taylor(
    model: nn.Module, coupling: Coupling, batches: Batches, loss_fn: LossFn, *, gates: str = "reads"
) -> ChannelScores:
    """The squared change of the loss without the channel, to first order: (sum of w dL/dw)², a mean over minibatches.

    The square of each minibatch is taken before the mean, as in the paper, so that the noise of gradients counts and
    scores depend on how images are grouped: give minibatches of the size that training uses. A minibatch counts by its
    number of images. It is the gradient importance of EPI (arXiv 2110.12007).

    Args:
        gates: the weights w of the sum. With ``reads`` those that read the channel; behind batch norm and ReLU that
            equals the paper's sum γ dL/dγ + β dL/dβ over the norm. ``writes`` takes those that write the channel, with
            their biases; batch norm then uses its running statistics, for in training it makes this sum zero.

    Raises:
        AutoSparseError: there is no batch.
    """
    placed = Gates(model, coupling, gates, "taylor")
    scores = {group.name: np.zeros(group.width) for group in coupling}
    images = 0
    for x, y in batches:
        for name, derivative in placed.loss_gradient([(x, y)], loss_fn).items():
            scores[name] += len(x) * derivative**2
        images += len(x)
    if not images:
        raise AutoSparseError("no batch of images was given: pass data=, any iterable of (images, labels) batches")
    return {name: total / images for name, total in scores.items()}
