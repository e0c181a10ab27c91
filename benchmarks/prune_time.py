"""What AutoS costs over SNIP: the command ``autosparse prune`` on VGG-16 with each, and where the time goes.

    python benchmarks/prune_time.py

Both methods average the same gradients over the same images; only AutoS then runs its scorer. With no pretrained
scorer at hand, one with random weights is used: it takes the same time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch.nn.functional as F
from common import Spread, interleave, options, parse, ratios, seconds, table
from torch import Tensor

from autosparse.budget import keep_count, select
from autosparse.connectivity import is_connected
from autosparse.criteria import mean_gradient
from autosparse.data import load_data
from autosparse.features import NetworkFeatures
from autosparse.layers import layers_of, prunable, total_weights
from autosparse.models import seeded_model
from autosparse.pruning import score_batches
from autosparse.scorer.network import Scorer
from autosparse.scorer.store import DEFAULT_SCORERS, list_scorers, load_scorer, save_scorer

SPARSITY = 0.98


def scorer_file(folder: Path) -> str:
    """The default scorer's name, or a file with one of random weights."""
    if DEFAULT_SCORERS["weights"] in list_scorers():
        return DEFAULT_SCORERS["weights"]
    path = folder / "random.safetensors"
    save_scorer(path, Scorer("scale-free"), {"note": "random weights"})
    return str(path)


def command_time(method: list[str], images: int, folder: Path, threads: int) -> float:
    """Wall time of the whole command, interpreter and files included."""
    command = [sys.executable, "-m", "autosparse", "prune", "--model", "vgg16", "--sparsity", str(SPARSITY), *method]
    command += ["--score-images", str(images), "--data-dir", str(folder / "data")]
    command += ["--device", "cpu", "--force", "--out", str(folder / "pruned")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True, env=environment))


class Stages:
    """The steps of pruning, one at a time in this process."""

    def __init__(self, images: int, scorer: Scorer) -> None:
        self.model = seeded_model("vgg16", seed=0, num_classes=10)
        self.layers, self.weights = layers_of(self.model), prunable(self.model)
        self.batches = score_batches(load_data("digits"), seed=0, images=images)
        self.scorer = scorer
        self.gradients = self.gradient()
        self.scores = self.autos()
        self.masks = self.selection()

    def gradient(self) -> dict[str, Tensor]:
        return mean_gradient(self.model, self.batches, F.cross_entropy)

    def autos(self) -> dict[str, Tensor]:
        features = NetworkFeatures(self.scorer.feature_set, self.layers, self.weights, self.gradients)
        return {layer.name: self.scorer.score(features.layer(layer)) for layer in self.layers}

    def snip(self) -> dict[str, Tensor]:
        return {name: (weight.detach() * self.gradients[name]).abs() for name, weight in self.weights.items()}

    def selection(self) -> dict[str, Tensor]:
        return dict(select(self.scores, self.layers, keep_count(total_weights(self.layers), SPARSITY)))

    def connectivity(self) -> bool:
        return is_connected(self.model, self.masks, self.batches[0][0])

    def timings(self, repeats: int) -> dict[str, list[float]]:
        stages: dict[str, Callable[[], object]] = {
            "gradient": self.gradient,
            "scoring, autos": self.autos,
            "scoring, snip": self.snip,
            "selection": self.selection,
            "connectivity check": self.connectivity,
        }
        timers = {name: partial(seconds, stage) for name, stage in stages.items()}
        return interleave(timers, repeats, warm_up=False)  # building the object was the warm-up


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--images", type=int, default=1280, help="images that the gradient is averaged over")
    parsed = parse(parser)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scorer = scorer_file(folder)
        methods = {"autos": ["--method", "autos", "--scorer", scorer], "snip": ["--method", "snip"]}
        commands = {
            method: partial(command_time, flags, parsed.images, folder, parsed.threads)
            for method, flags in methods.items()
        }
        whole = interleave(commands, parsed.repeats, warm_up=not parsed.quick)
        stages = Stages(parsed.images, load_scorer(scorer).scorer).timings(parsed.repeats)
    shared = [sum(each) for each in zip(*(stages[key] for key in stages if "scoring" not in key), strict=True)]
    autos, snip = (
        [a + b for a, b in zip(shared, stages[f"scoring, {method}"], strict=True)] for method in ("autos", "snip")
    )
    print("## Time of pruning\n")
    print(f"VGG-16 (CIFAR), sparsity {SPARSITY}, {parsed.images} images of digits; {parsed.repeats} repeats in turn.\n")
    rows = [
        ["`autosparse prune`, whole command", Spread.of(whole["autos"]), Spread.of(whole["snip"]),
         ratios(whole["autos"], whole["snip"])],
        ["the stages below", Spread.of(autos), Spread.of(snip), ratios(autos, snip)],
    ]  # fmt: skip
    print(table(["", "autos, s", "snip, s", "autos / snip"], rows))
    print(table(["stage in one process", "s"], [[name, Spread.of(values)] for name, values in stages.items()]))


if __name__ == "__main__":
    main()
