"""Scorer networks: from features to predicted survival."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.features import LayerFeatures, feature_set
from autosparse.registry import Registry

#: Weights scored at once: few enough for the hidden activations to stay in a processor's cache, many enough that its
#: threads seldom wait for each other.
CHUNK = 32_768

NETWORKS: Registry[Callable[[int], nn.Module]] = Registry("scorer network")


class Linear(nn.Module):
    """A weighted sum of the features: ``[n, features]`` to logits ``[n]``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.sum = nn.Linear(features, 1)

    @property
    def first(self) -> nn.Linear:
        return self.sum

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.sum(x))

    def tail(self, first: Tensor) -> Tensor:
        return first.squeeze(1)


class MLP(nn.Module):
    """Two hidden layers of 32 units with ReLU: ``[n, features]`` to logits ``[n]``."""

    def __init__(self, features: int, hidden: int = 32) -> None:
        super().__init__()
        self.input = nn.Linear(features, hidden)
        self.hidden = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, 1)

    @property
    def first(self) -> nn.Linear:
        return self.input

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.input(x))

    def tail(self, first: Tensor) -> Tensor:
        """Logits ``[n]`` from the first layer's pre-activations ``[n, hidden]``, which are overwritten."""
        hidden = torch.relu_(self.hidden(torch.relu_(first)))
        return self.output(hidden).squeeze(1)


class PublishedCNN(nn.Module):
    """The published scorer: an MLP features-64-3072, reshaped to a 3x32x32 image, and a ResNet-18 with one output.

    Kept for comparison (arXiv 2408.14757, released code); 0.555 GMAC a weight.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        from autosparse.models import create_model

        self.embed = nn.Sequential(nn.Linear(features, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 3072))
        self.image_network = create_model("resnet18", num_classes=1)

    @property
    def first(self) -> nn.Linear:
        layer = self.embed[0]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return self.image_network(self.embed(x).reshape(-1, 3, 32, 32)).squeeze(1)


NETWORKS.add("linear", Linear)
NETWORKS.add("mlp", MLP)
NETWORKS.add("cnn", PublishedCNN)


class Scorer(nn.Module):
    """A network over normalised features whose sigmoid is the predicted survival in [0, 1].

    Args:
        features: name of the feature set (``paper``, ``scale-free`` or ``state``).
        network: name of the network (``linear``, ``mlp`` or ``cnn``).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: str, network: str = "mlp") -> None:
        super().__init__()
        self.feature_set = features
        self.network_name = network
        columns = len(feature_set(features).names)
        self.network = NETWORKS.get(network)(columns)
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.ones(columns))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n]`` of raw features ``[n, columns]``."""
        return self.network((x - self.mean) / self.std)

    @torch.no_grad()
    def holding(self, column: int, value: float) -> Scorer:
        """A copy that takes feature ``column`` (an index of the feature set's names) for ``value``, whatever it is."""
        held = copy.deepcopy(self)
        first = held.network.first
        assert isinstance(first, nn.Linear)
        by_feature = first.weight[:, column].clone()
        first.bias.add_(by_feature * ((value - self.mean[column]) / self.std[column]))
        first.weight[:, column] = 0.0
        return held

    @torch.no_grad()
    def score(self, features: LayerFeatures) -> Tensor:
        """Logits of one layer's weights, in the layer's shape and on the device of its weights.

        Evaluates in chunks of output channels; the default network's normalisation and layer-level features are folded
        into its first layer's bias and weights.
        """
        if not len(features.weight):
            return features.weight.new_empty(features.shape)
        training = self.training
        self.eval()
        self.to(features.weight.device)
        try:
            if isinstance(self.network, MLP | Linear):
                return self._score_folded(features, self.network)
            rows = max(1, 256 // (features.weight.shape[1] * features.weight.shape[2]))
            chunks = [
                torch.cat(
                    [self(part) for part in features.matrix(start, min(start + rows, len(features.weight))).split(256)]
                )
                for start in range(0, len(features.weight), rows)
            ]
            return torch.cat(chunks).reshape(features.shape)
        finally:
            self.train(training)

    def _score_folded(self, features: LayerFeatures, network: MLP | Linear) -> Tensor:
        matrix = network.first.weight / self.std  # normalisation folded into the first layer
        inside, by_layer = matrix.tensor_split([matrix.shape[1] - len(features.layer)], dim=1)
        bias = network.first.bias - matrix @ self.mean + by_layer @ features.layer
        channels, inputs, taps = features.weight.shape
        scores = features.weight.new_empty(channels, inputs * taps)
        rows = max(1, CHUNK // (inputs * taps))
        for start in range(0, channels, rows):
            stop = min(start + rows, channels)
            columns = features.columns(start, stop).flatten(1)  # [features, n]
            scores[start:stop] = network.tail(F.linear(columns.T, inside, bias)).view(stop - start, -1)
        return scores.reshape(features.shape)
