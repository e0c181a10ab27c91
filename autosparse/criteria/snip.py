from torch import nn

from autosparse.criteria.base import Scores, criterion
from autosparse.criteria.gradients import Batches, LossFn, mean_gradient
from autosparse.layers import prunable


@criterion("snip", paper="Lee et al. 2019, arXiv 1810.02340")
def snip(model: nn.Module, batches: Batches, loss_fn: LossFn) -> Scores:
    """Connection sensitivity |w * dL/dw| at the current weights.

    Scores are not normalised: a global threshold compares them across layers.
    """
    gradients = mean_gradient(model, batches, loss_fn)
    return {name: (weight.detach() * gradients[name]).abs() for name, weight in prunable(model).items()}
