"""The learned scorer: fast evaluation, files, figures, and a fit that finds what is there to be found."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from autosparse.errors import AutoSparseError, FileFormatError, UnknownNameError
from autosparse.features import FEATURE_SETS, NetworkFeatures
from autosparse.files import save_tensors
from autosparse.layers import Layer
from autosparse.scorer import network, store
from autosparse.scorer.dataset import IRPRun
from autosparse.scorer.fit import Examples, FitConfig, examples, fit_scorer, predict, split_groups
from autosparse.scorer.losses import LOSSES
from autosparse.scorer.metrics import compare, compare_baseline, top_overlap
from autosparse.scorer.network import Scorer
from autosparse.scorer.store import card_path, list_scorers, load_scorer, save_scorer
from autosparse.seeding import global_stream

LAYERS = [
    Layer("conv", "conv2d", (8, 4, 3, 3), groups=1, depth=0, offset=0),
    Layer("depthwise", "conv2d", (8, 1, 3, 3), groups=8, depth=1, offset=288),
    Layer("linear", "linear", (10, 32), groups=1, depth=2, offset=360),
]


def random_scorer(features: str, network_name: str = "mlp") -> Scorer:
    """A scorer with random weights and normalisation."""
    with global_stream(0, "tests"):
        scorer = Scorer(features, network_name)
        scorer.mean.normal_()
        scorer.std.uniform_(0.5, 2)
    return scorer


def network_features(name: str, layers: list[Layer] = LAYERS, seed: int = 0) -> NetworkFeatures:
    rng = torch.Generator().manual_seed(seed)
    weights = {layer.name: torch.randn(layer.shape, generator=rng) * 0.1 for layer in layers}
    gradients = {layer.name: torch.randn(layer.shape, generator=rng) * 0.01 for layer in layers}
    return NetworkFeatures(name, layers, weights, gradients, bypass={layer.name: 0.5 for layer in layers})


# Evaluation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network_name", ["mlp", "linear"])
@pytest.mark.parametrize("features", list(FEATURE_SETS))
@pytest.mark.parametrize("chunk", [1, 100, 16_384])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_the_fast_path_equals_the_plain_one(
    features: str, chunk: int, layer: Layer, network_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "CHUNK", chunk)  # output channels at a time: one, several, all
    scorer = random_scorer(features, network_name).eval()
    rows = network_features(features).layer(layer)
    found = scorer.score(rows)
    with torch.no_grad():
        expected = scorer(rows.matrix()).reshape(layer.shape)
    assert found.shape == layer.shape
    assert expected.std() > 1e-3  # the scores differ: equality is not for lack of anything to tell apart
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_published_network_scores_too() -> None:
    layer = Layer("tiny", "linear", (2, 3), groups=1, depth=0, offset=0)
    scorer = random_scorer("paper", "cnn")
    rows = network_features("paper", [layer]).layer(layer)
    scorer.train()
    found = scorer.score(rows)
    assert scorer.training
    with torch.no_grad():
        expected = scorer.eval()(rows.matrix()).reshape(2, 3)
    assert torch.allclose(found, expected, atol=1e-4)
    assert found.unique().numel() == 6


def test_scoring_restores_the_flag_and_takes_no_gradient() -> None:
    scorer = random_scorer("scale-free")
    scorer.train()
    rows = network_features("scale-free").layer(LAYERS[0])
    assert not scorer.score(rows).requires_grad
    assert scorer.training


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="feature set 'papers': did you mean paper"):
        Scorer("papers")
    with pytest.raises(UnknownNameError, match="scorer network 'mpl': did you mean mlp"):
        Scorer("paper", "mpl")


# Files --------------------------------------------------------------------------------------------------------------


def test_a_scorer_survives_the_disk_bit_by_bit(tmp_path: Path) -> None:
    scorer = random_scorer("scale-free")
    path = tmp_path / "mine.safetensors"
    save_scorer(path, scorer, {"held_out": {"r2": 0.5}})
    found = load_scorer(path)
    assert found.name == str(path)
    assert found.card == {"features": "scale-free", "network": "mlp", "held_out": {"r2": 0.5}}
    assert not found.scorer.training
    assert all(torch.equal(value, scorer.state_dict()[key]) for key, value in found.scorer.state_dict().items())
    # The weights file alone suffices.
    card_path(path).unlink()
    alone = load_scorer(str(path))
    assert alone.card == {"features": "scale-free", "network": "mlp"}
    rows = network_features("scale-free").layer(LAYERS[0])
    assert torch.equal(alone.scorer.score(rows), scorer.score(rows))


def test_pretrained_scorers_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_pretrained_folder", lambda: tmp_path)
    assert list_scorers() == []
    names = sorted({"b-set", *store.DEFAULT_SCORERS.values()})
    for name in names:
        save_scorer(tmp_path / f"{name}.safetensors", random_scorer("paper"), {})
    assert list_scorers() == names
    assert load_scorer().name == store.DEFAULT_SCORERS["weights"]
    assert load_scorer(use="channels").name == store.DEFAULT_SCORERS["channels"]
    assert load_scorer("b-set").scorer.feature_set == "paper"
    with pytest.raises(UnknownNameError, match="unknown scorer 'b-sat': did you mean b-set"):
        load_scorer("b-sat")
    with pytest.raises(FileFormatError, match="does not exist"):
        load_scorer("folder/absent.safetensors")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"features": "quantum", "network": "mlp"}, r"feature set 'quantum'.*known: paper, scale-free"),
        ({"network": "mlp"}, r"feature set None.*known: paper, scale-free"),
        ({"features": ["paper"], "network": "mlp"}, "feature set"),
        ({"features": "paper", "network": "gpt"}, r"scorer network 'gpt'.*known: cnn, linear, mlp"),
        ({"features": "paper", "network": None}, "scorer network None"),
        ({"features": "paper", "network": "mlp"}, r"does not hold the 2-feature 'mlp' scorer"),
    ],
)
def test_a_file_that_names_something_unknown_is_refused(
    metadata: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.safetensors"
    save_tensors(path, "scorer", random_scorer("scale-free").state_dict(), metadata)
    with pytest.raises(AutoSparseError, match=message):
        load_scorer(path)


def test_a_damaged_or_foreign_scorer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    save_scorer(path, random_scorer("paper"), {})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileFormatError, match="damaged"):
        load_scorer(path)
    save_tensors(path, "masks", {"a": torch.ones(2)}, {})
    with pytest.raises(FileFormatError, match="no scorer file"):
        load_scorer(path)


# Figures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "label", "fraction", "overlap"),
    [
        ([4, 3, 2, 1], [4, 3, 2, 1], 0.5, 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], 0.5, 0.0),
        ([4, 1, 3, 2], [4, 3, 2, 1], 0.5, 0.5),  # chosen: labels 4 and 2
        ([4, 3, 2, 1], [5, 1, 1, 1], 0.5, (1 + 1 / 3) / 2),  # one tied place for three: each is right by a third
        ([1, 2, 3, 4], [5, 1, 1, 1], 0.5, 2 / 3 / 2),
        ([1, 1, 1, 1], [4, 3, 2, 1], 0.5, 1.0),  # tied predictions count in order of position
        ([1, 1, 1, 1], [1, 2, 3, 4], 0.5, 0.0),
        ([1, 2, 3, 4], [7, 7, 7, 7], 0.25, 0.25),
        ([1, 2, 3, 4], [1, 2, 3, 4], 0.01, 1.0),  # at least one weight
    ],
)
def test_top_overlap_by_hand(predicted: list[float], label: list[float], fraction: float, overlap: float) -> None:
    assert top_overlap(np.array(predicted, float), np.array(label, float), fraction) == pytest.approx(overlap)


def test_a_perfect_prediction_has_perfect_figures() -> None:
    label = np.random.default_rng(0).permutation(2000) / 2000
    assert compare(label, label).r2 == 1
    assert compare(label, label).overlap == {"5%": 1.0, "2%": 1.0, "1%": 1.0}
    assert compare(label, label).spearman == pytest.approx(1)
    assert compare(-label, label).spearman == pytest.approx(-1)


def test_constant_predictions_and_labels_give_numbers() -> None:
    label = np.array([0.0, 0.5, 1.0])
    figures = compare(np.ones(3), label)
    assert figures.spearman == 0
    assert figures.r2 < 0
    assert compare(label, np.ones(3)).spearman == 0
    assert json.dumps([figures.r2, figures.overlap])


def test_a_baseline_is_judged_after_the_best_monotone_map() -> None:
    rng = np.random.default_rng(0)
    fit, held = rng.uniform(0, 1, 500), rng.uniform(0, 1, 500)
    figures = compare_baseline(held * 1000, held**3, fit * 1000, fit**3)
    assert figures.r2 > 0.999
    assert figures.spearman == pytest.approx(1)
    assert compare(held * 1000, held**3).r2 < -100  # without the map the scale alone would condemn it


# Fitting ------------------------------------------------------------------------------------------------------------

SHAPES: list[tuple[int, ...]] = [
    (32, 16, 3, 3),
    (16, 32, 3, 3),
    (60, 64),
    (32, 32, 3, 3),
    (64, 60),
    (24, 24, 3, 3),
    (48, 48),
]


def synthetic_run(seed: int = 0, rounds: int = 24) -> IRPRun:
    """Survival is a monotone function of |w| / σ, σ the layer's deviation, which differs from layer to layer."""
    rng = np.random.default_rng(seed)
    layers: list[Layer] = []
    values, survived = [], []
    for depth, shape in enumerate(SHAPES):
        size = int(np.prod(shape))
        offset = sum(layer.size for layer in layers)
        layers.append(Layer(f"l{depth}", "conv2d" if len(shape) == 4 else "linear", shape, 1, depth, offset))
        w = rng.normal(0, 10.0 ** rng.uniform(-2, 0), size).astype(np.float32)
        values.append(w)
        survived.append(np.minimum(rounds, rounds * np.abs(w / w.std()) / 2.5).astype(np.uint16))
    gradient = rng.normal(0, 0.01, sum(map(len, values))).astype(np.float32)
    return IRPRun(
        name=f"run{seed}",
        config={"rounds": rounds, "seed": seed},
        provenance={},
        data={"name": "none"},
        layers=layers,
        initial_value=np.concatenate(values),
        initial_gradient=gradient,
        rounds_survived=np.concatenate(survived),
        rounds=np.zeros(0),
        states={},
    )


QUICK = FitConfig(epochs=15, batch_size=256, lr=5e-3, refit=False)


def test_examples_are_rows_in_order_of_run_layer_and_position() -> None:
    runs = [synthetic_run(0), synthetic_run(1)]
    data = examples(runs, "paper")
    total = len(runs[0].initial_value)
    assert len(data) == 2 * total
    assert torch.equal(data.x[:total, 0], torch.from_numpy(runs[0].initial_value))
    assert torch.equal(data.x[total:, 1], torch.from_numpy(runs[1].initial_gradient))
    assert data.y.tolist() == pytest.approx(
        [*(runs[0].rounds_survived / 24).tolist(), *(runs[1].rounds_survived / 24).tolist()]
    )
    assert (np.bincount(data.run) == total).all()
    assert np.bincount(data.layer[:total]).tolist() == [int(np.prod(shape)) for shape in SHAPES]
    w, g = data.x.T.numpy()
    assert np.array_equal(data.snip, np.abs(w * g))
    assert np.array_equal(data.magnitude, np.abs(w))


def groups_data(run: list[int], layer: list[int]) -> Examples:
    n = len(run)
    zeros = np.zeros(n)
    return Examples(torch.zeros(n, 2), torch.zeros(n), np.array(run), np.array(layer), zeros, zeros)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("holdout", ["auto", "run", "layer"])
def test_groups_are_never_split(holdout: str, seed: int) -> None:
    data = groups_data([0] * 50 + [1] * 50 + [2] * 50, (list(range(5)) * 10) * 3)
    fit, held, kind = split_groups(data, FitConfig(holdout=holdout, seed=seed))
    assert kind == ("layer" if holdout == "layer" else "run")
    groups = data.layer if kind == "layer" else data.run
    assert sorted([*fit, *held]) == list(range(150))
    assert len(held) > 0
    assert len(fit) > 0
    # Also over runs: layers of the same depth stay together.
    assert not set(groups[fit]) & set(groups[held])


def test_a_single_run_holds_out_layers_and_a_single_layer_nothing() -> None:
    assert split_groups(groups_data([0] * 6, [0, 0, 1, 1, 2, 2]), FitConfig())[2] == "layer"
    with pytest.raises(AutoSparseError, match="cannot hold out a run: there is only one; give several runs"):
        split_groups(groups_data([0] * 6, [0, 0, 1, 1, 2, 2]), FitConfig(holdout="run"))
    with pytest.raises(AutoSparseError, match="cannot hold out a layer: there is only one"):
        split_groups(groups_data([0] * 6, [0] * 6), FitConfig())


def test_a_scorer_finds_relative_magnitude_and_beats_raw_magnitude() -> None:
    fitted = fit_scorer([synthetic_run()], QUICK)
    assert fitted.figures["scorer"].spearman > 0.95
    assert fitted.figures["scorer"].r2 > 0.9
    assert fitted.figures["scorer"].spearman > fitted.figures["magnitude"].spearman
    assert fitted.card["held_out"]["kind"] == "layer"
    assert fitted.card["held_out"]["weights"] == len(fitted.heldout_label) == len(fitted.heldout_predicted)
    held = fitted.card["held_out"]["groups"]
    data = examples([synthetic_run()], "scale-free")
    rows = np.isin(data.layer, held)
    assert np.array_equal(fitted.heldout_label, data.y.numpy()[rows])
    assert np.allclose(predict(fitted.scorer, data.x[rows]), fitted.heldout_predicted, atol=1e-5)
    json.dumps(fitted.card, allow_nan=False)


@pytest.mark.parametrize("loss", LOSSES.names())
def test_every_loss_finds_the_order_of_survival(loss: str) -> None:
    fitted = fit_scorer([synthetic_run()], replace(QUICK, loss=loss))
    assert fitted.figures["scorer"].spearman > 0.95
    assert fitted.figures["scorer"].spearman > fitted.figures["magnitude"].spearman
    assert fitted.card["config"]["loss"] == loss


def test_losses_by_hand() -> None:
    logits, survival = torch.tensor([0.0, math.log(3), 2.0, 5.0]), torch.tensor([1.0, 0.5, 0.5, 0.5])
    shares = logits.sigmoid()
    assert float(LOSSES.get("regression")(logits, survival)) == pytest.approx(float(((shares - survival) ** 2).mean()))
    cross = -(survival * shares.log() + (1 - survival) * (1 - shares).log()).mean()
    assert float(LOSSES.get("classification")(logits, survival)) == pytest.approx(float(cross), rel=1e-5)
    # Pairs (0, 2) and (1, 3); those of the second survive equally long.
    assert float(LOSSES.get("ranking")(logits, survival)) == pytest.approx(math.log(1 + math.exp(2)), rel=1e-5)
    assert float(LOSSES.get("ranking")(logits, torch.ones(4))) == 0
    with pytest.raises(UnknownNameError, match="unknown loss 'rank': did you mean ranking"):
        FitConfig(loss="rank")


def test_with_two_runs_a_whole_run_is_held_out() -> None:
    runs = [synthetic_run(0), synthetic_run(1)]
    fitted = fit_scorer(runs, QUICK)
    assert fitted.card["held_out"]["kind"] == "run"
    (held,) = fitted.card["held_out"]["groups"]
    assert fitted.heldout_label.tolist() == pytest.approx((runs[held].rounds_survived / 24).tolist())
    assert fitted.figures["scorer"].spearman > 0.95
    # Normalisation is that of the other run alone.
    expected = examples([runs[1 - held]], "scale-free").x.mean(dim=0)
    assert torch.allclose(fitted.scorer.mean, expected, atol=1e-6)


def state(fitted_with: FitConfig) -> dict[str, Tensor]:
    return fit_scorer([synthetic_run()], fitted_with).scorer.state_dict()


def test_one_seed_gives_one_scorer() -> None:
    config = FitConfig(epochs=2, batch_size=256, seed=3, refit=True)
    torch.manual_seed(0)
    first = state(config)
    torch.manual_seed(1)
    rng = torch.get_rng_state()
    again = state(config)
    assert torch.equal(torch.get_rng_state(), rng)
    other = state(FitConfig(epochs=2, batch_size=256, seed=4, refit=True))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["network.input.weight"], other["network.input.weight"])


def test_after_measuring_the_scorer_is_fitted_on_everything() -> None:
    whole = examples([synthetic_run()], "scale-free")
    fitted = fit_scorer([synthetic_run()], FitConfig(epochs=1, refit=True))
    assert torch.allclose(fitted.scorer.mean, whole.x.mean(dim=0))
    assert "fitted again on everything" in fitted.card["held_out"]["note"]
    assert fitted.scorer.std.min() > 0


def test_progress_is_told_and_few_weights_suffice() -> None:
    told: list[tuple[int, int]] = []
    config = FitConfig(epochs=3, max_weights=50, batch_size=100, refit=False)
    fit_scorer([synthetic_run()], config, lambda epoch, epochs, loss: told.append((epoch, epochs)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_no_runs_are_refused() -> None:
    with pytest.raises(AutoSparseError, match="no IRP run was given"):
        fit_scorer([], FitConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "scale"}, "unknown feature set"),
        ({"network": "mpl"}, "unknown scorer network"),
        ({"holdout": "layers"}, "unknown holdout 'layers': did you mean layer"),
        ({"epochs": 0}, "epochs is 0: give 1 or more"),
        ({"batch_size": 1}, "batch-size is 1"),
        ({"max_weights": 0}, "max-weights is 0"),
        ({"holdout_fraction": 1.0}, "holdout-fraction is 1.0"),
        ({"holdout_fraction": float("nan")}, "holdout-fraction is nan"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": float("nan")}, "lr is nan"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(AutoSparseError, match=message):
        FitConfig(**settings)  # type: ignore[arg-type]
