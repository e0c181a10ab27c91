from collections.abc import Mapping

from torch import Tensor, nn

from autosparse.channels.criteria.aggregate import aggregate as channels_of
from autosparse.channels.criteria.base import ChannelScores, channel_criterion
from autosparse.channels.groups import Coupling
from autosparse.criteria.autos import logits
from autosparse.errors import UnknownNameError
from autosparse.layers import layers_of, prunable
from autosparse.scorer.network import Scorer

_SCALES = ("survival", "logit")


@channel_criterion("autos", paper="Liu et al. 2024, arXiv 2408.14757 (AutoSparse), for channels")
def autos(
    model: nn.Module,
    coupling: Coupling,
    gradients: Mapping[str, Tensor],
    scorer: Scorer,
    *,
    aggregate: str = "sum",
    top_share: float = 0.1,
    with_readers: bool = False,
    scale: str = "survival",
) -> ChannelScores:
    """Survival in iterative rewind pruning, as a learned scorer predicts it for a channel's weights, added up.

    The scorer's outputs are logits, unbounded: their sigmoid is the predicted survival, the share in [0, 1] of the
    rounds that a weight outlives. For single weights only the order of the logits counts, but a mean of them is that
    of no survival: one weight at -20 pulls a channel down by more than ten at 1 lift it, though no weight can do worse
    than not survive. Survivals can be added. Their sum is what the network's survivors lose with the channel; the mean
    is what one of its weights survives on average, which empties layers whose weights count for little each.
    Validation images chose the sum: on ResNet-20 by more than 10 points, and in three of four places
    (docs/results.md).

    Args:
        aggregate: ``sum``, ``mean``, or ``top-share``: the mean of the best ones.
        top_share: the share of a channel's weights that ``top-share`` takes.
        with_readers: the weights that read the channel count too, not just those that compute it.
        scale: ``survival`` or ``logit``: what is aggregated.
    """
    if scale not in _SCALES:
        raise UnknownNameError("scale of autos", scale, _SCALES)
    found = logits(scorer, layers_of(model), prunable(model), gradients)
    scores = {name: score.double() for name, score in found.items()}
    if scale == "survival":
        scores = {name: score.sigmoid() for name, score in scores.items()}
    return channels_of(model, coupling, scores, aggregate, top_share=top_share, with_readers=with_readers)
