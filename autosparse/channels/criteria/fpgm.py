import numpy as np
import torch
from torch import nn

from autosparse.channels.criteria.base import ChannelScores, channel_criterion
from autosparse.channels.criteria.filter_norms import normalised
from autosparse.channels.criteria.slices import filters, float64, slices, weight_of
from autosparse.channels.groups import Coupling


@channel_criterion("fpgm", paper="He et al. 2019, arXiv 1811.00250")
def fpgm(model: nn.Module, coupling: Coupling, *, normalise: str = "mean") -> ChannelScores:
    """Distance to the other filters, sum over j of ‖F_i - F_j‖₂: what lies near their geometric median goes first.

    Such a filter can be replaced by the others. Distances of layers that share the channel are added up.

    Args:
        normalise: what the sums of a group are divided by: ``mean``, its mean, ``max``, its largest, or ``none``. By
            default groups lose channels by their shape, not their scale; the paper takes the same share of each layer.
    """
    distances = {group.name: np.zeros(group.width) for group in coupling}
    for group in coupling:
        for member in filters(model, group):
            rows = slices(model, member, weight_of(model, member))
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            rows = rows - rows.mean(0)  # distances stay, and lose less to rounding
            distances[group.name] += float64(torch.cdist(rows, rows).sum(1, dtype=torch.float64))
    return normalised(distances, normalise, "fpgm")
