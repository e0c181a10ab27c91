from collections.abc import Mapping

from torch import Tensor, nn

from autosparse.criteria.base import Scores, criterion
from autosparse.layers import prunable


@criterion("snip", paper="Lee et al. 2019, arXiv 1810.02340")
def snip(model: nn.Module, gradients: Mapping[str, Tensor]) -> Scores:
    """Connection sensitivity |w * dL/dw| at the current weights.

    Scores are not normalised: a global threshold compares them across layers.
    """
    return {name: (weight.detach() * gradients[name]).abs() for name, weight in prunable(model).items()}
