"""Speed and memory of scoring VGG-16's 14.7 million weights, and the speed of the published CNN scorer beside it.

    python benchmarks/scoring.py

Scoring means everything but the gradients: the features of every layer and the scorer over them. "Memory" is the rise
of a fresh process's peak resident memory while it scores, over the weights' own 4 bytes each; the scores, which are
as large as the weights, are part of it.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import torch
from common import Spread, interleave, number, options, parse, ratios, seconds, table
from torch import Tensor, nn

from autosparse.cost import measured
from autosparse.features import NetworkFeatures
from autosparse.layers import Layer, layers_of, prunable, total_weights
from autosparse.models import seeded_model
from autosparse.scorer.network import Scorer

FEATURES = ("scale-free", "paper")


@dataclass(frozen=True)
class Task:
    """A network's weights to be scored, with made-up gradients: their values do not matter to the time."""

    layers: list[Layer]
    weights: dict[str, nn.Parameter]
    gradients: dict[str, Tensor]

    @staticmethod
    def of(model: nn.Module) -> Task:
        weights, random = prunable(model), torch.Generator().manual_seed(0)
        gradients = {name: torch.randn(weight.shape, generator=random) for name, weight in weights.items()}
        return Task(layers_of(model), weights, gradients)

    @property
    def size(self) -> int:
        return total_weights(self.layers)

    def score(self, scorer: Scorer) -> dict[str, Tensor]:
        features = NetworkFeatures(scorer.feature_set, self.layers, self.weights, self.gradients)
        return {layer.name: scorer.score(features.layer(layer)) for layer in self.layers}

    def rate(self, scorer: Scorer) -> float:
        """Weights a second."""
        return self.size / seconds(lambda: self.score(scorer))


def vgg16() -> nn.Module:
    return seeded_model("vgg16", seed=0, num_classes=10)


def memory_of_this_process(features: str) -> float:
    """Bytes by which peak memory rises while scoring, over the weights' bytes. Needs a process without a past."""
    scorer, task = Scorer(features), Task.of(vgg16())
    Task.of(nn.Linear(64, 64)).score(scorer)
    with measured() as cost:
        scores = task.score(scorer)  # as in pruning, the scores of all layers are alive at the end
    if cost.peak_bytes is None:
        raise SystemExit("the peak memory of a process cannot be measured on this system")
    return cost.peak_bytes / (4 * sum(score.numel() for score in scores.values()))


def memory(features: str, threads: int) -> float:
    command = [sys.executable, __file__, "--memory-of", features, "--threads", str(threads), "--bare"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = options(__doc__, repeats=7)
    parser.add_argument("--cnn-weights", type=int, default=256, help="weights that the CNN scores in a repeat")
    parser.add_argument("--memory-of", choices=FEATURES, help="only measure the memory of this process")
    parsed = parse(parser)
    if parsed.memory_of:
        print(memory_of_this_process(parsed.memory_of))
        return
    network, few = Task.of(vgg16()), Task.of(nn.Linear(parsed.cnn_weights // 16, 16))
    scorers, cnn = {name: Scorer(name) for name in FEATURES}, Scorer("paper", "cnn")
    variants = {"cnn": partial(few.rate, cnn)}
    variants |= {name: partial(network.rate, scorer) for name, scorer in scorers.items()}
    rates = interleave(variants, parsed.repeats)
    used = {name: Spread.of([memory(name, parsed.threads) for _ in range(min(3, parsed.repeats))]) for name in FEATURES}
    print("## Scoring\n")
    print(f"{network.size:,} weights of VGG-16 (CIFAR), {few.size:,} for the CNN; {parsed.repeats} repeats in turn.\n")
    rows = [
        [f"{name}, mlp", Spread.of(rates[name]), ratios(rates[name], rates["cnn"]), used[name]] for name in FEATURES
    ]
    rows.append(["paper, cnn (as published)", Spread.of(rates["cnn"]), number(1), "not measured"])
    print(table(["scorer", "weights/s", "over the CNN", "peak memory / weights' bytes"], rows))


if __name__ == "__main__":
    main()
