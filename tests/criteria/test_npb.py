"""Node-Path Balancing: exact counts, effective weights, and where chance and the paths put them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from autosparse.budget import budget_counts, select
from autosparse.connectivity import is_connected
from autosparse.criteria import score
from autosparse.criteria.path_counting import PathNetwork
from autosparse.errors import AutoSparseError
from autosparse.layers import layers_of, prunable, total_weights
from autosparse.models import seeded_model
from autosparse.seeding import generator

Net = Callable[..., nn.Module]
Shape = tuple[int, ...]


def npb(model: nn.Module, shape: Shape, counts: Mapping[str, int] | None, seed: int = 0, **options: object) -> dict:
    batches = [(torch.zeros(2, *shape), torch.zeros(2, dtype=torch.long))]
    return score("npb", model, batches=batches, counts=counts, generator=generator(seed, "npb"), options=options)


def erk(model: nn.Module, density: float) -> dict[str, int]:
    layers = layers_of(model)
    counts = budget_counts(layers, round(density * total_weights(layers)), "erk")
    assert counts is not None
    return counts


def masks_of(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values >= 1 for name, values in scores.items()}


def ineffective(model: nn.Module, shape: Shape, masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Weights of every layer on no path from input to output."""
    network = PathNetwork("test", model, torch.zeros(1, *shape))
    for name, weight in network.weights.items():
        weight.copy_(masks[name])
    paths = network.paths_through(*network.weights)
    return {name: int((mask & (paths[name] == 0)).sum()) for name, mask in masks.items()}


@pytest.mark.parametrize(
    ("name", "density"),
    [*itertools.product(["conv_net", "resnet20", "vgg11"], [0.02, 0.1, 0.5, 1.0]), ("mobilenetv2", 0.1)],
)
def test_exactly_the_counted_weights_of_every_layer_score_above_the_rest(
    name: str, density: float, conv_net: Net
) -> None:
    options = {"num_classes": 10, "width": 0.25 if name == "resnet20" else 0.125}
    model = conv_net() if name == "conv_net" else seeded_model(name, seed=0, **options)  # type: ignore[arg-type]
    layers, counts = layers_of(model), erk(model, density)
    scores = npb(model, (3, 8, 8), counts)
    assert {key: values.shape for key, values in scores.items()} == {k: w.shape for k, w in prunable(model).items()}
    assert {key: int((values >= 1).sum()) for key, values in scores.items()} == counts
    for values in scores.values():
        assert bool(((values >= 1) & (values <= 2) | (values >= 0) & (values <= 0.5)).all())
    selected = select(scores, layers, sum(counts.values()), budget="erk")
    assert all(torch.equal(selected[key], mask) for key, mask in masks_of(scores).items())


def off_paths(masks: Mapping[str, Tensor], widths: tuple[int, ...]) -> list[int]:
    """How many weights of each layer of an MLP lie on no path, by following every path."""
    kept = [{(i, j) for j, i in mask.nonzero().tolist()} for mask in masks.values()]
    idle = [set(edges) for edges in kept]
    for path in itertools.product(*(range(width) for width in widths)):
        edges = list(itertools.pairwise(path))
        if all(edge in layer for edge, layer in zip(edges, kept, strict=True)):
            for edge, layer in zip(edges, idle, strict=True):
                layer.discard(edge)
    return [len(edges) for edges in idle]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("counts", [(8, 8, 8), (12, 6, 12), (6, 12, 8), (2, 2, 2), (1, 1, 1)])
def test_every_weight_of_a_chain_lies_on_a_path(counts: tuple[int, ...], seed: int, chain: Net) -> None:
    widths = (5, 6, 6, 4)
    model = chain(*widths)
    masks = masks_of(npb(model, (5,), dict(zip(prunable(model), counts, strict=True)), seed))
    assert tuple(int(mask.sum()) for mask in masks.values()) == counts
    assert off_paths(masks, widths) == [0, 0, 0]


def test_weights_that_find_no_place_on_a_path_stay(chain: Net) -> None:
    widths = (5, 6, 6, 4)
    model = chain(*widths)
    masks = masks_of(npb(model, (5,), dict(zip(prunable(model), (30, 3, 24), strict=True))))
    assert [int(mask.sum()) for mask in masks.values()] == [30, 3, 24]
    # Three weights between dense layers: three channels at most on either side have paths.
    inputs, outputs = int(masks["2.weight"].any(dim=0).sum()), int(masks["2.weight"].any(dim=1).sum())
    assert off_paths(masks, widths) == [30 - 5 * inputs, 0, 24 - 4 * outputs]


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3])
def test_every_weight_of_a_residual_network_lies_on_a_path(density: float) -> None:
    model, shape = seeded_model("resnet20", seed=0, num_classes=10, width=0.25), (3, 16, 16)
    masks = masks_of(npb(model, shape, erk(model, density)))
    assert not any(ineffective(model, shape, masks).values())
    assert is_connected(model, masks, torch.zeros(1, *shape))


def test_paths_and_channels_beat_a_random_mask_of_the_same_counts() -> None:
    model, shape = seeded_model("vgg11", seed=0, num_classes=10, width=0.125), (3, 32, 32)
    counts = erk(model, 0.05)
    network = PathNetwork("test", model, torch.zeros(1, *shape))

    def paths(masks: Mapping[str, Tensor]) -> float:
        for name, weight in network.weights.items():
            weight.copy_(masks[name])
        through = network.paths_through("classifier.weight")["classifier.weight"]
        return float(through[masks["classifier.weight"]].sum())

    noise = {name: torch.rand(w.shape, generator=generator(0, "noise")) for name, w in prunable(model).items()}
    random = select(noise, layers_of(model), sum(counts.values()), budget="erk")
    assert paths(masks_of(npb(model, shape, counts))) > 2 * paths(random)


def test_kernels_are_used_before_any_is_used_twice_and_within_their_limit() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 2))
    spread = masks_of(npb(model, (4, 6, 6), {"0.weight": 24, "3.weight": 400}))["0.weight"]
    assert spread.sum(dim=(2, 3)).tolist() == [[1] * 4] * 6
    paths = masks_of(npb(model, (4, 6, 6), {"0.weight": 24, "3.weight": 400}, beta=0.0, max_kernel=4))["0.weight"]
    assert paths.sum(dim=(2, 3)).max() <= 4
    beyond = masks_of(npb(model, (4, 6, 6), {"0.weight": 100, "3.weight": 400}, max_kernel=4))["0.weight"]
    assert beyond.sum(dim=(2, 3)).max() == 5  # 24 kernels of 4 weights hold 96


def test_positions_inside_a_kernel_are_left_to_chance() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 2))
    counts = {"0.weight": 64, "2.weight": 256}
    taps = [masks_of(npb(model, (8, 4, 4), counts, seed))["0.weight"].sum(dim=(0, 1)) for seed in range(40)]
    total = torch.stack(taps).sum(dim=0).double()
    expected = 40 * 64 / 9
    assert bool(((total - expected).abs() < 5 * expected**0.5).all())


def test_on_a_map_of_one_pixel_only_the_centre_of_a_kernel_counts() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1), nn.Flatten(), nn.Linear(4, 2))
    counts = {"0.weight": 10, "1.weight": 12, "3.weight": 8}
    masks = masks_of(npb(model, (3, 1, 1), counts))
    for name in ("0.weight", "1.weight"):
        assert int(masks[name][:, :, 1, 1].sum()) == counts[name]


def test_weights_follow_the_paths_that_arrive() -> None:
    model = nn.Sequential(nn.Conv2d(8, 4, 1, groups=2), nn.Flatten(), nn.Linear(4, 6))
    masks = masks_of(npb(model, (8, 1, 1), {"0.weight": 16, "2.weight": 6}))
    assert masks["0.weight"].all()
    assert masks["2.weight"].sum(dim=1).tolist() == [1] * 6  # equal paths: every output is used, no input preferred
    sparse = masks_of(npb(model, (8, 1, 1), {"0.weight": 10, "2.weight": 6}, alpha=0.0))
    arriving = sparse["0.weight"].sum(dim=(1, 2, 3))
    taken = sparse["2.weight"].sum(dim=0)
    assert arriving[taken > 0].min() >= arriving[taken == 0].max()


def test_the_generator_decides_and_weights_and_images_do_not(conv_net: Net) -> None:
    first, second = conv_net(0), conv_net(1)
    counts = erk(first, 0.3)
    scores = npb(first, (3, 8, 8), counts)
    again = npb(second, (3, 8, 8), counts)
    other = npb(first, (3, 8, 8), counts, seed=1)
    assert all(torch.equal(scores[name], again[name]) for name in scores)
    assert any(not torch.equal(masks_of(scores)[name], masks_of(other)[name]) for name in scores)


def test_a_layer_that_keeps_nothing_cuts_every_path_and_counts_still_hold(chain: Net) -> None:
    model = chain(3, 4, 4, 2)
    counts = dict(zip(prunable(model), (5, 0, 4), strict=True))
    assert {key: int(mask.sum()) for key, mask in masks_of(npb(model, (3,), counts)).items()} == counts


def test_a_global_budget_is_refused(conv_net: Net) -> None:
    with pytest.raises(AutoSparseError, match=r"^npb needs a budget .*: choose erk, synexp or uniform$"):
        npb(conv_net(), (3, 8, 8), None)


def test_options_out_of_range_are_refused(conv_net: Net) -> None:
    with pytest.raises(AutoSparseError, match="npb with alpha=2"):
        npb(conv_net(), (3, 8, 8), erk(conv_net(), 0.5), alpha=2)
