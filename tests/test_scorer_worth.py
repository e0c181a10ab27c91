"""What scorers are for: to rank weights of networks they have not seen, and to prune these better than chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from autosparse.cli import main
from autosparse.data import ImageData, load_data
from autosparse.models import seeded_model
from autosparse.pruning import prune, score_batches
from autosparse.scorer.search import SCALES, SearchConfig, Surrogate
from autosparse.scorer.trial_file import TrialFile
from autosparse.scorer.trials import Task
from autosparse.training import TrainConfig, evaluate, train

pytestmark = pytest.mark.slow


def test_a_scorer_of_a_tiny_irp_file_ranks_a_held_out_run_better_than_magnitude_and_snip(tmp_path: Path) -> None:
    runs, scorer = tmp_path / "irp.h5", tmp_path / "scorer.safetensors"
    for seed in (1, 2):
        generate = ["generate", "--model", "resnet20", "--model-arg", "width=0.25", "--dataset", "digits",
                    "--image-size", "16", "--rounds", "4", "--final-density", "0.1", "--epochs", "3", "--lr", "0.5",
                    "--batch-size", "64", "--score-images", "256", "--seed", str(seed), "--device", "cpu",
                    "--out", str(runs)]  # fmt: skip
        assert main(generate + ["--append"] * (seed > 1)) == 0
    assert main(["train-scorer", str(runs), "--holdout", "run", "--out", str(scorer)]) == 0
    held_out = json.loads(scorer.with_suffix(".json").read_text())["held_out"]
    assert held_out["kind"] == "run"
    ranks = {name: figures["spearman"] for name, figures in held_out["figures"].items()}
    assert ranks["scorer"] > max(ranks["magnitude"], ranks["snip"])


def accuracy(method: str, network: tuple[str, float, float], data: ImageData, seed: int) -> float:
    """On test images, of a network (name, width, density) that the default scorer has never seen."""
    name, width, density = network
    model = seeded_model(name, seed=seed, num_classes=10, in_channels=data.channels, width=width)
    batches = score_batches(data, seed=seed, images=1280)
    pruned = prune(model, batches, sparsity=1 - density, method=method, num_batches=None, seed=seed)
    train(model, data, TrainConfig(epochs=8, seed=seed), masks=pruned.masks, device="cpu", validate=False)
    return evaluate(model, data.test)


def test_the_default_scorer_prunes_networks_it_never_saw_better_than_chance() -> None:
    data = load_data("digits", image_size=16)
    networks = [("vgg16", 0.25, 0.01), ("wrn-16-2", 0.5, 0.01)]
    by_scorer, by_chance = (
        [accuracy(method, network, data, seed) for network in networks for seed in (1, 2)]
        for method in ("autos", "random")
    )
    assert np.mean(by_scorer) > np.mean(by_chance)


@pytest.mark.parametrize("name", ["cifar10-digits", "cifar10-flow", "cifar10-long", "cifar10-search"])
def test_a_pretrained_scorer_is_the_best_of_the_trials_that_are_kept_beside_it(name: str) -> None:
    folder = Path(__file__).parent.parent / "pretrained"
    card = json.loads((folder / f"{name}.json").read_text())
    search = SearchConfig(**{**card["search"], "tasks": tuple(Task(**task) for task in card["search"]["tasks"])})
    file = TrialFile(folder / f"{name}.jsonl", search)
    assert len(file.trials) == search.trials
    best = Surrogate(file.in_order(), search.names, search.seed).best()
    slopes = {name: weight / SCALES[name] for name, weight in zip(search.names, best.tolist(), strict=True)}
    assert slopes == pytest.approx(card["slopes"], abs=0.05)
