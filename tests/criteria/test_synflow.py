"""SynFlow: flow counted by hand, conserved by layers and neurons, kept connected by rounds, safe in deep networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from autosparse.budget import select
from autosparse.connectivity import is_connected
from autosparse.criteria import score
from autosparse.criteria.path_counting import check_float64
from autosparse.criteria.synflow import synaptic_saliency
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.layers import layers_of, prunable, total_weights
from autosparse.masks import Masks
from autosparse.models import seeded_model
from autosparse.seeding import generator

Net = Callable[..., nn.Module]


def fill(model: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def randomise(model: nn.Module, *, low: float = -1.0, high: float = 1.0) -> nn.Module:
    stream = generator(0, "tests")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(low + (high - low) * torch.rand(parameter.shape, generator=stream))
    return model


def batch(*shape: int) -> list[tuple[Tensor, Tensor]]:
    """Images whose values must not matter."""
    return [(torch.full((2, *shape), -7.0), torch.zeros(2, dtype=torch.long))]


def synflow(model: nn.Module, *shape: int, **options: object) -> dict[str, Tensor]:
    return score("synflow", model, batches=batch(*shape), options=options)


# ---------------------------------------------------------------------------------------------------- by hand


def test_two_two_one_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[1.0, -2.0], [-3.0, 4.0]]))
        model.get_parameter("2.weight").copy_(torch.tensor([[5.0, -6.0]]))
    # Hidden neurons carry |1| + |-2| = 3 and |-3| + |4| = 7, so R = 5 * 3 + 6 * 7 = 57.
    saliency = synaptic_saliency(model, torch.zeros(1, 2))
    assert saliency["0.weight"].tolist() == [[5.0, 10.0], [18.0, 24.0]]
    assert saliency["2.weight"].tolist() == [[15.0, 42.0]]
    scores = synflow(model, 2)
    torch.testing.assert_close(scores["0.weight"], torch.tensor([[5.0, 10.0], [18.0, 24.0]]).double() / 42)
    torch.testing.assert_close(scores["2.weight"], torch.tensor([[15.0, 42.0]]).double() / 42)


def test_biases_and_norm_statistics_enter_with_their_absolute_values() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0), nn.Flatten(), nn.Linear(1, 1))
    state = {"0.weight": -4.0, "0.bias": -2.0, "1.weight": -3.0, "1.bias": -5.0, "1.running_mean": -1.0}
    state |= {"1.running_var": 4.0, "3.weight": -7.0, "3.bias": -100.0}
    model.load_state_dict({key: torch.full_like(model.state_dict()[key], value) for key, value in state.items()}, False)
    # (4 + 2 - 1) / sqrt(4) * 3 + 5 = 12.5 reaches the classifier: S = 7 * 12.5, and 4 * 3 / 2 * 7 in front of it.
    saliency = synaptic_saliency(model, torch.zeros(1, 1, 1, 1))
    assert saliency["0.weight"].item() == pytest.approx(42.0)
    assert saliency["3.weight"].item() == pytest.approx(87.5)


# --------------------------------------------------------------------------------------------- counting paths


def test_with_weights_of_one_saliency_counts_paths_of_an_mlp(chain: Net) -> None:
    widths = (3, 4, 2, 5)
    saliency = synaptic_saliency(fill(chain(*widths), 1.0), torch.zeros(1, 3))
    paths = list(itertools.product(*(range(width) for width in widths)))
    for layer, values in enumerate(saliency.values()):
        for j, i in itertools.product(range(values.shape[0]), range(values.shape[1])):
            assert values[j, i].item() == sum(path[layer] == i and path[layer + 1] == j for path in paths)


def test_with_weights_of_one_saliency_counts_paths_of_a_convolutional_network() -> None:
    convs = (nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.Conv2d(3, 2, 2, stride=2, bias=False))
    model = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.Flatten(), nn.Linear(8, 1, bias=False))
    saliency = synaptic_saliency(fill(model, 1.0), torch.zeros(1, 2, 4, 4))
    expected = {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in prunable(model).items()}
    sides, taps = range(4), range(3)
    for c0, c1, c2 in itertools.product(range(2), range(3), range(2)):
        for y0, x0, a, b in itertools.product(sides, sides, taps, taps):
            y1, x1 = y0 + 1 - a, x0 + 1 - b  # where tap (a, b), padded by 1, sends the value at (y0, x0)
            if not (0 <= y1 < 4 and 0 <= x1 < 4):
                continue
            y2, x2, c, d = y1 // 2, x1 // 2, y1 % 2, x1 % 2  # windows of 2x2 do not overlap
            expected["0.weight"][c1, c0, a, b] += 1
            expected["2.weight"][c2, c1, c, d] += 1
            expected["4.weight"][0, c2 * 4 + y2 * 2 + x2] += 1
    assert all(torch.equal(saliency[name], expected[name]) for name in expected)


# ----------------------------------------------------------------------------------------------- conservation


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 3, padding=1, groups=1, bias=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 2, groups=4, bias=False),
        nn.Flatten(),
        nn.Linear(4, 3, bias=False),
    )


@pytest.mark.parametrize("kind", ["chain", "pooled"])
def test_every_layer_of_a_network_without_biases_sums_to_the_flow(kind: str, chain: Net) -> None:
    model, shape = (chain(6, 9, 2, 7, 3), (6,)) if kind == "chain" else (pooled(), (2, 8, 8))
    saliency = synaptic_saliency(randomise(model), torch.zeros(1, *shape))
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.abs_()
        flow = model(torch.ones(1, *shape, dtype=torch.float64)).sum().item()
    assert [values.sum().item() for values in saliency.values()] == pytest.approx([flow] * len(saliency), rel=1e-12)


def test_what_enters_a_neuron_leaves_it(chain: Net) -> None:
    saliency = synaptic_saliency(randomise(chain(4, 6, 5, 3)), torch.zeros(1, 4))
    for before, after in itertools.pairwise(saliency.values()):
        torch.testing.assert_close(before.sum(dim=1), after.sum(dim=0), rtol=1e-12, atol=0.0)


def test_scaling_a_layer_changes_no_order(chain: Net) -> None:
    model = randomise(chain(4, 6, 3))
    before = synflow(model, 4)
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(-64.0)
    after = synflow(model, 4)
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---------------------------------------------------------------------------------------------------- rounds


def in_rounds(criterion: str, model: nn.Module, keep: int, rounds: int, *shape: int) -> Masks:
    """Score, select, remove, and again, to ``d^(k/n)`` of the weights after round k of n."""
    layers, weights = layers_of(model), prunable(model)
    total = total_weights(layers)
    masks: Masks | None = None
    for k in range(1, rounds + 1):
        scores = score(criterion, model, batches=batch(*shape))
        count = keep if k == rounds else round(total * (keep / total) ** (k / rounds))
        masks = select(scores, layers, count, within=masks)
        masks.apply(model)
    assert masks is not None
    assert sum(int((weight != 0).sum()) for weight in weights.values()) == keep
    return masks


@pytest.mark.parametrize(("criterion", "rounds"), [("magnitude", 1), ("synflow", 1), ("synflow", 100)])
def test_only_rounds_keep_an_extremely_sparse_network_connected(criterion: str, rounds: int, chain: Net) -> None:
    # Widths differ, so that a small layer has large shares of flow and a large one small shares.
    model = chain(20, 100, 30, 100, 10)
    keep = 8  # a path needs 4 of the 9000 weights
    masks = in_rounds(criterion, model, keep, rounds, 20)
    connected = is_connected(model, masks, torch.zeros(1, 20))
    assert connected == all(bool(mask.any()) for mask in masks.values()) == (rounds > 1)


def test_a_removed_weight_scores_zero_and_the_rest_still_conserves(chain: Net) -> None:
    model = chain(5, 7, 4)
    with torch.no_grad():
        model.get_parameter("0.weight")[2] = 0.0
        model.get_parameter("2.weight")[1, 3] = 0.0
    scores = synflow(model, 5)
    assert not scores["0.weight"][2].any()
    assert not scores["2.weight"][:, 2].any()  # nothing arrives at the neuron
    assert scores["2.weight"][1, 3] == 0
    assert scores["0.weight"].sum().item() == pytest.approx(scores["2.weight"].sum().item())
    assert max(float(values.max()) for values in scores.values()) == 1.0


# -------------------------------------------------------------------------------------------------- deep nets


@pytest.mark.parametrize("gain", [4.0, 0.05])
def test_a_hundred_layers_keep_their_order_where_float32_fails(gain: float, chain: Net) -> None:
    model = chain(*[6] * 101)
    stream = generator(1, "tests")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(gain * (2 * torch.rand(6, 6, generator=stream) - 1))
    with pytest.raises(AutoSparseError, match=r"synflow .*(exceeds torch.float32|float32 too small)"):
        synflow(model, 6, dtype="float32")

    # The logarithm of every saliency, from products whose scale is taken out after each layer.
    weights = [weight.double().abs() for weight in model.state_dict().values()]
    arriving, leaving = [torch.ones(6).double()], [torch.ones(6).double()]
    log_arriving, log_leaving = [0.0], [0.0]
    for weight in weights:
        arriving.append(weight @ arriving[-1])
        log_arriving.append(log_arriving[-1] + math.log(arriving[-1].sum()))
        arriving[-1] = arriving[-1] / arriving[-1].sum()
    for weight in reversed(weights):
        leaving.insert(0, leaving[0] @ weight)
        log_leaving.insert(0, log_leaving[0] + math.log(leaving[0].sum()))
        leaving[0] = leaving[0] / leaving[0].sum()
    logs = torch.cat(
        [
            ((w * leaving[k + 1][:, None] * arriving[k]).log() + log_arriving[k] + log_leaving[k + 1]).flatten()
            for k, w in enumerate(weights)
        ]
    )

    scores = torch.cat([values.flatten() for values in synflow(model, 6).values()])
    assert scores.dtype is torch.float64
    torch.testing.assert_close(scores.log(), logs - logs.max(), rtol=0.0, atol=1e-9)
    assert bool((scores.float() > 0).all())  # nothing is lost where a consumer has float32 only
    assert bool((scores.float()[scores.argsort()].diff() >= 0).all())


def test_float64_has_limits_too(chain: Net) -> None:
    with pytest.raises(
        AutoSparseError, match=r"synflow of Sequential exceeds torch.float64: .*smaller initial weights"
    ):
        synflow(fill(chain(*[8] * 40), 1e9), 8)


# ------------------------------------------------------------------------------------------------ real networks


def test_clipping_activations_do_not_stop_the_flow() -> None:
    model = seeded_model("mobilenetv2", seed=0, num_classes=10, width=0.25)  # ReLU6 throughout, ten values above 6
    scores = synflow(model, 3, 16, 16)
    assert all(bool((values > 0).any()) for values in scores.values())


def test_a_clip_counts_as_a_rectifier() -> None:
    layers = (nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    clipped, rectified = (randomise(nn.Sequential(layers[0], act, layers[1])) for act in (nn.ReLU6(), nn.ReLU()))
    fill(layers[0], 50.0)
    for one, other in zip(synflow(clipped, 3).values(), synflow(rectified, 3).values(), strict=True):
        assert torch.equal(one, other)


def test_residual_networks_are_scored_and_left_alone() -> None:
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = synflow(model, 3, 16, 16)
    assert all(bool((values >= 0).all()) and bool((values > 0).any()) for values in scores.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.dtype is torch.float32 for parameter in model.parameters())
    assert model.training


def test_saliency_alone_leaves_the_model_alone_and_records_gradients_where_they_are_off(chain: Net) -> None:
    model = chain(3, 4, 2).train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        saliency = synaptic_saliency(model, torch.zeros(1, 3))
    assert all(bool(values.any()) and not values.requires_grad for values in saliency.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------ errors


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.linear(x), {}


def test_a_network_that_returns_no_tensor_is_named() -> None:
    with pytest.raises(AutoSparseError, match=r"^synflow needs .*one tensor, but Pair returns tuple: .*logits$"):
        synflow(Pair(), 3)


def test_a_network_without_flow_is_an_error(chain: Net) -> None:
    model = chain(3, 4, 2)
    fill(model.get_submodule("2"), 0.0)
    with pytest.raises(AutoSparseError, match=r"^synflow finds no path from input to output of Sequential: "):
        synflow(model, 3)


def test_an_unknown_dtype_is_an_error(chain: Net) -> None:
    with pytest.raises(UnknownNameError, match="dtype of synflow 'float46': did you mean float64"):
        synflow(chain(3, 2), 3, dtype="float46")


def test_a_device_without_float64_is_an_error() -> None:
    check_float64("synflow", torch.device("cpu"))
    with pytest.raises(AutoSparseError, match="synflow computes in float64, which mps lacks"):
        check_float64("synflow", torch.device("mps"))
