"""What AutoS costs over SNIP: the command ``autosparse prune`` on VGG-16 with each, and where the time goes.

    python benchmarks/prune_time.py

Both methods look at the gradients of as many images. AutoS divides them among rounds of draws, runs its scorer in each,
and keeps only weights on paths.
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

from autosparse.budget import keep_count, select
from autosparse.connectivity import is_connected
from autosparse.criteria import Scores, score
from autosparse.data import load_data
from autosparse.layers import layers_of, total_weights
from autosparse.masks import Masks
from autosparse.models import seeded_model
from autosparse.paths import select_on_paths
from autosparse.pruning import score_batches
from autosparse.scorer.store import load_scorer
from autosparse.seeding import generator

SPARSITY = 0.98
METHODS = ("autos", "snip")


def command_time(method: list[str], images: int, folder: Path, threads: int) -> float:
    """Wall time of the whole command, interpreter and files included."""
    command = [sys.executable, "-m", "autosparse", "prune", "--model", "vgg16", "--sparsity", str(SPARSITY), *method]
    command += ["--score-images", str(images), "--data-dir", str(folder / "data")]
    command += ["--device", "cpu", "--force", "--out", str(folder / "pruned")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return seconds(lambda: subprocess.run(command, check=True, capture_output=True, env=environment))


class Stages:
    """The steps of pruning, one at a time in this process."""

    def __init__(self, images: int) -> None:
        self.model = seeded_model("vgg16", seed=0, num_classes=10)
        self.layers = layers_of(self.model)
        self.keep = keep_count(total_weights(self.layers), SPARSITY)
        self.batches = score_batches(load_data("digits"), seed=0, images=images)
        self.scorer = load_scorer().scorer
        self.by = {method: self.scores(method) for method in METHODS}
        self.masks = self.selection()

    def scores(self, method: str) -> Scores:
        """Gradients included."""
        return score(
            method, self.model, batches=self.batches, loss_fn=F.cross_entropy, keep=self.keep, scorer=self.scorer,
            generator=generator(0, "scores"),
        )  # fmt: skip

    def selection(self) -> Masks:
        return select(self.by["snip"], self.layers, self.keep)

    def selection_on_paths(self) -> Masks:
        return select_on_paths(self.model, self.by["autos"], self.layers, self.keep, self.batches[0][0])

    def connectivity(self) -> bool:
        return is_connected(self.model, self.masks, self.batches[0][0])

    def timings(self, repeats: int) -> dict[str, list[float]]:
        stages: dict[str, Callable[[], object]] = {
            "scores of autos, gradients included": partial(self.scores, "autos"),
            "scores of snip, gradients included": partial(self.scores, "snip"),
            "selection on paths (autos)": self.selection_on_paths,
            "selection (snip)": self.selection,
            "connectivity check": self.connectivity,
        }
        timers = {name: partial(seconds, stage) for name, stage in stages.items()}
        return interleave(timers, repeats, warm_up=False)  # building the object was the warm-up


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--images", type=int, default=1280, help="images that the gradient is averaged over")
    parsed = parse(parser)
    with tempfile.TemporaryDirectory() as name:
        commands = {
            method: partial(command_time, ["--method", method], parsed.images, Path(name), parsed.threads)
            for method in METHODS
        }
        whole = interleave(commands, parsed.repeats, warm_up=not parsed.quick)
    stages = Stages(parsed.images).timings(parsed.repeats)
    print("## Time of pruning\n")
    print(f"VGG-16 (CIFAR), sparsity {SPARSITY}, {parsed.images} images of digits; {parsed.repeats} repeats in turn.\n")
    rows = [[Spread.of(whole["autos"]), Spread.of(whole["snip"]), ratios(whole["autos"], whole["snip"])]]
    print(table(["`autosparse prune`, autos, s", "snip, s", "autos / snip"], rows))
    print(table(["stage in one process", "s"], [[name, Spread.of(values)] for name, values in stages.items()]))


if __name__ == "__main__":
    main()
