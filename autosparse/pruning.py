"""Pruning at initialisation: score, select, mask."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.budget import BUDGETS, density_of, keep_count, select
from autosparse.connectivity import connecting_weights, is_connected, responds
from autosparse.criteria import CRITERIA, Batches, LossFn, score
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError
from autosparse.layers import Layer, layers_of, prunable, total_weights
from autosparse.masks import Masks
from autosparse.recipes import RECIPES
from autosparse.scorer.network import Scorer
from autosparse.scorer.store import load_scorer
from autosparse.seeding import derive_seed, generator

#: Images of one backward pass when scores or features are measured.
SCORE_BATCH = 128


class CollapseWarning(UserWarning):
    """A pruned network that has lost a layer, or whose output no longer depends on its input."""


@dataclass(frozen=True)
class LayerSummary:
    name: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    density: float


@dataclass(frozen=True)
class PruneSummary:
    """What a pruning did; :meth:`as_dict` is JSON-able."""

    method: str
    criterion: str
    budget: str
    scorer: str | None
    sparsity: float
    total: int
    kept: int
    density: float
    connected: bool | None
    warnings: tuple[str, ...]
    seconds: float
    layers: tuple[LayerSummary, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Pruned:
    """A pruned model: its masks, already applied, the scores that chose them, and a summary."""

    def __init__(self, model: nn.Module, masks: Masks, scores: Mapping[str, Tensor], summary: PruneSummary) -> None:
        self.model = model
        self.masks = masks
        self.scores = scores
        self.summary = summary

    def hold(self, optimizer: torch.optim.Optimizer) -> torch.utils.hooks.RemovableHandle:
        """Keep removed weights at exactly zero after every step of ``optimizer``."""
        return self.masks.hold(self.model, optimizer)

    def save(self, path: Path | str) -> None:
        """Write the masks as safetensors."""
        self.masks.save(Path(path), self.summary.as_dict())


def score_batches(data: ImageData, *, seed: int, images: int) -> list[tuple[Tensor, Tensor]]:
    """The first ``images`` training images of a shuffle by ``seed``, without augmentation, in batches.

    IRP records and pruning both measure their features on such batches.
    """
    batches = data.train.batches(SCORE_BATCH, shuffle_seed=derive_seed(seed, "score"), limit=images)
    return list(batches)


def check_request(method: str, budget: str | None, sparsity: float, min_layer_density: float = 0.0) -> None:
    """Refuse what no model could be pruned with, before anything costly is done; errors as in :func:`prune`."""
    recipe = RECIPES.get(method)
    BUDGETS.get(budget or recipe.budget)
    density_of(sparsity)
    if not 0 <= min_layer_density <= 1:
        raise AutoSparseError(f"min-layer-density is {min_layer_density}: give a number in [0, 1]")


def prune(
    model: nn.Module,
    data: Batches | None = None,
    *,
    sparsity: float,
    method: str = "autos",
    scorer: Scorer | str | Path | None = None,
    loss_fn: LossFn = F.cross_entropy,
    budget: str | None = None,
    num_batches: int | None = 10,
    min_layer_density: float = 0.0,
    keep_connected: bool = False,
    seed: int = 0,
) -> Pruned:
    """Prune ``model`` at its current weights, in place: removed weights become zero.

    Exactly ``round((1 - sparsity) * N)`` of the N prunable weights are kept.

    Args:
        data: any iterable of (images, labels) batches, already normalised as for training. Methods that look at
            weights only need none; with one, the network is also checked to be connected.
        method: a name of :func:`autosparse.list_methods`.
        scorer: for ``autos``: a loaded scorer, the name of a pretrained one, or a file. Default: the pretrained one.
        loss_fn: ``loss_fn(output, labels)``, a mean over its batch.
        budget: ``global``, ``uniform`` or ``erk``; by default what the method names.
        num_batches: at most this many batches of ``data`` are used; ``None`` takes all.
        min_layer_density: every layer keeps at least this fraction of its weights.
        keep_connected: every layer keeps a weight that lies on a path from input to output. Needs ``data``.
        seed: for random scores.

    Raises:
        UnknownNameError: no such method, budget or scorer. BudgetError: a sparsity outside [0, 1), or one that the
        floors make unreachable. AutoSparseError: no prunable weights, missing data, or a loss that is not finite.
    """
    began = time.perf_counter()
    check_request(method, budget, sparsity, min_layer_density)
    recipe = RECIPES.get(method)
    criterion = CRITERIA.get(recipe.criterion)
    layers = layers_of(model)
    keep = keep_count(total_weights(layers), sparsity)
    batches = None if data is None else list(itertools.islice(data, num_batches))
    if not batches and ("batches" in criterion.needs or keep_connected):
        raise AutoSparseError(
            f"method '{method}'{' with keep_connected' if keep_connected else ''} needs data: "
            "pass data=, any iterable of (images, labels) batches with at least one"
        )
    chosen = _scorer(scorer) if "scorer" in criterion.needs else None
    scores = score(
        recipe.criterion,
        model,
        batches=batches,
        loss_fn=loss_fn,
        generator=generator(seed, "random scores"),
        scorer=chosen[1] if chosen else None,
    )
    settings: dict[str, Any] = {"budget": budget or recipe.budget, "min_layer_density": min_layer_density}
    masks = select(scores, layers, keep, **settings)
    if keep_connected and batches:
        path = _path(model, masks, scores, batches[0][0])
        masks = select(scores, layers, keep, forced=path, **settings)
    connected, problems = _problems(model, masks, batches)
    for problem in problems:
        warnings.warn(problem, CollapseWarning, stacklevel=2)
    masks.apply(model)
    summary = PruneSummary(
        method=method,
        criterion=recipe.criterion,
        budget=settings["budget"],
        scorer=chosen[0] if chosen else None,
        sparsity=sparsity,
        total=masks.total,
        kept=masks.kept,
        density=masks.density,
        connected=connected,
        warnings=tuple(problems),
        seconds=time.perf_counter() - began,
        layers=_layer_summaries(layers, masks),
    )
    return Pruned(model, masks, scores, summary)


def _beside(model: nn.Module, x: Tensor) -> Tensor:
    return x.to(next(iter(prunable(model).values())).device)


def _path(model: nn.Module, masks: Masks, scores: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    try:
        return connecting_weights(model, masks, scores, _beside(model, x))
    except (RuntimeError, TypeError) as error:  # TypeError: a device without float64
        reason = str(error).partition(chr(10))[0]
        raise AutoSparseError(
            f"cannot keep {type(model).__name__} connected, it cannot be evaluated in float64 ({reason}): "
            "use min_layer_density instead"
        ) from error


def _scorer(scorer: Scorer | str | Path | None) -> tuple[str, Scorer]:
    if isinstance(scorer, Scorer):
        return "(given in Python)", scorer
    loaded = load_scorer(scorer)
    return loaded.name, loaded.scorer


def _layer_summaries(layers: list[Layer], masks: Masks) -> tuple[LayerSummary, ...]:
    kept = {layer.name: int(masks[layer.name].sum()) for layer in layers}
    return tuple(
        LayerSummary(layer.name, layer.shape, layer.size, kept[layer.name], kept[layer.name] / layer.size)
        for layer in layers
    )


def _problems(
    model: nn.Module, masks: Masks, batches: list[tuple[Tensor, Tensor]] | None
) -> tuple[bool | None, list[str]]:
    """Whether the pruned network is connected (``None``: not known), and its warnings."""
    empty = [name for name, mask in masks.items() if not bool(mask.any())]
    advice = "prevent it with --keep-connected or --min-layer-density (keep_connected=, min_layer_density= in Python)"
    problems = []
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        problems.append(f"{len(empty)} of {len(masks)} layers have no weight left: {shown}; {advice}")
    if not batches:
        return None, problems
    try:
        connected = is_connected(model, masks, _beside(model, batches[0][0]))
    except (RuntimeError, TypeError) as error:  # TypeError: a device without float64
        problems.append(f"could not check that the output depends on the input: {str(error).partition(chr(10))[0]}")
        return None, problems
    if not connected:
        problems.append(f"the output no longer depends on the input: no path of kept weights is left; {advice}")
    elif not responds(model, masks, _beside(model, batches[0][0])):
        problems.append(
            "the untrained output is the same for all images: the paths that are left are blocked by ReLUs, so "
            "training has nothing to start from; use --min-layer-density (min_layer_density= in Python)"
        )
    return connected, problems
