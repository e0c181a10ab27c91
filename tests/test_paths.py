"""Effective density, and masks without a weight that is wasted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import call
from torch import nn

from autosparse import CollapseWarning, prune
from autosparse.budget import select
from autosparse.connectivity import is_connected, useful_weights
from autosparse.criteria import score
from autosparse.errors import AutoSparseError
from autosparse.layers import layers_of, total_weights
from autosparse.masks import Masks
from autosparse.models import seeded_model
from autosparse.paths import on_paths, select_on_paths
from autosparse.seeding import generator

Net = Callable[..., nn.Module]
X = torch.zeros(5, 2)
IMAGES = torch.zeros(2, 3, 32, 32)


def masks_of(*entries: list[list[int]]) -> Masks:
    return Masks({f"{2 * i}.weight": torch.tensor(rows, dtype=torch.bool) for i, rows in enumerate(entries)})


def test_a_weight_without_a_way_in_or_out_is_wasted(chain: Net) -> None:
    # Input 0 leads over unit 0 to the output; unit 1 hears input 1 and tells nobody; unit 2 tells and hears nothing.
    masks = masks_of([[1, 0], [0, 1], [0, 0]], [[1, 0, 1]])
    live = on_paths(chain(2, 3, 1), masks, X)
    assert live["0.weight"].tolist() == [[True, False], [False, False], [False, False]]
    assert live["2.weight"].tolist() == [[True, False, False]]


def test_useful_is_what_one_more_weight_would_make_a_path_of(chain: Net) -> None:
    masks = masks_of([[1, 0], [0, 1], [0, 0]], [[1, 0, 1]])
    useful = useful_weights(chain(2, 3, 1, bias=True), masks, X)
    # Whatever enters unit 0 or 2 reaches the output; unit 1 needs its way out.
    assert useful["0.weight"].tolist() == [[True, True], [False, False], [True, True]]
    assert useful["2.weight"].tolist() == [[True, True, False]]


def test_a_tap_that_only_ever_sees_padding_is_wasted() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(1, 1, bias=False))
    live = on_paths(model, Masks.dense(model), torch.zeros(1, 1, 1, 1))  # an image of one pixel
    assert live["0.weight"].sum() == 1
    assert bool(live["0.weight"][0, 0, 1, 1])


def test_any_place_may_win_a_max_pool() -> None:
    # Each tap of the 3x3 kernel sees the image's only pixel from another place of the pool's window.
    conv, head = nn.Conv2d(1, 1, 3, padding=2, bias=False), nn.Linear(1, 1, bias=False)
    model = nn.Sequential(conv, nn.MaxPool2d(3), nn.Flatten(), head)
    assert on_paths(model, Masks.dense(model), torch.zeros(1, 1, 1, 1)).kept == 10


def test_scores_decide_among_paths(chain: Net) -> None:
    model = chain(2, 2, 1)
    scores = {"0.weight": torch.tensor([[9.0, 1.0], [8.0, 2.0]]), "2.weight": torch.tensor([[1.0, 7.0]])}
    # One shot keeps 9, 8 and 7, of which 9 leads nowhere.
    alone = select(scores, layers_of(model), 3)
    assert on_paths(model, alone, X).kept == 2
    masks = select_on_paths(model, scores, layers_of(model), 3, X)
    assert masks["0.weight"].tolist() == [[False, False], [True, True]]
    assert masks["2.weight"].tolist() == [[False, True]]


@pytest.mark.parametrize("density", [0.01, 0.005, 0.001])
@pytest.mark.parametrize(("criterion", "budget"), [("random", "erk"), ("magnitude", "global")])
@pytest.mark.parametrize(("name", "width"), [("vgg11", 0.25), ("resnet20", 0.5), ("mobilenetv2", 0.125)])
def test_no_weight_is_wasted(name: str, width: float, criterion: str, budget: str, density: float) -> None:
    model = seeded_model(name, seed=0, num_classes=10, width=width)
    layers = layers_of(model)
    keep = round(density * total_weights(layers))
    scores = score(criterion, model, generator=generator(0, "random scores"))
    masks = select_on_paths(model, scores, layers, keep, IMAGES, budget=budget)
    assert masks.kept == keep
    assert is_connected(model, masks, IMAGES)
    # A path needs a weight in every layer that no shortcut goes around: below that there is nothing to share out.
    spare = keep >= 3 * len(layers)
    assert on_paths(model, masks, IMAGES).kept >= (keep if spare else 0.05 * keep)


def test_what_needs_no_help_is_left_as_it_is() -> None:
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.5)
    layers = layers_of(model)
    scores = score("magnitude", model)
    keep = total_weights(layers) // 2
    assert all(
        torch.equal(mask, other)
        for mask, other in zip(
            select(scores, layers, keep, budget="erk").values(),
            select_on_paths(model, scores, layers, keep, IMAGES, budget="erk").values(),
            strict=True,
        )
    )


def test_only_allowed_weights_are_kept_where_they_suffice() -> None:
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.5)
    layers = layers_of(model)
    keep = round(0.02 * total_weights(layers))
    scores = score("random", model, generator=generator(0, "random scores"))
    within = select(scores, layers, 10 * keep, budget="erk")
    masks = select_on_paths(model, scores, layers, keep, IMAGES, budget="erk", within=within)
    assert masks.kept == keep
    assert all(bool((mask <= within[name]).all()) for name, mask in masks.items())


@pytest.mark.parametrize("method", ["snip", "synflow", "random", "iter-snip"])
def test_prune_keeps_the_count_on_paths(method: str, two_batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    model = seeded_model("vgg11", seed=0, num_classes=10, width=0.125)
    data = [(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8))]
    pruned = prune(model, data, sparsity=0.99, method=method, on_paths=True)
    assert pruned.summary.kept == round(0.01 * pruned.summary.total)
    assert pruned.summary.connected
    assert pruned.summary.effective_density == pruned.summary.density


def test_the_effective_density_is_told(chain: Net) -> None:
    # The two largest weights lead from the input to unit 1 and from unit 0 to the output.
    model = chain(2, 2, 1)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), ([[1.0, 1.0], [9.0, 1.0]], [[9.0, 1.0]]), strict=True):
            parameter.copy_(torch.tensor(value))
    data = [(torch.rand(3, 2), torch.zeros(3, dtype=torch.long))]
    with pytest.warns(UserWarning, match="no path"):
        summary = prune(model, data, sparsity=2 / 3, method="magnitude").summary
    assert (summary.density, summary.effective_density) == (pytest.approx(1 / 3), 0)
    assert prune(chain(2, 2, 1), None, sparsity=0.5, method="magnitude").summary.effective_density is None


def test_settings_that_do_not_go_together_are_refused(conv_net: Net) -> None:
    with pytest.raises(AutoSparseError, match="leave keep-connected out"):
        prune(conv_net(), None, sparsity=0.5, method="magnitude", on_paths=True, keep_connected=True)
    with pytest.raises(AutoSparseError, match="with on_paths needs data"):
        prune(conv_net(), None, sparsity=0.5, method="magnitude", on_paths=True)
    with pytest.raises(AutoSparseError, match="on-paths out"):
        prune(conv_net(), None, method="magnitude", granularity="2:4", on_paths=True)


class Single(nn.Module):
    """A network that cannot be evaluated in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.float()) + torch.zeros(2, dtype=torch.float32)


@pytest.mark.filterwarnings("ignore:could not check:autosparse.CollapseWarning")
def test_a_network_without_float64_is_named() -> None:
    data = [(torch.rand(3, 2), torch.zeros(3, dtype=torch.long))]
    with pytest.raises(AutoSparseError, match="cannot find the paths of Single"):
        prune(Single(), data, sparsity=0.5, method="magnitude", on_paths=True)
    # Where it is the method's own default, the method does without.
    with pytest.warns(CollapseWarning, match="cannot find the paths of Single"):
        assert prune(Single(), data, sparsity=0.5, method="autos").summary.kept == 2


def test_the_command_says_both_densities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prune", "--model", "vgg11", "--model-arg", "width=0.125", "--method", "random", "--sparsity", 0.995]
    assert "% on paths from input to output)" in call(capsys, *command, "--out", tmp_path / "wasting").out
    assert "on paths from" not in call(capsys, *command, "--on-paths", "--out", tmp_path / "thrifty").out
