import torch

from autosparse.channels.criteria.base import ChannelScores, channel_criterion
from autosparse.channels.criteria.slices import float64
from autosparse.channels.groups import Coupling


@channel_criterion("random")
def random(coupling: Coupling, generator: torch.Generator) -> ChannelScores:
    """Uniform random numbers: what the widths alone are worth."""
    return {
        group.name: float64(torch.rand(group.width, generator=generator, dtype=torch.float64)) for group in coupling
    }
