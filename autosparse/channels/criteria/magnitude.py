from torch import nn

from autosparse.channels.criteria.aggregate import aggregate as channels_of
from autosparse.channels.criteria.base import ChannelScores, channel_criterion
from autosparse.channels.groups import Coupling
from autosparse.criteria.magnitude import magnitude as of_weights


@channel_criterion("magnitude", paper="Han et al. 2015, arXiv 1506.02626, for channels")
def magnitude(
    model: nn.Module,
    coupling: Coupling,
    *,
    aggregate: str = "mean",
    top_share: float = 0.1,
    with_readers: bool = False,
) -> ChannelScores:
    """Absolute values |w| of a channel's weights, by default their mean over all layers that compute it.

    A global threshold on single weights leaves layers of small weights few of them; so does this one with channels.
    The criteria l1 and l2 compare the norms of filters instead, relative to those of their group.

    Args:
        aggregate: ``mean``, ``sum``, or ``top-share``: the mean of the largest ones.
        top_share: the share of a channel's weights that ``top-share`` takes.
        with_readers: the weights that read the channel count too.
    """
    scores = of_weights(model)
    return channels_of(model, coupling, scores, aggregate, top_share=top_share, with_readers=with_readers)
