import torch
from torch import nn

from autosparse.criteria.base import Scores, criterion
from autosparse.layers import prunable


@criterion("random")
def random(model: nn.Module, generator: torch.Generator) -> Scores:
    """Uniform random numbers: a budget with this criterion tests the layer densities alone."""
    # Drawn on the CPU so that one seed gives one mask on every device.
    return {
        name: torch.rand(weight.shape, generator=generator).to(weight.device)
        for name, weight in prunable(model).items()
    }
