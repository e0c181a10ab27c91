from collections.abc import Mapping

from torch import Tensor, nn

from autosparse.criteria.base import Scores, criterion
from autosparse.features import NetworkFeatures
from autosparse.layers import layers_of, prunable
from autosparse.scorer.network import Scorer


@criterion("autos", paper="Liu et al. 2024, arXiv 2408.14757 (AutoSparse)")
def autos(model: nn.Module, gradients: Mapping[str, Tensor], scorer: Scorer) -> Scores:
    """Survival in iterative rewind pruning, as a learned scorer predicts it.

    The scorer sees a weight's initial features. Scores are its logits: the order of the predicted survivals, without
    the ties that a float32 sigmoid makes near 1.
    """
    layers = layers_of(model)
    features = NetworkFeatures(scorer.feature_set, layers, prunable(model), gradients)
    return {layer.name: scorer.score(features.layer(layer)).to(gradients[layer.name].device) for layer in layers}
