from torch import Tensor, nn

from autosparse.channels.criteria.base import ChannelScores, channel_criterion
from autosparse.channels.criteria.gates import placement_of
from autosparse.channels.criteria.slices import channel_sums
from autosparse.channels.groups import Coupling
from autosparse.criteria import synflow as of_weights
from autosparse.masks import Masks


def _applies(model: nn.Module, x: Tensor) -> None:
    of_weights.synaptic_saliency(model, x[:1])


@channel_criterion("synflow", paper="Tanaka et al. 2020, arXiv 2006.05467, for channels", check=_applies)
def synflow(model: nn.Module, coupling: Coupling, example: Tensor, *, gates: str = "reads") -> ChannelScores:
    """The flow R that passes through a channel: the sum of |w dR/dw| over the weights that read it.

    Relative to the largest flow through one weight, and computed in float64: R leaves the range of float32 in any deep
    network. R is that of the criterion for weights (:mod:`autosparse.criteria.synflow`).

    Args:
        gates: ``reads`` or ``writes``: whose weights are summed. Without biases both are the same number, for what
            flows into a channel leaves it. With biases, ``writes`` leaves out the flow that they add.
    """
    saliency = of_weights.synflow(model, example, Masks.dense(model))
    return channel_sums(model, coupling, placement_of(gates, "synflow"), saliency)
