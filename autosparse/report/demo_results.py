"""What ``autosparse demo`` found, and the rows of its table of accuracies."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autosparse.scorer.dataset import IRPRun
from autosparse.scorer.fit import FittedScorer

_LABELS = {"autos": "AutoS", "snip": "SNIP", "magnitude": "magnitude", "random": "random, ERK", "dense": "dense"}


@dataclass(frozen=True)
class DemoResults:
    """The demo's path from the tickets of one network to the accuracies of another.

    Args:
        run: iterative rewind pruning of the source.
        fitted: the scorer that learned from it.
        target: the network that was pruned, in words.
        density: to which it was pruned.
        epochs: for which it was trained.
        seeds: of the target.
        accuracies: method (or ``dense``) -> test accuracy of each seed.
        densities: method -> layer -> density, of the first seed.
    """

    run: IRPRun
    fitted: FittedScorer
    target: str
    density: float
    epochs: int
    seeds: Sequence[int]
    accuracies: Mapping[str, Sequence[float]]
    densities: Mapping[str, Mapping[str, float]]

    @property
    def header(self) -> tuple[str, ...]:
        return ("method", "density", "test accuracy", *(f"seed {seed}" for seed in self.seeds))

    def rows(self) -> list[tuple[str, ...]]:
        """Of the table of accuracies: mean, standard deviation, and each seed."""
        return [
            (
                _LABELS[name],
                "100%" if name == "dense" else f"{self.density:.0%}",
                f"{statistics.mean(values):.1%} ± {statistics.stdev(values):.1%}",
                *(f"{accuracy:.1%}" for accuracy in values),
            )
            for name, values in self.accuracies.items()
        ]
