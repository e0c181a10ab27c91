"""Pruning at initialisation: score, select, mask."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.budget import BUDGETS, Allocation, density_of, keep_count, select
from autosparse.choose import Choice, choose, like
from autosparse.collapse import CollapseWarning, effective_density, path_of, problems_of
from autosparse.cost import counted_images
from autosparse.criteria import CRITERIA, Batches, LossFn, Stream
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError, BudgetError
from autosparse.granularity import Blocks, parse_granularity
from autosparse.layers import Layer, layers_of, total_weights
from autosparse.masks import Masks
from autosparse.recipes import Recipe, recipe_of
from autosparse.sanity import check_sanity, is_rearrangement, rearranged
from autosparse.scorer.choosing import like_of, named_scorer, use_of
from autosparse.scorer.network import Scorer
from autosparse.seeding import derive_seed, generator, global_stream
from autosparse.triggers.init import AtInit

#: Images of one backward pass when scores or features are measured.
SCORE_BATCH = 128


@dataclass(frozen=True)
class LayerSummary:
    name: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    density: float


@dataclass(frozen=True)
class PruneSummary:
    """What a pruning did; :meth:`as_dict` is JSON-able.

    Args:
        effective_density: as ``density``, without weights that lie on no path from input to output, which do nothing;
            ``None`` where it is not known.
        images: that scores were computed from (:class:`autosparse.cost.Images`); not those of ``gradients=``.
    """

    method: str
    criterion: str
    budget: str
    scorer: str | None
    options: dict[str, Any]
    granularity: str
    sanity: str | None
    sparsity: float
    total: int
    kept: int
    density: float
    effective_density: float | None
    connected: bool | None
    warnings: tuple[str, ...]
    seconds: float
    images: int
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


def score_batches(data: ImageData, *, seed: int, images: int, size: int = SCORE_BATCH) -> list[tuple[Tensor, Tensor]]:
    """The first ``images`` training images of a shuffle by ``seed``, without augmentation, in batches of ``size``.

    IRP records and pruning both measure their features on such batches.
    """
    return list(data.train.batches(size, shuffle_seed=derive_seed(seed, "score"), limit=images))


def training_stream(data: ImageData, *, seed: int, size: int = SCORE_BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """All training images without end, augmented, in batches of ``size``: a new order every time round."""
    for epoch in itertools.count():
        order = derive_seed(seed, "stream", epoch)
        yield from data.train.batches(size, shuffle_seed=order, augment=True, drop_last=len(data.train) >= size)


def scoring_stream(seed: int) -> AbstractContextManager[None]:
    """What a network that draws (dropout) draws from while it is scored: the same for the same seed."""
    return global_stream(seed, "scoring")


@dataclass(frozen=True)
class Request:
    """What is asked of :func:`prune` in names and numbers.

    Args:
        sparsity: fraction of the weights that is removed; ``None`` with an N:M granularity, which fixes it.
        options: of the method's trigger (``rounds``) and of its criterion.
        budget: ``global``, ``uniform``, ``erk``, ``synexp`` or ``like:METHOD`` (the layer densities of another method
            at the same sparsity); by default what the method names.
        granularity: ``weights``, or ``N:M``.
        min_layer_density: every layer keeps at least this fraction of its weights.
        keep_connected: every layer keeps a weight that lies on a path from input to output.
        on_paths: only weights that lie on a path from input to output are kept (:mod:`autosparse.paths`). By default as
            the method says, but where ``keep_connected`` or N:M blocks are asked for.
        sanity: a check of :mod:`autosparse.sanity`, such as ``shuffle``, ``reinit`` or ``invert``.
    """

    sparsity: float | None
    method: str = "autos"
    options: Mapping[str, Any] | None = None
    budget: str | None = None
    granularity: str = "weights"
    min_layer_density: float = 0.0
    keep_connected: bool = False
    on_paths: bool | None = None
    sanity: str | None = None

    def check(self, *, at_init: bool = True) -> None:
        """Refuse what no model could be pruned with, before anything costly is done; errors as in :func:`prune`.

        Args:
            at_init: refuse methods that prune later than at initialisation.
        """
        recipe, _ = recipe_of(self.method).with_options(self.options or {})
        if at_init and not isinstance(recipe.when, AtInit):
            raise AutoSparseError(
                f"method '{self.method}' does not prune at initialisation but {recipe.moment}: "
                f"run it with 'autosparse train --method {self.method}'"
            )
        self._check_fit(recipe)
        check_budget(self.budget or recipe.budget)
        blocks = parse_granularity(self.granularity)
        check_sanity(self.sanity, blocks)
        if self.sparsity is None and blocks is None:
            raise BudgetError("no sparsity was given: 0.98 keeps 2 % of the weights")
        if self.sparsity is not None:
            density_of(self.sparsity)
            if blocks is not None and abs(self.sparsity - blocks.sparsity) > 1e-9:
                raise BudgetError(
                    f"granularity {self.granularity} fixes the sparsity at {blocks.sparsity}, not {self.sparsity}: "
                    "leave the sparsity out"
                )
        if not 0 <= self.min_layer_density <= 1:
            raise AutoSparseError(f"min-layer-density is {self.min_layer_density}: give a number in [0, 1]")
        if blocks is not None and (self.budget or self.min_layer_density or self.keep_connected or self.on_paths):
            raise AutoSparseError(
                f"granularity {self.granularity} fixes what every layer keeps: leave budget, min-layer-density, "
                "keep-connected and on-paths out"
            )
        if self.keep_connected and self.on_paths:
            raise AutoSparseError("on-paths keeps the network connected by itself: leave keep-connected out")

    def keeps_paths(self, recipe: Recipe) -> bool:
        """Whether only weights on paths are kept."""
        if self.on_paths is None:
            return recipe.on_paths and not self.keep_connected and self.granularity == "weights"
        return self.on_paths

    def _check_fit(self, recipe: Recipe) -> None:
        """Refuse settings for which the method's moment has no use."""
        given = {
            "budget": self.budget,
            "granularity": None if self.granularity == "weights" else self.granularity,
            "min-layer-density": self.min_layer_density or None,
            "keep-connected": self.keep_connected or None,
            "on-paths": self.on_paths or None,
            f"sanity {self.sanity}": self.sanity,
        }
        # Whatever honours one way of moving the mask honours all of them.
        kinds = {f"sanity {self.sanity}": "sanity shuffle"} if is_rearrangement(self.sanity) else {}
        for name, value in given.items():
            if value is not None and not recipe.takes(kinds.get(name, name)):
                raise AutoSparseError(f"method '{self.method}', which prunes {recipe.moment}, takes no {name}")


def check_budget(name: str) -> None:
    """UnknownNameError for a budget that does not exist; AutoSparseError for ``like:`` a method that prunes later."""
    if (other := like_of(name)) is not None:
        Request(0.5, other).check()
    else:
        BUDGETS.get(name)


def micro_batches(batches: Batches, size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """``batches`` in pieces of at most ``size`` images: scoring needs the memory of one piece."""
    for x, y in batches:
        yield from [(x, y)] if size is None else zip(x.split(size), y.split(size), strict=True)


def _without_end(data: Batches, size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """``data`` again and again, in pieces of at most ``size`` images; AutoSparseError when it has nothing any more."""
    while True:
        empty = True
        for batch in micro_batches(data, size):
            empty = False
            yield batch
        if empty:
            raise AutoSparseError(
                "data has no batch when it is gone through again: pass a list or a DataLoader, which can be, or stream="
            )


def prune(
    model: nn.Module,
    data: Batches | None = None,
    *,
    sparsity: float | None = None,
    method: str = "autos",
    options: Mapping[str, Any] | None = None,
    scorer: Scorer | str | Path | None = None,
    loss_fn: LossFn = F.cross_entropy,
    budget: str | None = None,
    granularity: str = "weights",
    num_batches: int | None = 10,
    micro_batch: int | None = None,
    min_layer_density: float = 0.0,
    keep_connected: bool = False,
    on_paths: bool | None = None,
    sanity: str | None = None,
    seed: int = 0,
    gradients: Mapping[str, Tensor] | None = None,
    stream: Stream | None = None,
) -> Pruned:
    """Prune ``model`` at its current weights, in place: removed weights become zero.

    Exactly ``round((1 - sparsity) * N)`` of the N prunable weights are kept.

    Args:
        data: any iterable of (images, labels) batches, already normalised as for training. Methods that look at
            weights only need none; with one, the network is also checked to be connected.
        sparsity, options, budget, granularity, min_layer_density, keep_connected, on_paths, sanity: see
            :class:`Request`; ``keep_connected`` and ``on_paths`` need ``data``, and ``reinit`` is for networks that are
            built by name.
        method: a name of :func:`autosparse.list_methods` that prunes at initialisation.
        scorer: for ``autos``: a loaded scorer, the name of a pretrained one, or a file. Default: the pretrained one.
        loss_fn: ``loss_fn(output, labels)``, a mean over its batch.
        num_batches: at most this many batches of ``data`` are used; ``None`` takes all.
        micro_batch: at most this many images a backward pass; scores are means over all images however they are
            grouped (but for batch norm, which sees the group).
        seed: for random scores.
        gradients: the mean gradient over ``data`` at the current weights, where it is known already.
        stream: for methods that train a copy: a function that gives batches without end. By default ``data`` again and
            again, all of it where it can be iterated more than once (a DataLoader, a list).

    Raises:
        UnknownNameError: no such method, option, budget or scorer. BudgetError: a sparsity outside [0, 1), or one that
        the floors make unreachable. AutoSparseError: no prunable weights, missing data, or a loss that is not finite.
    """
    began = time.perf_counter()
    request = Request(
        sparsity, method, options, budget, granularity, min_layer_density, keep_connected, on_paths, sanity
    )
    request.check()
    if sanity == "reinit":
        raise AutoSparseError("sanity 'reinit' needs to build the network anew: prune, then apply masks to a new one")
    recipe, own = recipe_of(method).with_options(options or {})
    criterion = CRITERIA.get(recipe.criterion)
    layers, blocks = layers_of(model), parse_granularity(granularity)
    batches = None if data is None else list(micro_batches(itertools.islice(data, num_batches), micro_batch))
    paths = request.keeps_paths(recipe)
    if not batches and (criterion.needs_data or keep_connected or paths):
        setting = " with keep_connected" if keep_connected else " with on_paths" if on_paths else ""
        raise AutoSparseError(
            f"method '{method}'{setting} needs data: "
            "pass data=, any iterable of (images, labels) batches with at least one"
        )
    chosen = named_scorer(scorer, use_of(recipe, own)) if "scorer" in criterion.needs else None
    if stream is None and data is not None and not isinstance(data, Iterator):
        stream = partial(_without_end, data, micro_batch)
    ingredients = {
        "batches": batches,
        "stream": stream,
        "loss_fn": loss_fn,
        "scorer": chosen[1] if chosen else None,
    }
    keep = _keep(layers, sparsity, blocks)
    with counted_images() as images, scoring_stream(seed):
        rule = _budget(model, budget or recipe.budget, keep, seed, gradients, ingredients)
        choice = Choice(
            recipe.criterion,
            own,
            recipe.at_init,
            rule,
            blocks,
            min_layer_density,
            sanity == "invert",
            paths,
            paths_needed=on_paths is not None,
        )
        draw = generator(seed, "random scores")
        masks, scores = choose(model, choice, keep, gradients=gradients, generator=draw, **ingredients)
    if keep_connected and batches:
        path = path_of(model, masks, scores, batches[0][0])
        masks = select(scores, layers, keep, budget=rule, min_layer_density=min_layer_density, forced=path)
    masks = rearranged(sanity, masks, layers, blocks, generator(seed, "shuffled masks"))
    connected, problems = problems_of(model, masks, batches)
    for problem in problems:
        warnings.warn(problem, CollapseWarning, stacklevel=2)
    masks.apply(model)
    if recipe.rescale:
        from autosparse.rescaling import edge_of_chaos

        edge_of_chaos(model, masks)
    summary = PruneSummary(
        method=method,
        criterion=recipe.criterion,
        budget=granularity if blocks else budget or recipe.budget,
        scorer=chosen[0] if chosen else None,
        options=dict(options or {}),
        granularity=granularity,
        sanity=sanity,
        sparsity=1 - masks.density if sparsity is None else sparsity,
        total=masks.total,
        kept=masks.kept,
        density=masks.density,
        effective_density=effective_density(model, masks, batches),
        connected=connected,
        warnings=tuple(problems),
        seconds=time.perf_counter() - began,
        images=images.count,
        layers=layer_summaries(masks),
    )
    return Pruned(model, masks, scores, summary)


def _keep(layers: list[Layer], sparsity: float | None, blocks: Blocks | None) -> int:
    if blocks is not None:
        return sum(blocks.counts(layers).values())
    assert sparsity is not None  # Request.check
    return keep_count(total_weights(layers), sparsity)


def _budget(
    model: nn.Module,
    name: str,
    keep: int,
    seed: int,
    gradients: Mapping[str, Tensor] | None,
    ingredients: Mapping[str, Any],
) -> str | Allocation:
    """The budget rule called ``name``; for ``like:METHOD`` that method chooses masks first."""
    if (method := like_of(name)) is None:
        return name
    other = recipe_of(method)
    given = dict(ingredients)
    if "scorer" in CRITERIA.get(other.criterion).needs and given["scorer"] is None:
        given["scorer"] = named_scorer(None, use_of(other, {}))[1]
    choice = Choice(other.criterion, {}, other.at_init, other.budget)
    # Its own stream: the same numbers in the scores of both would make random masks choose themselves.
    masks, _ = choose(model, choice, keep, gradients=gradients, generator=generator(seed, "like"), **given)
    return like(masks)


def layer_summaries(masks: Masks) -> tuple[LayerSummary, ...]:
    """What is left of every layer."""
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    return tuple(
        LayerSummary(name, tuple(mask.shape), mask.numel(), kept[name], kept[name] / mask.numel())
        for name, mask in masks.items()
    )
