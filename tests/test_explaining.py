"""Why a scorer keeps what it keeps: changes of masks that can be counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY, call, error_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor, nn

from autosparse.explaining import FeatureWorth, explain
from autosparse.features import NetworkFeatures, feature_set
from autosparse.layers import layers_of, prunable
from autosparse.pruning import prune
from autosparse.report.worth_figure import worth_figure
from autosparse.scorer.network import MLP, Scorer

Capture = pytest.CaptureFixture[str]
X, Y = torch.eye(4), torch.tensor([0, 1, 0, 1])


def linear_scorer(features: str, **slopes: float) -> Scorer:
    """A scorer whose logit is the sum of ``slopes`` times features, where that is positive."""
    scorer = Scorer(features)
    assert isinstance(scorer.network, MLP)
    with torch.no_grad():
        for parameter in scorer.network.parameters():
            parameter.zero_()
        for name, slope in slopes.items():
            scorer.network.input.weight[0, feature_set(features).names.index(name)] = slope
        scorer.network.input.bias[0] = 100.0  # the rectifiers are open
        scorer.network.hidden.weight[0, 0] = 1.0
        scorer.network.output.weight[0, 0] = 1.0
    return scorer.eval()


def two_layers() -> nn.Module:
    """Weights 1 to 16 in the first layer, and 17 to 24 in the second."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, 17).view(4, 4))  # type: ignore[operator]
        model[1].weight.copy_(torch.arange(17.0, 25).view(2, 4))  # type: ignore[operator]
    return model


def test_a_feature_on_its_own_decides_everything_and_the_others_nothing() -> None:
    scorer = linear_scorer("paper", w=1.0)
    found = explain(two_layers(), [(X, Y)], sparsity=0.5, scorer=scorer, methods=(), on_paths=False)
    # By w the 12 largest are kept: 13 to 24. Without it all are equal, and the first 12 of the order stay: 1 to 12.
    # 8 of the second layer have moved to the first, whose own 4 were exchanged.
    assert found.densities == {"autos": {"0.weight": 0.25, "1.weight": 1.0}}
    assert found.worth[0].feature == "w"
    assert found.worth[0].between_layers == 8 / 12
    assert found.worth[0].within_layers == pytest.approx(4 / 12)
    assert found.worth[1] == FeatureWorth("g", 0.0, 0.0)
    assert (found.kept, found.total) == (12, 24)


def test_shared_weights_are_counted_and_so_are_those_by_chance() -> None:
    scorer = linear_scorer("paper", w=-1.0)
    found = explain(two_layers(), [(X, Y)], sparsity=0.25, scorer=scorer, methods=("magnitude",), on_paths=False)
    # autos keeps 1 to 18, magnitude 7 to 24: 12 of its 18 are shared.
    assert found.shared == {"magnitude": 12 / 18}
    # autos keeps all of the first layer and 2 of 8 of the second, magnitude 10 and 8.
    assert found.chance == {"magnitude": (10 * 1 + 8 * 2 / 8) / 18}


@pytest.mark.filterwarnings("ignore::autosparse.CollapseWarning")
def test_the_densities_are_those_of_pruning(
    conv_net: Callable[[int], nn.Module], two_batches: list[tuple[Tensor, Tensor]]
) -> None:
    model = conv_net(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = explain(model, two_batches, sparsity=0.8, methods=("snip", "synflow", "random"), seed=3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for method in ("autos", "snip", "synflow", "random"):
        pruned = prune(conv_net(0), two_batches, sparsity=0.8, method=method, seed=3)
        assert found.densities[method] == pruned.masks.layer_densities()
    assert [entry.changed for entry in found.worth] == sorted((entry.changed for entry in found.worth), reverse=True)
    assert sorted(entry.feature for entry in found.worth) == sorted(feature_set("flow").names)


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_holding_a_feature_is_as_if_it_had_that_value_everywhere(network: str) -> None:
    torch.manual_seed(0)
    scorer = Scorer("scale-free", network).eval()
    scorer.mean.normal_()
    scorer.std.uniform_(0.5, 2.0)
    x = torch.randn(6, len(feature_set("scale-free").names))
    held = x.clone()
    held[:, 2] = 0.7
    assert torch.allclose(scorer.holding(2, 0.7)(x), scorer(held), atol=1e-4)


def test_a_layer_level_feature_is_held_as_well() -> None:
    model = two_layers()
    gradients = {name: torch.ones_like(weight) for name, weight in prunable(model).items()}
    layers = layers_of(model)
    features = NetworkFeatures("scale-free", layers, prunable(model), gradients)
    scorer = linear_scorer("scale-free", **{"log fan-out": 1.0})
    column = feature_set("scale-free").names.index("log fan-out")
    for layer in layers:
        assert torch.unique(scorer.holding(column, 3.0).score(features.layer(layer))).tolist() == [103.0]


def test_the_figure_has_a_bar_for_both_kinds_of_change() -> None:
    figure = worth_figure([FeatureWorth("log|z|", 0.25, 0.5), FeatureWorth("h", 0.0, 0.125)], "a network")
    FigureCanvasAgg(figure).draw()
    between, within = (list(bars) for bars in figure.axes[0].containers)
    assert [bar.get_width() for bar in between] == [0.25, 0.0]
    ends = [bar.get_x() + bar.get_width() for bar in within]
    assert np.allclose(ends, [0.75, 0.125])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["log|z|", "h"]
    with pytest.raises(ValueError, match="no feature"):
        worth_figure([], "nothing")


def test_the_command_writes_pictures_and_figures(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "why"
    result = call(
        capsys, "explain", *TINY, "--sparsity", "0.9", "--against", "snip", "--score-images", "64", "--out", out
    )
    assert result.status == 0, result.err
    assert sorted(path.name for path in out.iterdir()) == ["densities.png", "explanation.json", "features.png"]
    found = json.loads((out / "explanation.json").read_text())
    assert list(found["densities"]) == ["autos", "snip"]
    assert found["kept"] == round(0.1 * found["total"])
    assert "log|z|" in result.out
    assert f"wrote {out}" in result.out.replace("\n", "")
    again = call(capsys, "explain", *TINY, "--out", out)
    assert "exists: choose another --out" in error_of(again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--against", "gmp"), "does not prune at initialisation"),
        (("--against", "snap"), "unknown method 'snap'"),
        (("--sparsity", "1"), "outside [0, 1)"),
        (("--scorer", "nobody"), "unknown scorer 'nobody'"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tmp_path: Path, capsys: Capture, arguments: tuple[str, ...], message: str
) -> None:
    result = call(capsys, "explain", *TINY, "--out", tmp_path / "why", *arguments)
    assert message in error_of(result)
    assert not list(tmp_path.iterdir())
