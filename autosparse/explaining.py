"""Why a scorer keeps what it keeps: how much of each layer, and what each of its features is worth for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from autosparse.budget import keep_count
from autosparse.choose import Choice, choose
from autosparse.connectivity import bypass_for
from autosparse.criteria import Batches, LossFn, mean_gradient
from autosparse.features import NetworkFeatures
from autosparse.layers import Layer, layers_of, prunable, total_weights
from autosparse.masks import Masks
from autosparse.pruning import Request, scoring_stream
from autosparse.recipes import recipe_of
from autosparse.scorer.choosing import named_scorer
from autosparse.scorer.network import Scorer
from autosparse.seeding import generator

AUTOS = "autos"


@dataclass(frozen=True)
class FeatureWorth:
    """How the mask changes when a feature is held at its mean over the network's weights.

    Args:
        feature: its name in the scorer's feature set.
        between_layers: share of the kept weights that move to other layers.
        within_layers: share of the kept weights that are exchanged for others of their layer.
    """

    feature: str
    between_layers: float
    within_layers: float

    @property
    def changed(self) -> float:
        return self.between_layers + self.within_layers


@dataclass(frozen=True)
class Explanation:
    """What a scorer would keep of a network, beside other methods.

    Args:
        densities: method -> layer -> share of the layer's weights that is kept; ``autos`` first.
        shared: method -> share of its kept weights that ``autos`` keeps too.
        chance: method -> the same share if either had drawn its weights at random within its layer densities.
        worth: of each feature, the largest change first.
    """

    scorer: str
    sparsity: float
    kept: int
    total: int
    densities: Mapping[str, Mapping[str, float]]
    shared: Mapping[str, float]
    chance: Mapping[str, float]
    worth: Sequence[FeatureWorth]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def explain(
    model: nn.Module,
    batches: Batches,
    *,
    sparsity: float,
    scorer: Scorer | str | Path | None = None,
    methods: Sequence[str] = ("snip", "synflow", "random"),
    on_paths: bool | None = None,
    loss_fn: LossFn = F.cross_entropy,
    seed: int = 0,
    progress: Callable[[str], None] = lambda what: None,
) -> Explanation:
    """What a scorer would keep of ``model`` at its current weights, and why. The model stays as it was.

    Args:
        batches: (images, labels), as for :func:`autosparse.prune`.
        sparsity: fraction of the weights that would be removed.
        scorer: as for :func:`autosparse.prune`.
        methods: to compare with, each with its own rounds and budget.
        on_paths: of ``autos``, as for :func:`autosparse.prune`.
        seed: for methods that draw.
        progress: is told what comes next.

    Raises:
        UnknownNameError: no such method or scorer. AutoSparseError: one that prunes later than at initialisation, or
        needs more than images. BudgetError: a sparsity outside [0, 1).
    """
    for method in methods:
        Request(sparsity, method).check()
    name, chosen = named_scorer(scorer, "weights")
    layers, batches = layers_of(model), list(batches)
    keep = keep_count(total_weights(layers), sparsity)
    progress("gradients")
    with scoring_stream(seed):
        gradients = mean_gradient(model, batches, loss_fn)
    given = {"batches": batches, "loss_fn": loss_fn}

    def kept(method: str, **more: Any) -> Masks:
        recipe, options = recipe_of(method).with_options({})
        paths = recipe.on_paths if on_paths is None or method != AUTOS else on_paths
        choice = Choice(
            recipe.criterion, options, recipe.at_init, recipe.budget, on_paths=paths, paths_needed=bool(on_paths)
        )
        draw = generator(seed, "random scores")
        with scoring_stream(seed):
            return choose(model, choice, keep, gradients=gradients, generator=draw, **given, **more)[0]

    bypass = bypass_for(chosen.feature_set, model, batches[0][0])
    features = NetworkFeatures(chosen.feature_set, layers, prunable(model), gradients, bypass=bypass)
    masks = {AUTOS: kept(AUTOS, scorer=chosen)}
    for method in methods:
        progress(method)
        masks[method] = kept(method)
    worth = []
    for column, (feature, mean) in enumerate(zip(features.spec.names, _means(features, layers), strict=True)):
        progress(f"without {feature}")
        worth.append(_worth(feature, masks[AUTOS], kept(AUTOS, scorer=chosen.holding(column, mean))))
    return Explanation(
        scorer=name,
        sparsity=sparsity,
        kept=keep,
        total=total_weights(layers),
        densities={method: mask.layer_densities() for method, mask in masks.items()},
        shared={method: _shared(masks[AUTOS], masks[method]) for method in methods},
        chance={method: _by_chance(masks[AUTOS], masks[method]) for method in methods},
        worth=sorted(worth, key=lambda entry: -entry.changed),
    )


def _means(features: NetworkFeatures, layers: Sequence[Layer]) -> list[float]:
    """The mean of each feature over all weights; one layer's inner features are in memory at a time."""
    sums = torch.zeros(len(features.spec.names), dtype=torch.float64)
    for layer in layers:
        found = features.layer(layer)
        inside = found.columns(0, layer.shape[0]).flatten(1).sum(dim=1, dtype=torch.float64)
        sums += torch.cat([inside, found.layer.double() * layer.size]).cpu()
    return (sums / total_weights(layers)).tolist()


def _worth(feature: str, before: Masks, after: Masks) -> FeatureWorth:
    moved = sum(abs(int(before[name].sum()) - int(after[name].sum())) for name in before) / 2 / before.kept
    return FeatureWorth(feature, moved, max(0.0, 1 - _shared(before, after) - moved))


def _shared(one: Masks, other: Masks) -> float:
    return sum(int((one[name] & other[name]).sum()) for name in one) / other.kept


def _by_chance(one: Masks, other: Masks) -> float:
    """The expected :func:`_shared` of masks with these layer counts whose weights are drawn independently."""
    return sum(float(one[name].double().mean()) * int(other[name].sum()) for name in one) / other.kept
