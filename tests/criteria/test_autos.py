"""AutoS is the scorer of the features, layer by layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autosparse.criteria import mean_gradient, score
from autosparse.features import NetworkFeatures
from autosparse.layers import layers_of, prunable
from autosparse.scorer.network import Scorer
from autosparse.seeding import global_stream

Net = Callable[..., nn.Module]


@pytest.fixture
def scorer() -> Scorer:
    with global_stream(0, "scorer"):
        return Scorer("scale-free").eval()


def test_scores_are_the_scorers_logits(chain: Net, scorer: Scorer) -> None:
    model = chain(6, 5, 4)
    x, y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    found = score("autos", model, batches=[(x, y)], loss_fn=F.cross_entropy, scorer=scorer)
    gradients = mean_gradient(model, [(x, y)], F.cross_entropy)
    features = NetworkFeatures("scale-free", layers_of(model), prunable(model), gradients)
    for layer in layers_of(model):
        with torch.no_grad():
            expected = scorer(features.layer(layer).matrix()).reshape(layer.shape)
        assert torch.allclose(found[layer.name], expected, atol=1e-5)


def test_scores_do_not_depend_on_how_images_are_grouped(chain: Net, scorer: Scorer) -> None:
    x, y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    model = chain(6, 5, 4)
    whole, pieces = (
        score("autos", model, batches=batches, loss_fn=F.cross_entropy, scorer=scorer)
        for batches in ([(x, y)], [(x[:5], y[:5]), (x[5:], y[5:])])
    )
    assert all(torch.allclose(whole[name], pieces[name], atol=1e-4) for name in whole)
