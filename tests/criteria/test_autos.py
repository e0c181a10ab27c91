"""AutoS is the scorer of the features, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse import prune
from autosparse.budget import keep_count, select
from autosparse.criteria import mean_gradient, score
from autosparse.criteria.autos import logits
from autosparse.criteria.drawing import dealt
from autosparse.errors import AutoSparseError
from autosparse.features import NetworkFeatures, feature_set
from autosparse.layers import layers_of, prunable, total_weights
from autosparse.masks import Masks
from autosparse.models import seeded_model
from autosparse.scorer.network import Linear, Scorer
from autosparse.seeding import global_stream

Net = Callable[..., nn.Module]
#: What a search would need; scores of initial features do not look at it.
REST: dict[str, Any] = {"keep": 1, "generator": torch.Generator()}


@pytest.fixture
def scorer() -> Scorer:
    with global_stream(0, "scorer"):
        return Scorer("scale-free").eval()


def test_scores_are_the_scorers_logits(chain: Net, scorer: Scorer) -> None:
    model = chain(6, 5, 4)
    x, y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    found = score("autos", model, batches=[(x, y)], loss_fn=F.cross_entropy, scorer=scorer, **REST)
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
        score("autos", model, batches=batches, loss_fn=F.cross_entropy, scorer=scorer, **REST)
        for batches in ([(x, y)], [(x[:5], y[:5]), (x[5:], y[5:])])
    )
    assert all(torch.allclose(whole[name], pieces[name], atol=1e-4) for name in whole)


def linear_scorer(features: str, slopes: Mapping[str, float]) -> Scorer:
    """Logits are the sum of ``slopes`` times features of the set ``features``."""
    scorer = Scorer(features, "linear")
    with torch.no_grad():
        assert isinstance(scorer.network, Linear)
        scorer.network.first.weight.zero_()
        scorer.network.first.bias.zero_()
        for name, slope in slopes.items():
            scorer.network.first.weight[0, feature_set(features).names.index(name)] = slope
    return scorer.eval()


def state_scorer(**slopes: float) -> Scorer:
    return linear_scorer("state", slopes)


def images() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, 8, 8, generator=draw), torch.arange(8) % 10) for _ in range(3)]


def pruned_by(method: str, scorer: Scorer | None = None, **options: Any) -> dict[str, Tensor]:
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    settings = {"sparsity": 0.9, "method": method, "scorer": scorer, "options": options, "on_paths": False}
    return dict(prune(model, images(), **settings).masks)  # type: ignore[arg-type]


def test_a_scorer_that_knows_magnitude_only_guides_as_scout_does() -> None:
    guided = pruned_by("autos", state_scorer(**{"log|z|": 1.0}), steps=6, updates=3)
    plain = pruned_by("scout", steps=6, updates=3)
    # The same steps, draws and prunings: seeded by the criterion's name, of which this network has no use.
    assert all(torch.equal(guided[name], plain[name]) for name in plain)


def test_the_gradients_of_the_copy_play_their_part() -> None:
    without = pruned_by("autos", state_scorer(**{"log|z|": 1.0}), steps=6, updates=3)
    with_them = pruned_by("autos", state_scorer(**{"log|z|": 1.0, "log|h|": 1.0}), steps=6, updates=3)
    assert any(not torch.equal(without[name], with_them[name]) for name in without)


def test_a_scorer_can_compare_weights_within_their_layers() -> None:
    relative = pruned_by("autos", state_scorer(**{"log|z|": 1.0, "log weight scale / network's": -1.0}), steps=6)
    assert all(bool(mask.any()) for mask in relative.values())
    plain = pruned_by("autos", state_scorer(**{"log|z|": 1.0}), steps=6)
    spread = [max(map(share, masks.values())) / min(map(share, masks.values())) for masks in (relative, plain)]
    assert spread[0] < spread[1] / 2


def share(mask: Tensor) -> float:
    return (int(mask.sum()) + 1) / mask.numel()


def test_rounds_without_steps_see_what_is_left() -> None:
    scorer = state_scorer(**{"log|z|": 1.0, "log out share": 3.0})
    once, again = pruned_by("autos", scorer), pruned_by("autos", scorer, rounds=5)
    assert any(not torch.equal(once[name], again[name]) for name in once)

    def channels(masks: dict[str, Tensor]) -> int:
        return sum(int(mask.flatten(1).any(dim=1).sum()) for mask in masks.values())

    assert channels(again) < channels(once)  # full channels attract: the others empty


def test_a_scorer_of_initial_features_cannot_guide() -> None:
    with pytest.raises(AutoSparseError, match="cannot guide a training; leave steps out"):
        pruned_by("autos", Scorer("scale-free").eval(), steps=3)


@pytest.mark.parametrize(("option", "value"), [("memory", 1.0), ("steps", -1), ("until", 0.0), ("least", 1.5)])
def test_options_out_of_range_are_named(option: str, value: float) -> None:
    with pytest.raises(AutoSparseError, match=f"autos has {option} {value}: give"):
        pruned_by("autos", state_scorer(), **{"steps": 3, option: value})


def test_draws_without_noise_in_one_part_keep_the_highest_logits() -> None:
    scorer = state_scorer(**{"log|z|": 1.0, "log|h|": 0.5})
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    layers, gradients = layers_of(model), mean_gradient(model, images(), F.cross_entropy)
    expected = select(
        logits(scorer, layers, prunable(model), gradients), layers, keep_count(total_weights(layers), 0.9)
    )
    masks = pruned_by("autos", scorer, parts=1, noise=0.0)
    assert all(torch.equal(masks[name], expected[name]) for name in expected)


def test_each_part_sees_its_own_images_at_what_the_parts_before_have_left() -> None:
    scorer = state_scorer(**{"log|z|": 1.0, "log|h|": 1.0})
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    layers, total = layers_of(model), total_weights(layers_of(model))
    dense, masks = {name: weight.detach().clone() for name, weight in prunable(model).items()}, None
    for (x, y), share in zip(images(), (0.1 ** (1 / 3), 0.1 ** (2 / 3), 0.1), strict=True):
        gradients = mean_gradient(model, [(x, y)], F.cross_entropy)
        masks = select(
            logits(scorer, layers, prunable(model), gradients, masks or Masks.dense(model)),
            layers, round(share * total), within=masks,
        )  # fmt: skip
        for name, weight in prunable(model).items():
            weight.data.copy_(dense[name])
        masks.apply(model)
    found = pruned_by("autos", scorer, parts=3, noise=0.0)
    assert masks is not None
    assert all(torch.equal(found[name], masks[name]) for name in masks)


def test_draws_depend_on_the_seed_alone() -> None:
    def masks(seed: int) -> dict[str, Tensor]:
        model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
        return dict(prune(model, images(), sparsity=0.9, scorer=state_scorer(), seed=seed).masks)

    one, same, other = masks(1), masks(1), masks(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_weight_is_drawn_with_the_odds_that_the_scorer_gives_it() -> None:
    """With logits of one slope on log|z|, the first of two weights 3 and 1 is drawn with odds 3 to 1."""
    first, second = nn.Linear(2, 1, bias=False), nn.Linear(1, 2)
    model = nn.Sequential(first, second)
    x, y = torch.ones(8, 2), torch.arange(8) % 2
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[3.0, 1.0]]))
        second.weight.fill_(1e3)  # always drawn
    scorer = state_scorer(**{"log|z|": 1.0})
    ahead = 0
    for seed in range(400):
        draw = torch.Generator().manual_seed(seed)
        scores = score(
            "autos", model, batches=[(x, y)], loss_fn=F.cross_entropy, scorer=scorer, keep=3, generator=draw,
            options={"parts": 1},
        )  # fmt: skip
        row = scores["0.weight"][0]
        ahead += bool(row[0] > row[1])
    assert 260 <= ahead <= 340  # 300 expected, standard deviation 8.7


@pytest.mark.parametrize("way", [{"parts": 2, "noise": 0.0}, {"steps": 3, "updates": 2}], ids=["draws", "steps"])
def test_no_layer_that_all_must_pass_is_left_nearly_empty(way: dict[str, float]) -> None:
    """The scorer likes short rows, of one and of three weights: of 40 weights it keeps 28, and none of the middle's."""

    class Net(nn.Module):
        def __init__(self, shortcut: bool) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(1, 4), nn.Linear(4, 3), nn.Linear(3, 8)
            self.shortcut = shortcut

        def forward(self, x: Tensor) -> Tensor:
            middle = self.middle(self.first(x))
            return self.last(middle + x if self.shortcut else middle)

    def kept_in_the_middle(shortcut: bool, **options: float) -> int:
        scores = score(
            "autos", Net(shortcut), batches=[(torch.ones(16, 1), torch.arange(16) % 8)], loss_fn=F.cross_entropy,
            scorer=scorer, keep=28, generator=torch.Generator(), options={**way, **options},
        )  # fmt: skip
        return int(select(scores, layers_of(Net(shortcut)), 28)["middle.weight"].sum())

    scorer = linear_scorer("flow", {"log fan-in": -10.0})
    assert kept_in_the_middle(False, least=0.0) == 0
    assert kept_in_the_middle(False, least=0.25) == 2  # a quarter of 28 / 3
    assert kept_in_the_middle(False, least=1.0) == 3  # one for each output channel
    assert kept_in_the_middle(True, least=1.0) == 0  # there is a way around it


def test_parts_divide_the_images_evenly() -> None:
    batches = [(torch.arange(10.0)[:, None], torch.arange(10)), (torch.arange(10.0, 35)[:, None], torch.arange(10, 35))]
    portions = dealt(batches, 3)
    assert [sum(len(x) for x, _ in portion) for portion in portions] == [12, 11, 12]
    assert torch.cat([y for portion in portions for _, y in portion]).tolist() == list(range(35))
    assert torch.cat([x for portion in portions for x, _ in portion]).flatten().tolist() == list(range(35))
    assert len(dealt(batches, 100)) == 4  # eight images at least


@pytest.mark.parametrize(("option", "value"), [("parts", 0), ("noise", -1.0), ("least", 1.5)])
def test_options_of_draws_out_of_range_are_named(option: str, value: float) -> None:
    with pytest.raises(AutoSparseError, match=f"autos has {option} {value}: give"):
        pruned_by("autos", state_scorer(), **{option: value})


def test_draws_do_not_depend_on_the_memory_format_of_weights() -> None:
    masks = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
        scorer = state_scorer(**{"log|z|": 1.0})
        masks.append(prune(model, images(), sparsity=0.9, scorer=scorer, options={"parts": 3}).masks)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
