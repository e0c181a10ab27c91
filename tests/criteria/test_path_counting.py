"""Paths counted by the network of ones, against enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autosparse.criteria.path_counting import PathNetwork
from autosparse.errors import AutoSparseError
from autosparse.seeding import generator

Net = Callable[..., nn.Module]


def random_masks(network: PathNetwork, density: float) -> None:
    stream = generator(0, "masks")
    for weight in network.weights.values():
        weight.copy_(torch.rand(weight.shape, generator=stream) < density)


def test_paths_through_every_connection_of_a_sparse_mlp(chain: Net) -> None:
    widths = (3, 5, 4, 2)
    network = PathNetwork("test", chain(*widths, bias=True), torch.zeros(1, 3))
    random_masks(network, 0.5)
    kept = [weight.bool().tolist() for weight in network.weights.values()]
    for layer, counted in enumerate(network.paths_through(*network.weights).values()):
        expected = torch.zeros_like(counted)
        for path in itertools.product(*(range(width) for width in widths)):
            if all(kept[k][path[k + 1]][path[k]] for k in range(3) if k != layer):
                expected[path[layer + 1], path[layer]] += 1
        assert counted.max() > 0
        assert torch.equal(counted / counted.max(), expected / expected.max())
        assert not counted.requires_grad


class Backwards(nn.Module):
    """Runs its layers in the reverse of the order in which they are registered; one is not called at all."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.middle = nn.Conv2d(4, 3, 1, groups=1)
        self.first = nn.Conv2d(2, 4, 2)
        self.norm = nn.BatchNorm2d(4)
        self.unused = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(torch.relu(self.norm(self.first(x)))).mean(dim=(2, 3)))


def test_layers_are_decided_as_they_run_and_see_the_paths_that_arrive() -> None:
    seen: dict[str, Tensor] = {}
    chosen = {
        "first.weight": torch.ones(4, 2, 2, 2),
        "middle.weight": torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])[:, :, None, None],
        "last.weight": torch.eye(2, 3),
        "unused.weight": torch.zeros(1, 5),
    }
    chosen["first.weight"][1, 0] = 0.0  # half of the paths to the second channel
    chosen["first.weight"][3] = 0.0

    def choose(name: str, arriving: Tensor) -> Tensor:
        seen[name] = arriving
        return chosen[name]

    network = PathNetwork("test", Backwards(), torch.zeros(1, 2, 3, 3))
    network.decide(choose)
    assert list(seen) == ["first.weight", "middle.weight", "last.weight", "unused.weight"]
    ratios = {name: (arriving / arriving.max()).tolist() for name, arriving in seen.items()}
    assert ratios["first.weight"] == [1, 1]
    assert ratios["middle.weight"] == [1, 0.5, 1, 0]
    assert ratios["last.weight"] == [1, pytest.approx(2 / 3), 0]
    assert ratios["unused.weight"] == [1] * 5
    assert all(torch.equal(network.weights[name], value.double()) for name, value in chosen.items())
    assert not network.paths_through("unused.weight")["unused.weight"].any()


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.gate = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head((x * self.gate(x.mean(dim=(2, 3))).sigmoid()[:, :, None, None]).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "model",
    [
        # A maximum would count the first of the equal positions alone, which 5 of 9 taps do not reach.
        pytest.param(
            nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 2)), id="max-pool"
        ),
        # Norms of constant maps are zero.
        pytest.param(
            nn.Sequential(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2)),
            id="norms",
        ),
        # What is clipped, or saturates, has no derivative.
        pytest.param(
            nn.Sequential(nn.Conv2d(2, 9, 2), nn.ReLU6(), nn.Hardtanh(), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)),
            id="activations",
        ),
        pytest.param(Gated(), id="gate"),
    ],
)
def test_every_connection_of_a_dense_network_lies_on_a_path(model: nn.Module) -> None:
    network = PathNetwork("test", model, torch.zeros(1, 2, 2, 2))
    for paths in network.paths_through(*network.weights).values():
        assert bool((paths > 0).all())


def test_the_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network = PathNetwork("test", model, torch.zeros(1, 1, 2, 2))
    network.decide(lambda name, arriving: torch.zeros_like(network.weights[name]))
    network.paths_through("0.weight")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_more_paths_than_float64_holds_are_counted_and_far_more_are_an_error(chain: Net) -> None:
    network = PathNetwork("test", chain(*[10] * 381), torch.zeros(1, 10))  # 10^381 paths
    first, last = network.paths_through("0.weight", "758.weight").values()
    assert float(first[0, 0]) == pytest.approx(float(last[0, 0]), rel=1e-9)
    network = PathNetwork("test", chain(*[10] * 601), torch.zeros(1, 10))
    with pytest.raises(AutoSparseError, match=r"^test: Sequential has too many paths for float64: "):
        network.paths_through("0.weight")
