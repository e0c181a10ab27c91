"""PHEW: transition probabilities by hand, complete paths, round-robin ends, exact counts, what zero weights do."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.budget import select
from autosparse.connectivity import is_connected
from autosparse.criteria import score
from autosparse.criteria.phew import walks
from autosparse.errors import AutoSparseError
from autosparse.layers import layers_of, prunable, total_weights
from autosparse.masks import Masks
from autosparse.seeding import generator, global_stream

Net = Callable[..., nn.Module]
Walk = tuple[int, ...]


def set_weights(model: nn.Module, *values: object) -> nn.Module:
    with torch.no_grad():
        for weight, value in zip(prunable(model).values(), values, strict=True):
            weight.copy_(torch.tensor(value).reshape(weight.shape))
    return model


def phew(model: nn.Module, example: Tensor, keep: int, *, seed: int = 0, **options: bool) -> dict[str, Tensor]:
    batches = [(example, torch.zeros(1, dtype=torch.long))]
    return score("phew", model, batches=batches, keep=keep, generator=generator(seed, "phew"), options=options)


def kept(model: nn.Module, example: Tensor, keep: int, seed: int = 0) -> Masks:
    return select(phew(model, example, keep, seed=seed), layers_of(model), keep)


def positions(masks: Masks) -> set[int]:
    return set(torch.cat([mask.reshape(-1) for mask in masks.values()]).nonzero()[:, 0].tolist())


def first_marks(model: nn.Module, example: Tensor, *, seed: int = 0, **options: bool) -> Tensor:
    """What the first 8192 walks mark, in order, on a network in which that needs one batch."""
    return next(walks(model, example, generator(seed, "phew"), **options))


def counted(found: Iterable[Walk], expected: Mapping[Walk, float], count: int) -> None:
    """Frequencies agree with probabilities within four standard deviations of a binomial; nothing else was found."""
    listed = list(found)
    assert len(listed) == count
    assert sum(expected.values()) == pytest.approx(1)
    assert set(listed) <= {walk for walk, p in expected.items() if p > 0}
    for walk, p in expected.items():
        assert abs(listed.count(walk) - count * p) <= 4 * math.sqrt(count * p * (1 - p)), walk


# ----------------------------------------------------------------------------------------- transition probabilities


def test_two_two_two_by_hand(chain: Net) -> None:
    # w1[h, i] = ((1, 2), (3, 4)) at positions 0..3, w2[o, h] = ((1, 5), (2, 3)) at 4..7; signs must not count.
    model = set_weights(chain(2, 2, 2), [[1.0, -2.0], [-3.0, 4.0]], [[-1.0, 5.0], [2.0, -3.0]])
    marks = first_marks(model, torch.zeros(1, 2)).reshape(4096, 2, 2)
    forward, backward = marks[:, 0].tolist(), marks[:, 1].tolist()
    # From input i to hidden unit h with |w1[h, i]| / (column sum 4 or 6), on to o with |w2[o, h]| / (3 or 8).
    out = {0: {0: 1 / 4, 1: 3 / 4}, 1: {0: 2 / 6, 1: 4 / 6}}
    on = {0: {0: 1 / 3, 1: 2 / 3}, 1: {0: 5 / 8, 1: 3 / 8}}
    for i in (0, 1):
        expected: dict[Walk, float] = {(2 * h + i, 4 + 2 * o + h): out[i][h] * on[h][o] for h in (0, 1) for o in (0, 1)}
        counted((tuple(walk) for walk in forward[i::2]), expected, 2048)
    # From output o to hidden unit h with |w2[o, h]| / (row sum 6 or 5), on to i with |w1[h, i]| / (3 or 7).
    back = {0: {0: 1 / 6, 1: 5 / 6}, 1: {0: 2 / 5, 1: 3 / 5}}
    further = {0: {0: 1 / 3, 1: 2 / 3}, 1: {0: 3 / 7, 1: 4 / 7}}
    for o in (0, 1):
        expected = {(4 + 2 * o + h, 2 * h + i): back[o][h] * further[h][i] for h in (0, 1) for i in (0, 1)}
        counted((tuple(walk) for walk in backward[o::2]), expected, 2048)


def test_kernels_are_drawn_by_their_norm_and_weights_by_their_magnitude() -> None:
    """One pixel: two kernels of two taps between one channel and two units, then one linear unit."""
    model = nn.Sequential(nn.Conv1d(1, 2, 2, padding=1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 1))
    set_weights(model, [[1.0, -3.0], [4.0, 8.0]], [[2.0, 6.0]])
    marks = first_marks(model, torch.zeros(1, 1, 3)).reshape(4096, 2, 2)
    # Forward 4/16 and 12/16 for the kernels, inside 1:3 and 4:8. Backward 2:6 for the unit, inside the same.
    forward: dict[Walk, float] = {(0, 4): 1 / 16, (1, 4): 3 / 16, (2, 5): 4 / 16, (3, 5): 8 / 16}
    backward: dict[Walk, float] = {
        (4, 0): 1 / 4 * 1 / 4,
        (4, 1): 1 / 4 * 3 / 4,
        (5, 2): 3 / 4 * 1 / 3,
        (5, 3): 3 / 4 * 2 / 3,
    }
    counted(map(tuple, marks[:, 0].tolist()), forward, 4096)
    counted(map(tuple, marks[:, 1].tolist()), backward, 4096)


def test_after_flattening_the_pixels_of_a_channel_are_one_kernel() -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Flatten(), nn.Linear(2, 2))
    set_weights(model, [[1.0]], [[1.0, 2.0], [3.0, 10.0]])
    marks = first_marks(model, torch.zeros(1, 1, 2)).reshape(4096, 2, 2)
    # Forward: units by L1 norm 3:13, then the pixel by magnitude.
    counted(map(tuple, marks[:, 0].tolist()), {(0, 1): 1 / 16, (0, 2): 2 / 16, (0, 3): 3 / 16, (0, 4): 10 / 16}, 4096)
    # Backward: the outputs take turns.
    counted(map(tuple, marks[0::2, 1].tolist()), {(1, 0): 1 / 3, (2, 0): 2 / 3}, 2048)
    counted(map(tuple, marks[1::2, 1].tolist()), {(3, 0): 3 / 13, (4, 0): 10 / 13}, 2048)


def test_groups_are_not_left() -> None:
    """Every channel of a depthwise convolution leads to its own units alone."""
    model = nn.Sequential(nn.Conv1d(2, 4, 1, groups=2), nn.Conv1d(4, 2, 1, groups=2))
    marks = first_marks(model, torch.zeros(1, 2, 1)).reshape(4096, 2, 2)
    # Units 0 and 1 of the first layer see channel 0; unit o of the second sees units 2o and 2o + 1, from 4 + 2o on.
    paths = {(unit, 4 + unit) for unit in range(4)}
    assert set(map(tuple, marks[:, 0].tolist())) == paths
    assert set(map(tuple, marks[:, 1].flip(1).tolist())) == paths
    assert {walk[0] // 2 for walk in marks[0::2, 0].tolist()} == {0}


class Residual(nn.Module):
    """stem, then x + branch(x) or projection(x) + branch(x), then head; one feature, so that every weight is a path."""

    def __init__(self, *, projection: bool = False, gate: bool = False) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv1d(1, 1, 1), nn.Conv1d(1, 1, 1)
        self.projection = nn.Conv1d(1, 1, 1) if projection else None
        self.gate = nn.Conv1d(1, 1, 1) if gate else None
        self.head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.branch(x))
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(y.mean(dim=2, keepdim=True)))
        x = y + (x if self.projection is None else self.projection(x))
        return self.head(x.mean(dim=2))


def share_of(model: nn.Module, name: str, **options: bool) -> tuple[float, float]:
    """The fraction of forward and backward walks that mark the single weight of a layer."""
    marks = first_marks(model, torch.zeros(1, 1, 4), **options).tolist()
    offset = {layer.name: layer.offset for layer in layers_of(model)}
    ends = {offset["stem.weight"], offset["head.weight"]}
    passed: list[set[int]] = []
    for mark in marks:  # a walk is over when both ends are marked
        if not passed or ends <= passed[-1]:
            passed.append(set())
        passed[-1].add(mark)
    assert len(passed) == 8192
    hits = [offset[f"{name}.weight"] in walk for walk in passed]
    return sum(hits[0::2]) / 4096, sum(hits[1::2]) / 4096


HALF = pytest.approx(0.5, abs=4 * 0.5 / 64)  # four standard deviations for 4096 walks


def test_projection_and_branch_are_equally_probable() -> None:
    model = set_weights(Residual(projection=True), 1.0, 0.001, 100.0, 1.0)  # the branch has tiny weights
    assert share_of(model, "projection") == (HALF, HALF)
    assert sum(share_of(model, "branch")) + sum(share_of(model, "projection")) == 2  # one of them in every walk


def test_an_identity_shortcut_is_taken_only_where_asked_for() -> None:
    assert share_of(Residual(), "branch") == (1, 1)
    assert share_of(Residual(), "branch", identity_skips=True) == (HALF, HALF)


def test_a_dead_branch_leaves_the_identity_shortcut() -> None:
    """Blocks whose last layer starts at zero would otherwise leave no path at all."""
    assert share_of(set_weights(Residual(), 1.0, 0.0, 1.0), "branch") == (0, 0)


def test_a_gate_does_not_replace_what_it_gates() -> None:
    assert share_of(Residual(gate=True), "branch") == (1, 1)
    assert share_of(Residual(gate=True), "gate") == (HALF, HALF)


def test_ends_take_turns(chain: Net) -> None:
    """Forward walks start at inputs 0, 1, 2, 0, ..., backward ones at outputs 0, ..., 3, 0, ..., batch after batch."""
    model = chain(3, 5, 4)
    batches = walks(model, torch.zeros(1, 3), generator(0, "phew"))
    marks = torch.cat([next(batches), next(batches)]).reshape(8192, 2, 2)
    inputs = marks[:, 0, 0] % 3  # w1 [5, 3]
    outputs = (marks[:, 1, 0] - 15) // 5  # w2 [4, 5]
    assert torch.equal(inputs, torch.arange(8192) % 3)
    assert torch.equal(outputs, torch.arange(8192) % 4)


# ------------------------------------------------------------------------------------------------- complete paths


class Small(nn.Module):
    """A projection, an identity shortcut, a concatenation, a depthwise convolution and flattened pixels; no bias."""

    def __init__(self) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, size: int = 3, groups: int = 1) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)

        self.stem, self.norm = conv(2, 3), nn.BatchNorm2d(3)
        self.a, self.b, self.projection = conv(3, 4), conv(4, 4), conv(3, 4, size=1)
        self.c, self.depthwise = conv(4, 4), conv(4, 4, groups=4)
        self.d = conv(4, 2)
        self.head = nn.Linear(6 * 4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.b(torch.relu(self.a(x))) + self.projection(x))
        x = torch.relu(self.depthwise(self.c(x)) + x)
        x = torch.cat([x, self.d(x)], dim=1)
        return self.head(F.avg_pool2d(x, 8).flatten(1))


def small() -> Small:
    with global_stream(0, "tests"):
        return Small()


IMAGE = torch.zeros(1, 2, 16, 16)


def on_no_path(masks: Masks) -> set[int]:
    """Positions of kept weights through which no path of kept weights leads from input to output.

    In a network of ones and zeros without negative signals the gradient of the output's sum with respect to a weight
    counts the paths that it is on.
    """
    model = Small().double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(masks[name] if name in masks else torch.full_like(parameter, float(name == "norm.weight")))
    weights = list(prunable(model).values())
    gradients = torch.autograd.grad(model(torch.ones_like(IMAGE, dtype=torch.float64)).sum(), weights)
    counts = torch.cat([(weight * gradient).reshape(-1) for weight, gradient in zip(weights, gradients, strict=True)])
    return positions(masks) - set((counts > 0).nonzero()[:, 0].tolist())


def by_walk(model: nn.Module, seed: int, count: int) -> list[Walk]:
    """The first walks. A walk is over when it has marked a weight of the stem and one of the head."""
    layers = layers_of(model)
    stem, head = layers[0].size, layers[-1].offset
    found: list[list[int]] = []
    for mark in first_marks(model, IMAGE, seed=seed).tolist():
        if not found or (min(found[-1]) < stem and max(found[-1]) >= head):
            if len(found) == count:
                break
            found.append([])
        found[-1].append(mark)
    return [tuple(walk) for walk in found]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_kept_weight_lies_on_a_complete_path(seed: int) -> None:
    """At the end of every walk; the exact count cuts nothing but the walk in progress."""
    model = small()
    marked: list[int] = []
    for walk in by_walk(model, seed, 8):
        before = list(marked)
        marked += [mark for mark in dict.fromkeys(walk) if mark not in marked]
        for keep in range(len(before) + 1, len(marked) + 1):
            masks = kept(model, IMAGE, keep, seed=seed)
            assert positions(masks) == set(marked[:keep])
            assert on_no_path(masks) <= set(marked[len(before) : keep])
        assert not on_no_path(masks)


def test_scores_are_the_order_of_marking() -> None:
    model = small()
    order = list(dict.fromkeys(itertools.chain(*by_walk(model, 0, 100))))[:60]
    scores = torch.cat([value.reshape(-1) for value in phew(model, IMAGE, 60).values()])
    assert scores[order].tolist() == list(range(60, 0, -1))
    magnitude = torch.cat([weight.detach().reshape(-1).abs() for weight in prunable(model).values()]).double()
    unmarked = torch.ones(len(scores), dtype=torch.bool)
    unmarked[order] = False
    assert torch.equal(scores[unmarked], magnitude[unmarked] / (2 * magnitude.max()))


# --------------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("keep", [1, 2, 5, 37, 200, 600])
def test_exactly_keep_weights_are_marked_and_more_continue_fewer(keep: int) -> None:
    model = small()
    scores = torch.cat([value.reshape(-1) for value in phew(model, IMAGE, keep).values()])
    marked = set((scores >= 1).nonzero()[:, 0].tolist())
    assert len(marked) == keep == len(positions(kept(model, IMAGE, keep)))
    assert marked == positions(kept(model, IMAGE, keep))
    assert marked < positions(kept(model, IMAGE, keep + 1))


def test_large_weights_are_preferred_in_every_layer() -> None:
    model = small()
    masks = kept(model, IMAGE, 300)
    for name, weight in prunable(model).items():
        if 0.05 < masks[name].float().mean() < 0.95:
            size = weight.detach().abs()
            assert size[masks[name]].mean() > 1.1 * size[~masks[name]].mean(), name


def test_a_seed_fixes_the_mask(conv_net: Net) -> None:
    model, example = conv_net(), torch.zeros(1, 3, 8, 8)
    first = kept(model, example, 60)
    assert all(torch.equal(first[name], mask) for name, mask in kept(model, example, 60).items())
    torch.manual_seed(123)  # the global generator plays no role, nor do the example's values
    assert positions(kept(model, torch.ones(1, 3, 8, 8), 60)) == positions(first)
    assert positions(kept(model, example, 60, seed=1)) != positions(first)


def test_a_network_with_a_depthwise_convolution_stays_connected(conv_net: Net) -> None:
    model, example = conv_net(), torch.zeros(1, 3, 8, 8)
    for keep in (3, 10, 50, total_weights(layers_of(model))):
        masks = kept(model, example, keep)
        assert masks.kept == keep
        assert is_connected(model, masks, example)


# ----------------------------------------------------------------------------------------------------- zero weights


def test_dead_ends_are_never_entered_and_magnitude_fills_up(chain: Net) -> None:
    # Hidden unit 0 leads nowhere: w2[:, 0] = 0. Paths use w1[1, :] (2, 3) and w2[:, 1] (5, 7).
    model = set_weights(chain(2, 2, 2), [[9.0, -8.0], [0.1, 0.2]], [[0.0, 0.3], [0.0, -0.4]])
    example = torch.zeros(1, 2)
    assert positions(kept(model, example, 4)) == {2, 3, 5, 7}
    assert positions(kept(model, example, 5)) == {2, 3, 5, 7, 0}
    assert positions(kept(model, example, 6)) == {2, 3, 5, 7, 0, 1}


def test_zero_weights_are_never_chosen_before_others() -> None:
    model = small()
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in prunable(model).values():
            weight[torch.rand(weight.shape, generator=stream) < 0.5] = 0.0
    nonzero = torch.cat([weight.detach().reshape(-1) != 0 for weight in prunable(model).values()])
    for keep in (50, int(nonzero.sum())):
        assert positions(kept(model, IMAGE, keep)) <= set(nonzero.nonzero()[:, 0].tolist())


def test_without_any_path_magnitude_decides(chain: Net) -> None:
    model = set_weights(chain(2, 2, 1), [[1.0, -4.0], [3.0, 2.0]], [[0.0, 0.0]])
    assert positions(kept(model, torch.zeros(1, 2), 2)) == {1, 2}
    model = set_weights(chain(2, 1), [[0.0, 0.0]])
    assert phew(model, torch.zeros(1, 2), 1)["0.weight"].tolist() == [[0.0, 0.0]]


def test_tiny_and_huge_kernels_keep_their_probabilities(chain: Net) -> None:
    """Rows whose sums differ by thirty orders of magnitude are drawn from alike."""
    small = 1e-30
    model = set_weights(chain(2, 2, 1), [[1.0, small], [3.0, 3 * small]], [[1.0, 1.0]])
    marks = first_marks(model, torch.zeros(1, 2)).reshape(4096, 2, 2)
    counted(map(tuple, marks[1::2, 0].tolist()), {(1, 4): 1 / 4, (3, 5): 3 / 4}, 2048)


# ------------------------------------------------------------------------------------------------------- contract


def test_the_model_is_untouched_and_scores_are_finite(conv_net: Net) -> None:
    model = conv_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    scores = phew(model, torch.zeros(1, 3, 8, 8), 40)
    assert {name: value.shape for name, value in scores.items()} == {n: w.shape for n, w in prunable(model).items()}
    assert all(value.isfinite().all() for value in scores.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and "forward" not in vars(module) for module in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_network_that_walks_cannot_follow_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    with pytest.raises(AutoSparseError, match=r"the topology of Sequential .* layer '2.weight': its channel 0 mixes"):
        phew(model, torch.zeros(1, 3), 2)
