"""Fitting a scorer to IRP runs, and measuring it on runs or layers that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.features import FEATURE_SETS, NetworkFeatures, feature_set
from autosparse.provenance import provenance
from autosparse.scorer.dataset import IRPRun
from autosparse.scorer.losses import LOSSES
from autosparse.scorer.metrics import Prediction, compare, compare_baseline
from autosparse.scorer.network import NETWORKS, Scorer
from autosparse.seeding import derive_seed, generator, global_stream

HOLDOUTS = ("auto", "run", "layer")
_STEPS = 80  # of an epoch, at least
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class FitConfig:
    """How a scorer is fitted.

    Args:
        features: feature set. network: ``linear``, ``mlp`` or ``cnn``.
        loss: ``regression`` of the survival as published, ``classification`` or ``ranking``
            (:mod:`autosparse.scorer.losses`).
        epochs, batch_size, lr: of Adam. Where a batch would be more than an eightieth of the weights it is made
            smaller, for a small file needs steps too.
        holdout: groups that are held out together: whole runs or whole layers; ``auto`` takes runs when there are
            several. Single weights are never split: neighbours share channel and layer features.
        holdout_fraction: share of the groups that is held out.
        refit: once measured, fit on everything; otherwise the saved scorer is the measured one.
        max_weights: fit on, and measure on, at most this many weights each, drawn at random from either side.
    """

    features: str = "scale-free"
    network: str = "mlp"
    loss: str = "regression"
    epochs: int = 10
    batch_size: int = 2048
    lr: float = 1e-3
    holdout: str = "auto"
    holdout_fraction: float = 0.25
    refit: bool = True
    max_weights: int = 2_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        feature_set(self.features)
        NETWORKS.get(self.network)
        LOSSES.get(self.loss)
        if self.holdout not in HOLDOUTS:
            raise UnknownNameError("holdout", self.holdout, HOLDOUTS)
        for name, low in (("epochs", 1), ("batch_size", 2), ("max_weights", 2)):
            if getattr(self, name) < low:
                raise AutoSparseError(f"{name.replace('_', '-')} is {getattr(self, name)}: give {low} or more")
        if not 0 < self.holdout_fraction < 1:
            raise AutoSparseError(f"holdout-fraction is {self.holdout_fraction}: give a number between 0 and 1")
        if not self.lr > 0:
            raise AutoSparseError(f"lr is {self.lr}: give a positive number")


@dataclass(frozen=True)
class Examples:
    """One row a weight: features ``x [n, columns]``, survival ``y [n]`` in [0, 1], the runs' and layers' index, and
    the scores that the scorer is compared with."""

    x: Tensor
    y: Tensor
    run: np.ndarray
    layer: np.ndarray
    magnitude: np.ndarray
    snip: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class FittedScorer:
    """A scorer, its held-out figures (``scorer``, ``magnitude``, ``snip``), predictions on the held-out weights."""

    scorer: Scorer
    figures: dict[str, Prediction]
    heldout_predicted: np.ndarray
    heldout_label: np.ndarray
    card: dict[str, Any]


def examples(runs: Sequence[IRPRun], features: str) -> Examples:
    """The weights of all runs as examples, in order of run, layer and position."""
    parts: list[tuple[Tensor, Tensor, np.ndarray, np.ndarray]] = []
    for index, run in enumerate(runs):
        weights, gradients = run.by_layer(run.initial_value), run.by_layer(run.initial_gradient)
        network = NetworkFeatures(features, run.layers, weights, gradients)
        x = torch.cat([network.layer(layer).matrix() for layer in run.layers])
        y = torch.from_numpy(run.rounds_survived.astype(np.float32) / run.num_rounds)
        layer = np.repeat([layer.depth for layer in run.layers], [layer.size for layer in run.layers])
        parts.append((x, y, np.full(len(y), index), layer))
    value = np.concatenate([run.initial_value for run in runs])
    gradient = np.concatenate([run.initial_gradient for run in runs])
    xs, ys, run_index, layers = zip(*parts, strict=True)
    return Examples(
        torch.cat(xs), torch.cat(ys), np.concatenate(run_index), np.concatenate(layers), np.abs(value),
        np.abs(value * gradient),
    )  # fmt: skip


def split_groups(data: Examples, config: FitConfig) -> tuple[np.ndarray, np.ndarray, str]:
    """Indices to fit on, indices held out, and what was held out (``run`` or ``layer``).

    Layers of the same depth index in different runs are one group, so that no run gives another's layer away.
    """
    from sklearn.model_selection import GroupShuffleSplit

    several = len(np.unique(data.run)) > 1
    kind = config.holdout if config.holdout != "auto" else ("run" if several else "layer")
    groups = data.run if kind == "run" else data.layer
    if len(np.unique(groups)) < 2:
        raise AutoSparseError(
            f"cannot hold out a {kind}: there is only one; "
            + ("give several runs or use --holdout layer" if kind == "run" else "give a run of a deeper network")
        )
    splitter = GroupShuffleSplit(1, test_size=config.holdout_fraction, random_state=derive_seed(config.seed) % 2**32)
    fit, held = next(splitter.split(groups, groups=groups))
    return fit, held, kind


def _subsample(rows: np.ndarray, config: FitConfig) -> np.ndarray:
    """At most ``config.max_weights`` of the rows, in their order."""
    keep = torch.randperm(len(rows), generator=generator(config.seed, "subsample"))[: config.max_weights]
    return rows[keep.sort().values.numpy()]


def _fit(data: Examples, rows: np.ndarray, config: FitConfig, progress: Progress) -> Scorer:
    """A scorer fitted to the given rows."""
    rows = _subsample(rows, config)
    x, y = data.x[rows], data.y[rows]
    with global_stream(config.seed, "scorer"):
        scorer = Scorer(config.features, config.network)
    scorer.mean.copy_(x.mean(dim=0))
    # A column that never varies (one kernel size everywhere) carries nothing: leave its scale alone.
    deviation = x.std(dim=0)
    scorer.std.copy_(torch.where(deviation > 1e-6 * scorer.mean.abs(), deviation, 1.0))
    optimizer = torch.optim.Adam(scorer.parameters(), lr=config.lr)
    size = max(2, min(config.batch_size, len(x) // _STEPS))
    steps = max(1, len(x) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.epochs * steps)
    criterion = LOSSES.get(config.loss)
    scorer.train()
    for epoch in range(config.epochs):
        order = torch.randperm(len(x), generator=generator(config.seed, "fit", epoch))
        loss_sum = 0.0
        for step in range(steps):
            batch = order[step * size : (step + 1) * size]
            loss = criterion(scorer(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += float(loss.detach())
        progress(epoch + 1, config.epochs, loss_sum / steps)
    return scorer.eval()


@torch.no_grad()
def predict(scorer: Scorer, x: Tensor) -> np.ndarray:
    """Predicted survival in [0, 1] of feature rows."""
    size = 256 if scorer.network_name == "cnn" else 65_536
    return torch.cat([scorer(part).sigmoid() for part in x.split(size)]).numpy()


def fit_scorer(
    runs: Sequence[IRPRun], config: FitConfig, progress: Progress = lambda epoch, epochs, loss: None
) -> FittedScorer:
    """Fit a scorer, measure it on held-out groups, and describe it in a card.

    Raises:
        AutoSparseError: no runs, or nothing that could be held out.
    """
    if not runs:
        raise AutoSparseError("no IRP run was given: give at least one file written by 'autosparse generate'")
    data = examples(runs, config.features)
    fit_rows, held_rows, kind = split_groups(data, config)
    held_rows = _subsample(held_rows, config)
    measured = _fit(data, fit_rows, config, progress)
    predicted, label = predict(measured, data.x[held_rows]), data.y[held_rows].numpy()
    figures = {"scorer": compare(predicted, label)}
    for name, score in (("magnitude", data.magnitude), ("snip", data.snip)):
        figures[name] = compare_baseline(score[held_rows], label, score[fit_rows], data.y[fit_rows].numpy())
    scorer = _fit(data, np.arange(len(data)), config, progress) if config.refit else measured
    groups = data.run if kind == "run" else data.layer
    card = {
        "config": asdict(config),
        "normalisation": {
            "columns": list(FEATURE_SETS[config.features].names),
            "mean": scorer.mean.tolist(),
            "std": scorer.std.tolist(),
        },
        "sources": [
            {"run": run.name, "config": dict(run.config), "data": dict(run.data), "weights": len(run.initial_value)}
            for run in runs
        ],
        "held_out": {
            "kind": kind,
            "groups": [int(group) for group in np.unique(groups[held_rows])],
            "weights": len(held_rows),
            "figures": {name: asdict(figure) for name, figure in figures.items()},
            "note": "measured before the saved scorer was fitted again on everything" if config.refit else "",
        },
        "provenance": provenance(),
    }
    return FittedScorer(scorer, figures, predicted, label, card)
