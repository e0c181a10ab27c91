"""Is the output of a pruned network still joined to its input, and how few weights are forced to keep it so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autosparse.budget import select
from autosparse.connectivity import connecting_weights, is_connected, passing_by, responds
from autosparse.criteria import score
from autosparse.layers import layers_of, total_weights
from autosparse.masks import Masks
from autosparse.models import seeded_model

Net = Callable[..., nn.Module]
X = torch.zeros(5, 2)


def masks_of(*entries: list[list[int]]) -> Masks:
    """Masks of a chain of linear layers; the layers of ``nn.Sequential`` with ReLU between are 0, 2, 4, ..."""
    return Masks({f"{2 * i}.weight": torch.tensor(rows, dtype=torch.bool) for i, rows in enumerate(entries)})


@pytest.mark.parametrize(
    ("first", "second", "connected"),
    [
        ([[1, 1], [1, 1]], [[1, 1], [1, 1]], True),
        ([[1, 0], [0, 0]], [[1, 0], [0, 0]], True),
        ([[1, 0], [0, 0]], [[0, 1], [0, 0]], False),  # unit 0 receives, unit 1 sends
        ([[0, 0], [1, 1]], [[1, 0], [1, 0]], False),
        ([[0, 0], [0, 1]], [[0, 0], [0, 1]], True),
        ([[0, 0], [0, 0]], [[1, 1], [1, 1]], False),
        ([[1, 1], [1, 1]], [[0, 0], [0, 0]], False),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_a_chain_is_connected_when_its_units_meet(
    first: list[list[int]], second: list[list[int]], connected: bool, bias: bool, chain: Net
) -> None:
    assert is_connected(chain(2, 2, 2, bias=bias), masks_of(first, second), X) is connected


def test_neither_weights_nor_inputs_matter(chain: Net) -> None:
    model = chain(2, 2, 2)
    masks = masks_of([[1, 0], [0, 0]], [[1, 0], [0, 0]])
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(-1)  # with these every ReLU would be off
    assert is_connected(model, masks, torch.full((3, 2), float("nan")))


class Residual(nn.Module):
    """y = head(x + branch(x)): the branch may be cut without cutting the network."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + torch.relu(self.branch(x)))


def test_a_shortcut_keeps_a_network_connected() -> None:
    some, none = torch.eye(2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)
    assert is_connected(Residual(), {"branch.weight": none, "head.weight": some}, X)
    assert not is_connected(Residual(), {"branch.weight": some, "head.weight": none}, X)


class Bounded(nn.Module):
    """Residual blocks, each of which can double the signal, and an activation that lets nothing above 6 through."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = nn.functional.relu6(x + block(x))
        return x


def test_bounded_activations_do_not_hide_a_connection() -> None:
    assert is_connected(Bounded(), Masks.dense(Bounded()), X)


def test_a_misaligned_depthwise_channel_cuts_a_convolutional_network(conv_net: Net) -> None:
    model = conv_net()
    masks = {name: torch.zeros_like(mask) for name, mask in Masks.dense(model).items()}
    masks["stem.weight"][2, 0, 1, 1] = True
    masks["classifier.weight"][4, 2] = True
    masks["depthwise.weight"][3, 0, 1, 1] = True
    images = torch.zeros(1, 3, 8, 8)
    assert not is_connected(model, masks, images)
    masks["depthwise.weight"][2, 0, 1, 1] = True
    assert is_connected(model, masks, images)


def test_connecting_weights_form_one_path_along_the_kept_weights(chain: Net) -> None:
    model = chain(2, 2, 2, 2, 1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.abs_()  # negative weights would be avoided
    # Kept weights lead from input 1 over unit 0 to unit 1; the last two layers have lost everything.
    masks = masks_of([[0, 1], [0, 0]], [[0, 0], [1, 0]], [[0, 0], [0, 0]], [[0, 0]])
    scores = {name: torch.tensor([[0.0, 1.0], [0.0, 1.0]][: len(mask)]) for name, mask in masks.items()}
    forced = connecting_weights(model, masks, scores, X)
    assert forced["0.weight"].tolist() == [[False, True], [False, False]]
    assert forced["2.weight"].tolist() == [[False, False], [True, False]]
    # From there on single weights return, one a layer; of equally long ways the one with the better last score.
    assert forced["4.weight"].tolist() == [[False, False], [False, True]]
    assert forced["6.weight"].tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("name", "width", "sparsity"),
    [("resnet20", 0.25, 0.999), ("vgg11", 0.125, 0.999), ("vgg11", 0.125, None), ("mobilenetv2", 0.25, 0.999)],
)
def test_forcing_the_path_connects_with_an_exact_count(name: str, width: float, sparsity: float | None) -> None:
    model = seeded_model(name, seed=0, num_classes=10, width=width)
    layers = layers_of(model)
    total = total_weights(layers)
    # At 99.9 % some networks have fewer weights than layers; then one a layer is the least that can be asked for.
    keep = len(layers) if sparsity is None else max(len(layers), round((1 - sparsity) * total))
    scores = score("magnitude", model)
    masks = select(scores, layers, keep)
    images = torch.zeros(2, 3, 32, 32)
    assert not all(mask.any() for mask in masks.values())
    forced = connecting_weights(model, masks, scores, images)
    assert [int(mask.sum()) for mask in forced.values()] == [1] * len(layers)
    connected = select(scores, layers, keep, forced=forced)
    assert connected.kept == keep
    assert all(bool(mask.any()) for mask in connected.values())
    assert is_connected(model, connected, images)


def test_a_collapsed_network_is_reported() -> None:
    model = seeded_model("vgg11", seed=0, num_classes=10, width=0.125)
    masks = select(score("magnitude", model), layers_of(model), 20)
    assert not is_connected(model, masks, torch.zeros(1, 3, 32, 32))


def test_masks_in_channels_last_order_are_accepted(conv_net: Net) -> None:
    model = conv_net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    masks, scores = Masks.dense(model), score("magnitude", model)
    forced = connecting_weights(model, masks, scores, torch.zeros(1, 3, 8, 8))
    assert is_connected(model, forced, torch.zeros(1, 3, 8, 8))


def test_the_model_is_left_as_it_was(conv_net: Net) -> None:
    model = conv_net()
    model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    masks, images = Masks.dense(model), torch.zeros(1, 3, 8, 8)
    assert is_connected(model, masks, images)
    connecting_weights(model, masks, score("magnitude", model), images)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


class Rectified(nn.Module):
    """Two linear layers with ReLUs after both: a negative weight alone passes nothing."""

    def __init__(self, first: list[list[float]], second: list[list[float]]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor(first))
            self.second.weight.copy_(torch.tensor(second))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()).relu()


IMAGES = torch.tensor([[1.0, 2.0], [3.0, 1.0], [2.0, 5.0]])


def test_a_path_of_negative_weights_is_connected_but_does_not_respond() -> None:
    model = Rectified([[-1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]])
    masks = {"first.weight": torch.tensor([[True, False], [False, False]]), "second.weight": torch.ones(2, 2).bool()}
    assert is_connected(model, masks, IMAGES)
    assert not responds(model, masks, IMAGES)
    assert responds(model, {**masks, "first.weight": torch.tensor([[True, True], [False, False]])}, IMAGES)


def test_nothing_is_said_of_a_network_that_never_responds() -> None:
    silent = Rectified([[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]])
    nothing = {"first.weight": torch.zeros(2, 2).bool(), "second.weight": torch.zeros(2, 2).bool()}
    assert responds(silent, nothing, IMAGES)
    loud = Rectified([[1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]])
    assert not responds(loud, nothing, IMAGES)
    assert responds(loud, nothing, IMAGES[:1])


def test_connecting_weights_are_positive_where_they_can_be() -> None:
    model = Rectified([[-1.0, 1.0], [-1.0, -1.0]], [[-1.0, -1.0], [1.0, -1.0]])
    none = {"first.weight": torch.zeros(2, 2).bool(), "second.weight": torch.zeros(2, 2).bool()}
    scores = {name: torch.arange(4.0).reshape(2, 2) for name in none}
    forced = connecting_weights(model, none, scores, IMAGES)
    assert forced["first.weight"].tolist() == [[False, True], [False, False]]
    assert forced["second.weight"].tolist() == [[False, False], [True, False]]
    assert responds(model, forced, IMAGES)


def test_nothing_passes_by_a_layer_of_a_chain_and_half_by_a_residual_branch(chain: Net) -> None:
    assert passing_by(chain(2, 3, 2), X) == {"0.weight": 0.0, "2.weight": 0.0}
    residual = Residual()
    state = {name: value.clone() for name, value in residual.state_dict().items()}
    # Units that average: the branch adds the inputs' mean to each, as much as they are together.
    assert passing_by(residual, X) == pytest.approx({"branch.weight": 0.5, "head.weight": 0.0}, abs=1e-9)
    assert residual.training
    assert all(torch.equal(value, state[name]) for name, value in residual.state_dict().items())


class Scored(nn.Module):
    """y = head(softmax(score(x)) * x), and a weight that no module of its own applies."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.lone, self.head = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + nn.functional.linear(x, self.lone.weight)
        return self.head(self.score(x).softmax(dim=1).detach() * x)


def test_where_it_cannot_be_told_what_passes_by_nothing_does() -> None:
    assert passing_by(Scored(), X) == {"score.weight": 0.0, "lone.weight": 0.0, "head.weight": 0.0}


class Single(nn.Linear):
    """A network that cannot be evaluated in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.float(), self.weight)


def test_without_float64_nothing_passes_by() -> None:
    assert passing_by(nn.Sequential(Single(2, 2)), X) == {"0.weight": 0.0}


def test_what_passes_by_the_layers_of_a_residual_network() -> None:
    found = passing_by(seeded_model("resnet20", seed=0, num_classes=10, width=0.25), torch.zeros(1, 3, 16, 16))
    assert [name for name, share in found.items() if share < 0.01] == ["conv.weight", "classifier.weight"]
    assert all(0.3 < share < 0.7 for name, share in found.items() if name not in ("conv.weight", "classifier.weight"))
