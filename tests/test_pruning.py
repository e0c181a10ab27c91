"""prune(): score, select, mask, and say what was done."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autosparse
from autosparse.budget import keep_count
from autosparse.criteria import score
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError, BudgetError, UnknownNameError
from autosparse.layers import prunable
from autosparse.masks import Masks
from autosparse.models import seeded_model
from autosparse.pruning import CollapseWarning, Pruned, prune, score_batches, scoring_stream
from autosparse.recipes import recipe_of
from autosparse.scorer.network import Scorer
from autosparse.seeding import global_stream
from autosparse.triggers.init import AtInit

Batch = tuple[Tensor, Tensor]
Net = Callable[..., nn.Module]
METHODS = [name for name in autosparse.list_methods() if isinstance(recipe_of(name).when, AtInit)]
#: Searches and rounds that are over sooner.
OPTIONS: dict[str, dict[str, int]] = {
    "cts": {"steps": 5, "warm_steps": 2},
    "autos-cts": {"steps": 5, "warm_steps": 2},
    "scout": {"steps": 5},
    "synflow": {"rounds": 20},
}


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    with global_stream(0, "scorer"):
        return Scorer("scale-free").eval()


def zeros_of(model: nn.Module) -> int:
    return sum(int((weight == 0).sum()) for weight in prunable(model).values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9, 0.98])
def test_the_count_is_exact(method: str, sparsity: float, scorer: Scorer, two_batches: list[Batch]) -> None:
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    total = sum(weight.numel() for weight in prunable(model).values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        pruned = prune(model, two_batches, sparsity=sparsity, method=method, options=OPTIONS.get(method), scorer=scorer)
    kept = keep_count(total, sparsity)
    assert pruned.model is model
    assert pruned.masks.kept == pruned.summary.kept == kept
    assert zeros_of(model) == total - kept
    assert pruned.summary.total == total
    assert pruned.summary.density == kept / total
    assert sum(layer.kept for layer in pruned.summary.layers) == kept
    for layer in pruned.summary.layers:
        assert layer.kept == int(pruned.masks[layer.name].sum())
        assert layer.density == layer.kept / layer.weights


def test_kept_weights_are_untouched_and_nothing_else_changes(conv_net: Net, two_batches: list[Batch]) -> None:
    model, reference = conv_net(), conv_net()
    pruned = prune(model, two_batches, sparsity=0.7, method="snip")
    for name, value in model.state_dict().items():
        expected = reference.state_dict()[name]
        assert torch.equal(value, expected.masked_fill(~pruned.masks[name], 0) if name in pruned.masks else expected)
    assert torch.equal(pruned.scores["stem.weight"], score_of("snip", reference, two_batches)["stem.weight"])


def score_of(name: str, model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    with scoring_stream(0):  # which units are dropped
        return score(name, model, batches=batches, loss_fn=F.cross_entropy)


def test_the_summary_names_the_choices_and_is_json(conv_net: Net, scorer: Scorer, two_batches: list[Batch]) -> None:
    summary = prune(conv_net(), two_batches, sparsity=0.5, scorer=scorer).summary
    facts = json.loads(json.dumps(summary.as_dict()))
    assert (facts["method"], facts["criterion"], facts["budget"]) == ("autos", "autos", "global")
    assert facts["scorer"] == "(given in Python)"
    assert facts["connected"] is True
    assert facts["warnings"] == []
    assert facts["layers"][2]["shape"] == [10, 8]
    random = prune(conv_net(), sparsity=0.5, method="random").summary
    assert (random.budget, random.scorer, random.connected) == ("erk", None, None)
    assert prune(conv_net(), sparsity=0.5, method="random", budget="uniform").summary.budget == "uniform"


def test_random_scores_follow_the_seed(conv_net: Net) -> None:
    first, again, other = (prune(conv_net(), sparsity=0.5, method="random", seed=seed).masks for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.filterwarnings("ignore::autosparse.CollapseWarning")
def test_what_a_network_draws_while_it_is_scored_follows_the_seed(conv_net: Net, two_batches: list[Batch]) -> None:
    def scores(seed: int) -> Tensor:
        torch.rand(3)  # whatever the caller has drawn before
        found = prune(conv_net(0), two_batches, sparsity=0.5, method="snip", seed=seed).scores
        return torch.cat([values.flatten() for values in found.values()])

    assert torch.equal(scores(0), scores(0))
    assert not torch.equal(scores(0), scores(1))  # other units are dropped


@pytest.mark.parametrize("method", ["snip", "autos"])
@pytest.mark.parametrize("data", [None, []])
def test_methods_that_look_at_images_need_data(
    method: str, data: list[Batch] | None, conv_net: Net, scorer: Scorer
) -> None:
    with pytest.raises(AutoSparseError, match=f"method '{method}' needs data"):
        prune(conv_net(), data, sparsity=0.5, method=method, options=OPTIONS.get(method), scorer=scorer)


@pytest.mark.parametrize("data", [None, []])
def test_staying_connected_needs_data(data: list[Batch] | None, conv_net: Net) -> None:
    with pytest.raises(AutoSparseError, match="'magnitude' with keep_connected needs data"):
        prune(conv_net(), data, sparsity=0.5, method="magnitude", keep_connected=True)


def test_a_model_without_prunable_weights_is_refused(two_batches: list[Batch]) -> None:
    with pytest.raises(AutoSparseError, match="BatchNorm2d has no prunable weights"):
        prune(nn.BatchNorm2d(3), two_batches, sparsity=0.5, method="magnitude")


def test_settings_out_of_range_are_refused(conv_net: Net) -> None:
    with pytest.raises(UnknownNameError, match="unknown method 'magnitud': did you mean magnitude"):
        prune(conv_net(), sparsity=0.5, method="magnitud")
    with pytest.raises(UnknownNameError, match="unknown budget"):
        prune(conv_net(), sparsity=0.5, method="magnitude", budget="even")
    with pytest.raises(BudgetError, match="outside"):
        prune(conv_net(), sparsity=98, method="magnitude")
    with pytest.raises(BudgetError, match="keeps none of 368 weights"):
        prune(conv_net(), sparsity=0.9999, method="magnitude")
    for floor in (-0.1, 1.5, float("nan")):
        with pytest.raises(AutoSparseError, match="min-layer-density"):
            prune(conv_net(), sparsity=0.5, method="magnitude", min_layer_density=floor)


def test_a_refused_call_leaves_the_model_as_it_was(conv_net: Net, two_batches: list[Batch]) -> None:
    model, reference = conv_net(), conv_net()
    with pytest.raises(BudgetError):
        prune(model, two_batches, sparsity=0.9, method="magnitude", min_layer_density=0.5)
    assert all(torch.equal(value, reference.state_dict()[name]) for name, value in model.state_dict().items())


def test_floors_keep_something_of_every_layer(two_batches: list[Batch]) -> None:
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    pruned = prune(model, two_batches, sparsity=0.9, method="snip", min_layer_density=0.05)
    assert pruned.summary.kept == round(0.1 * pruned.summary.total)
    assert all(layer.density >= 0.05 for layer in pruned.summary.layers)


def faint_end(chain: Net) -> nn.Module:
    """A chain whose last layer has the smallest weights: magnitude removes it first."""
    model = chain(4, 4, 4)
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(1e-6)
    return model


def test_an_emptied_layer_is_warned_of_by_name(chain: Net) -> None:
    batches = [(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))]
    with pytest.warns(CollapseWarning) as caught:
        pruned = prune(faint_end(chain), batches, sparsity=0.5, method="magnitude")
    messages = [str(entry.message) for entry in caught]
    assert messages == list(pruned.summary.warnings)
    assert messages[0].startswith("1 of 2 layers have no weight left: 2.weight;")
    assert messages[1].startswith("the output no longer depends on the input")
    assert pruned.summary.connected is False
    with pytest.warns(CollapseWarning, match=r"2\.weight") as caught:
        blind = prune(faint_end(chain), sparsity=0.5, method="magnitude")
    assert len(caught) == 1
    assert blind.summary.connected is None  # without an input nobody knows


@pytest.mark.filterwarnings("error")
def test_keep_connected_repairs_a_collapse_with_the_same_count(chain: Net) -> None:
    batches = [(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))]
    pruned = prune(faint_end(chain), batches, sparsity=0.5, method="magnitude", keep_connected=True)
    assert pruned.summary.connected is True
    assert [layer.kept for layer in pruned.summary.layers] == [15, 1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", METHODS)
def test_keep_connected_holds_the_count_at_high_sparsity(method: str, scorer: Scorer, two_batches: list[Batch]) -> None:
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    pruned = prune(
        model,
        two_batches,
        sparsity=0.998,
        method=method,
        options=OPTIONS.get(method),
        scorer=scorer,
        keep_connected=True,
    )
    assert pruned.summary.connected is True
    assert pruned.summary.kept == round(0.002 * pruned.summary.total)
    assert all(layer.kept >= 1 for layer in pruned.summary.layers)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_patterns_and_sanity_checks(
    method: str, scorer: Scorer, two_batches: list[Batch], conv_net: Net
) -> None:
    given: dict[str, Any] = {"method": method, "options": OPTIONS.get(method), "scorer": scorer}
    pattern = prune(conv_net(), two_batches, granularity="2:4", **given)
    assert (pattern.masks["classifier.weight"].reshape(10, 2, 4).sum(dim=2) == 2).all()
    assert pattern.summary.kept == 216 + 72 + 40  # stem and depthwise layer have no four input channels
    plain, shuffled, inverted = (
        prune(conv_net(), two_batches, sparsity=0.8, sanity=sanity, **given) for sanity in (None, "shuffle", "invert")
    )
    assert shuffled.masks.layer_densities() == plain.masks.layer_densities()
    assert any(not torch.equal(shuffled.masks[name], plain.masks[name]) for name in plain.masks)
    assert inverted.masks.kept == plain.masks.kept == 74
    assert any(not torch.equal(inverted.masks[name], plain.masks[name]) for name in plain.masks)


def test_too_few_weights_to_stay_connected_are_refused(two_batches: list[Batch]) -> None:
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    with pytest.raises(BudgetError, match="connected needs 22 weights, but only 17 are kept"):
        prune(model, two_batches, sparsity=0.999, method="magnitude", keep_connected=True)


class Single(nn.Module):
    """A model that refuses float64."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("float32 only")
        return self.layer(x)


def test_a_model_that_cannot_be_checked_is_said_to_be_unchecked() -> None:
    batches = [(torch.ones(2, 2), torch.zeros(2, dtype=torch.int64))]
    with pytest.warns(CollapseWarning, match="could not check .* float32 only"):
        pruned = prune(Single(), batches, sparsity=0.5, method="snip")
    assert pruned.summary.connected is None
    with pytest.raises(AutoSparseError, match=r"cannot keep Single connected.*float32 only"):
        prune(Single(), batches, sparsity=0.5, method="snip", keep_connected=True)


def test_any_iterable_will_do_and_only_num_batches_are_taken(conv_net: Net, two_batches: list[Batch]) -> None:
    taken = []

    def stream() -> Iterator[Batch]:
        for index in range(5):
            taken.append(index)
            yield two_batches[0] if index < 2 else (torch.full((1, 3, 8, 8), float("nan")), torch.tensor([0]))

    found = prune(conv_net(), stream(), sparsity=0.5, method="snip", num_batches=2).scores
    assert taken == [0, 1]
    expected = score_of("snip", conv_net(), two_batches[:1] * 2)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with pytest.raises(AutoSparseError, match="the loss is nan"):
        prune(conv_net(), stream(), sparsity=0.5, method="snip", num_batches=None)


def test_a_data_loader_will_do(chain: Net) -> None:
    rng = torch.Generator().manual_seed(0)
    rows = torch.utils.data.TensorDataset(torch.randn(10, 4, generator=rng), torch.arange(10) % 3)
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    found = prune(chain(4, 5, 3), loader, sparsity=0.5, method="snip")
    whole = [(rows.tensors[0], rows.tensors[1])]
    expected = score_of("snip", chain(4, 5, 3), whole)
    assert all(torch.allclose(found.scores[name], value, atol=1e-7) for name, value in expected.items())


def test_a_loss_of_ones_own(chain: Net) -> None:
    model = chain(2, 1)
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[1.0, -3.0]]))
    # Mean squared error of y = w . x at x = (2, 1), target 0: dL/dw = 2 * (-1) * x.
    batches = [(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0]]))]
    pruned = prune(model, batches, sparsity=0.5, method="snip", loss_fn=F.mse_loss)
    assert pruned.scores["0.weight"].tolist() == [[4, 6]]
    assert model.get_parameter("0.weight").tolist() == [[0, -3]]


def test_masks_are_held_and_saved(conv_net: Net, tmp_path: Path, two_batches: list[Batch]) -> None:
    model = conv_net()
    pruned = prune(model, two_batches, sparsity=0.8, method="snip")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    pruned.hold(optimizer)
    before = zeros_of(model)
    for x, y in two_batches:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert zeros_of(model) == before == 368 - pruned.summary.kept
    pruned.save(str(tmp_path / "m.safetensors"))
    found = Masks.load(tmp_path / "m.safetensors")
    assert all(torch.equal(found[name], pruned.masks[name]) for name in found)


def test_score_batches_are_training_images_in_a_fixed_order(tiny_data: ImageData) -> None:
    first, again, other = (score_batches(tiny_data, seed=seed, images=200) for seed in (0, 0, 1))
    assert [len(x) for x, _ in first] == [128, 72]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


def test_the_public_names_exist() -> None:
    assert all(hasattr(autosparse, name) for name in autosparse.__all__)
    assert autosparse.Pruned is Pruned
    assert {"autos", "magnitude", "random", "snip"} <= set(METHODS)


@pytest.mark.parametrize(("options", "scorer"), [({}, "cifar10-digits"), ({"steps": 2}, "guide")])
def test_steps_are_guided_by_a_scorer_of_their_own(options: dict[str, int], scorer: str) -> None:
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert prune(model, [(images, torch.arange(16) % 10)], sparsity=0.9, options=options).summary.scorer == scorer
