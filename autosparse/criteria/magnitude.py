from torch import nn

from autosparse.criteria.base import Scores, criterion
from autosparse.layers import prunable


@criterion("magnitude", paper="Han et al. 2015, arXiv 1506.02626")
def magnitude(model: nn.Module) -> Scores:
    """Absolute value |w| of the current weights."""
    return {name: weight.detach().abs() for name, weight in prunable(model).items()}
