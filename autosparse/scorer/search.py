"""The scorer whose networks train best, found by trials.

Candidates, linear scorers, are tried on small tasks, one short training a task. A Gaussian process learns the mean loss
over the tasks from a candidate's weights; where it may be lowest, the next candidates are taken (Thompson sampling:
each minimises a function drawn from the posterior). The scorer in the end has the lowest posterior mean plus standard
deviation: no single lucky trial counts, and nothing that is far from all trials.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from autosparse.features import feature_set
from autosparse.scorer.network import Linear, Scorer
from autosparse.scorer.trials import Task
from autosparse.seeding import derive_seed

#: About the standard deviation of each feature over the layers of image classifiers on their way to one per cent: a
#: weight of the scorer says what so much more of the feature adds to the logarithm of the odds.
SCALES = {
    "log|z|": 1.2,
    "log|h|": 1.6,
    "log out share": 0.7,
    "log in share": 0.7,
    "log fan-in": 1.2,
    "log fan-out": 1.2,
    "relative depth": 0.3,
    "kernel size": 0.7,
    "log share of weights": 1.6,
    "log gradient scale / network's": 1.1,
    "log weight scale / network's": 0.4,
    "log density / network's": 1.0,
    "bypass": 0.25,
    "bypass * log density": 0.4,
}

_POOL = 1024  # places among which a drawn function is minimised
_STARTS = 5  # of the descent to the lowest posterior mean
_FAR = 3.0  # standard deviations beyond which losses do not differ


@dataclass(frozen=True)
class SearchConfig:
    """How a scorer is searched.

    Args:
        tasks: to try every candidate on.
        seeds: of the candidates' trials, in turn.
        generations: how often the trials are looked at before the next are made.
        candidates: of a generation.
        start: feature -> its slope, for the first generation's centre; 0 for the others.
        spread: standard deviation of the weights that are tried around the best known ones.
        features: feature set, ``flow`` or ``state``.
    """

    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]
    generations: int = 20
    candidates: int = 8
    start: tuple[tuple[str, float], ...] = (("log|z|", 0.5), ("log|h|", 0.5), ("log share of weights", -0.5))
    spread: float = 0.35
    seed: int = 0
    features: str = "flow"

    @property
    def trials(self) -> int:
        """How many trials there are in all."""
        return self.generations * self.candidates * len(self.tasks)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features."""
        return feature_set(self.features).names

    @property
    def centre(self) -> np.ndarray:
        """The weights that the search starts from."""
        slopes = dict(self.start)
        return np.array([slopes.get(name, 0.0) * SCALES[name] for name in self.names])


@dataclass(frozen=True)
class Trial:
    """A trial that was made: which candidate of which weights on which task, and the loss that came out."""

    generation: int
    candidate: int
    task: int
    seed: int
    weights: tuple[float, ...]
    loss: float


def scorer_of(weights: Sequence[float], features: str = "flow") -> Scorer:
    """The linear scorer with these weights of the features in units of :data:`SCALES`."""
    scorer = Scorer(features, "linear")
    assert isinstance(scorer.network, Linear)
    with torch.no_grad():
        scorer.std.copy_(torch.tensor([SCALES[name] for name in feature_set(features).names]))
        scorer.network.first.weight.copy_(torch.tensor([list(weights)]))
        scorer.network.first.bias.zero_()
    return scorer.eval()


class Surrogate:
    """What trials say of the mean loss over the tasks, in standard deviations of the trials of one task.

    Args:
        trials: of every candidate on every task.
        names: of the features.
    """

    def __init__(self, trials: Sequence[Trial], names: Sequence[str], seed: int) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

        self._names = names
        candidates = sorted({(trial.generation, trial.candidate): trial.weights for trial in trials}.items())
        self._x = np.array([weights for _, weights in candidates])
        self._best: dict[str | None, np.ndarray] = {}
        standard = _standardised(trials)
        losses: dict[tuple[int, int], list[float]] = {key: [] for key, _ in candidates}
        for trial, loss in zip(trials, standard, strict=True):
            losses[trial.generation, trial.candidate].append(loss)
        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(np.full(len(names), 2.0), (0.3, 5.0)) + WhiteKernel(
            1.0, (1e-2, 1e1)
        )
        self._process = GaussianProcessRegressor(kernel, random_state=derive_seed(seed, "surrogate") % 2**32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: a feature without effect
            self._process.fit(self._x, np.array([np.mean(found) for found in losses.values()]))

    def at(self, weights: np.ndarray) -> tuple[float, float]:
        """Posterior mean of the loss, and its standard deviation."""
        mean, deviation = self._process.predict(weights[None], return_std=True)
        noise = float(np.exp(self._process.kernel_.theta[-1]))
        return float(mean[0]), float(np.sqrt(max(0.0, deviation[0] ** 2 - noise)))

    def best(self, without: str | None = None) -> np.ndarray:
        """The weights of the lowest posterior mean plus standard deviation between the extremes that were tried.

        Args:
            without: a feature whose weight is to be zero.
        """
        if without not in self._best:
            self._best[without] = self._lowest(without)
        return self._best[without]

    def _lowest(self, without: str | None) -> np.ndarray:
        from scipy.optimize import minimize

        used = np.array([name != without for name in self._names])
        low, high = self._x.min(axis=0) * used, self._x.max(axis=0) * used
        inside = self._x * used
        starts = inside[np.argsort([sum(self.at(x)) for x in inside], kind="stable")[:_STARTS]]
        bounds = list(zip(low, high, strict=True))
        ends = [minimize(lambda x: sum(self.at(x)), x, method="L-BFGS-B", bounds=bounds) for x in starts]
        return min(ends, key=lambda end: float(end.fun)).x

    def draws(self, count: int, spread: float, rng: np.random.Generator) -> np.ndarray:
        """``count`` weights, each the lowest of a function drawn from the posterior, around the best."""
        near = rng.standard_normal((_POOL, len(self._names))) * spread * rng.uniform(0, 1.5, (_POOL, 1))
        pool = self.best() + near
        functions = self._process.sample_y(pool, count, random_state=int(rng.integers(2**31)))
        return pool[functions.argmin(axis=0)]


def proposed(config: SearchConfig, generation: int, known: Surrogate | None) -> list[Trial]:
    """The trials of a generation, still without losses; a function of what is ``known`` from earlier ones."""
    rng = np.random.default_rng(derive_seed(config.seed, "generation", generation))
    if known is None:
        found = config.centre + rng.standard_normal((config.candidates, len(config.names))) * config.spread
    else:
        found = known.draws(config.candidates, config.spread, rng)
    rounded = [tuple(round(float(weight), 4) for weight in weights) for weights in found]
    first = generation * config.candidates
    return [
        Trial(generation, index, task, config.seeds[(first + index) % len(config.seeds)], weights, float("nan"))
        for index, weights in enumerate(rounded)
        for task in range(len(config.tasks))
    ]


def search(
    config: SearchConfig,
    known: Sequence[Trial],
    measure: Callable[[Sequence[Trial]], Iterable[tuple[Trial, float]]],
    record: Callable[[Trial], None],
    progress: Callable[[int, Surrogate], None] = lambda generation, surrogate: None,
) -> tuple[list[Trial], Surrogate]:
    """All trials of a search, in order, and what they say.

    Args:
        known: those that were made before, of this search; their candidates are tried on tasks that they lack.
        measure: gives the losses of trials, in any order.
        record: is told every new trial as soon as it is made.
        progress: is told the number of a generation that is over, and what is known then.
    """
    made = {_key(trial): trial for trial in known}
    tried = {(trial.generation, trial.candidate): trial.weights for trial in known}
    trials: list[Trial] = []
    surrogate: Surrogate | None = None
    for generation in range(config.generations):
        wanted = [
            replace(trial, weights=tried.get((trial.generation, trial.candidate), trial.weights))
            for trial in proposed(config, generation, surrogate)
        ]
        for trial, loss in measure([trial for trial in wanted if _key(trial) not in made]):
            done = replace(trial, loss=loss)
            made[_key(trial)] = done
            record(done)
        trials += [made[_key(trial)] for trial in wanted]
        surrogate = Surrogate(trials, config.names, config.seed)
        progress(generation, surrogate)
    assert surrogate is not None, "a search has a generation"
    return trials, surrogate


def _key(trial: Trial) -> tuple[int, int, int]:
    return trial.generation, trial.candidate, trial.task


def _standardised(trials: Sequence[Trial]) -> np.ndarray:
    """Losses less the median of their task and seed, over the deviation within their task.

    The deviation is that of normal losses of the same median absolute one, and no loss counts for more than three of
    them: some trials leave networks that cannot learn, and these must not set the scale for the others.
    """
    losses = np.array([trial.loss for trial in trials])
    task = np.array([trial.task for trial in trials])
    group = np.array([trial.seed for trial in trials])
    found = np.empty_like(losses)
    for index in np.unique(task):
        of_task = task == index
        for seed in np.unique(group[of_task]):
            rows = of_task & (group == seed)
            found[rows] = losses[rows] - np.median(losses[rows])
        found[of_task] /= max(1.4826 * float(np.median(np.abs(found[of_task]))), 1e-12)
    return np.clip(found, -_FAR, _FAR)
