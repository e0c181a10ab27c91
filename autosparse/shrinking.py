"""Removing channels: a plain, smaller network that computes with what is left."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.channels.costs import Costs, costs_of
from autosparse.channels.coupling import couple
from autosparse.channels.criteria import CHANNEL_CRITERIA, score_channels
from autosparse.channels.groups import Coupling
from autosparse.channels.initial import reinitialise_
from autosparse.channels.plan import Scoring, Selection, select_channels
from autosparse.channels.request import LATENCY_BATCH, ShrinkRequest
from autosparse.channels.surgery import shrink_
from autosparse.channels.widths import (
    ROUND_TO,
    Budget,
    budgets_of,
    channel_count,
    fill,
    priorities_of_widths,
    steps_of,
)
from autosparse.criteria import Batches, LossFn
from autosparse.errors import AutoSparseError
from autosparse.latency import Trial, search
from autosparse.measuring import Spread, latency_share
from autosparse.pruning import micro_batches, scoring_stream
from autosparse.scorer.choosing import named_scorer
from autosparse.scorer.network import Scorer
from autosparse.seeding import generator

_SECONDS = 2.0  # of measuring one network in the search for latency
_NEAR = 0.02  # a budget that is met to this share needs no explanation


@dataclass(frozen=True)
class GroupSummary:
    name: str
    before: int
    after: int
    unit: int


@dataclass(frozen=True)
class ShrinkSummary:
    """What a plan does; :meth:`as_dict` is JSON-able.

    Args:
        asked: the budgets, as shares of the dense network.
        reached: the shares of channels, params and flops that are left.
        note: why a budget is not used up, where it is not.
        fixed: from layers that keep their widths to the reason.
    """

    method: str
    criterion: str | None
    spread: str
    options: dict[str, Any]
    scorer: str | None
    round_to: int
    asked: dict[str, float]
    reached: dict[str, float]
    params: tuple[int, int]
    flops: tuple[int, int]
    note: str
    groups: tuple[GroupSummary, ...]
    fixed: dict[str, str]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ShrinkPlan:
    """Which channels of a network stay, and what the smaller network costs.

    Args:
        seed: of the fresh weights, where the method draws them.
    """

    coupling: Coupling
    costs: Costs
    selection: Selection
    summary: ShrinkSummary
    seed: int

    def apply(self, model: nn.Module) -> nn.Module:
        """The smaller network, a copy; ``model`` has the weights (or the initial distributions) to take over."""
        return apply_selection(model, self.coupling, self.selection, self.seed)


def apply_selection(model: nn.Module, coupling: Coupling, selection: Selection, seed: int) -> nn.Module:
    """A copy of ``model`` with the channels of ``selection``; ``seed`` is for fresh weights."""
    small = copy.deepcopy(model)
    if selection.kept is None:
        reinitialise_(small, coupling, selection.widths, generator(seed, "fresh weights"))
    else:
        shrink_(small, coupling, selection.kept)
    return small


def shrink(model: nn.Module, data: Batches | None = None, **request: Any) -> nn.Module:
    """A plain, smaller network: ``plan_shrink(model, data, ...).apply(model)``. The model is left as it was."""
    return plan_shrink(model, data, **request).apply(model)


def plan_shrink(
    model: nn.Module,
    data: Batches | None = None,
    *,
    example: Tensor | None = None,
    method: str = "precrop",
    options: Mapping[str, Any] | None = None,
    criterion: str | None = None,
    channels: float | None = None,
    params: float | None = None,
    flops: float | None = None,
    spread: str | None = None,
    keep: Sequence[str] = (),
    round_to: int = ROUND_TO,
    latency: float | None = None,
    latency_batch: int = LATENCY_BATCH,
    latency_by: str = "flops",
    scorer: Scorer | str | Path | None = None,
    loss_fn: LossFn = F.cross_entropy,
    num_batches: int | None = 10,
    micro_batch: int | None = None,
    seed: int = 0,
) -> ShrinkPlan:
    """Choose the channels of ``model`` that stay within a budget; the model is left as it was.

    Args:
        data: any iterable of (images, labels) batches, already normalised as for training. Methods that look at
            weights only, or at nothing, need none.
        example: images ``[N, C, H, W]`` in place of ``data``, where the method needs no more than their shape.
        method, options, criterion, channels, params, flops, spread, keep, round_to, latency, latency_batch, latency_by:
            see :class:`ShrinkRequest`.
        scorer: for ``autos``: a loaded scorer, the name of a pretrained one, or a file. Default: the pretrained one.
        loss_fn: ``loss_fn(output, labels)``, a mean over its batch.
        num_batches: at most this many batches of ``data`` are used; ``None`` takes all.
        micro_batch: at most this many images a backward pass.
        seed: for random scores and fresh weights.

    Raises:
        UnknownNameError: no such method, option, spread or scorer. BudgetError: no budget, one outside (0, 1], or one
        that no widths reach. AutoSparseError: nothing to remove, missing data, or a network that cannot be traced.
    """
    began = time.perf_counter()
    request = ShrinkRequest(
        method, options, None, criterion, channels, params, flops, spread, keep, round_to,
        latency, latency_batch, latency_by,
    )  # fmt: skip
    request.check()
    batches = None if data is None else list(micro_batches(itertools.islice(data, num_batches), micro_batch))
    shrinker = Shrinker(model, request, batches, example=example, scorer=scorer, loss_fn=loss_fn, seed=seed)
    return shrinker.plan(shrinker.select(model), began)


class Shrinker:
    """A request on a network: its channel groups and costs, and the channels that the method would keep.

    Args:
        model: the dense network; it is traced, not changed.
        batches: a list, or ``None`` for methods that look at weights only or at nothing.
        progress: told about every network that is timed.
    """

    def __init__(
        self,
        model: nn.Module,
        request: ShrinkRequest,
        batches: Sequence[tuple[Tensor, Tensor]] | None,
        *,
        example: Tensor | None = None,
        scorer: Scorer | str | Path | None = None,
        loss_fn: LossFn = F.cross_entropy,
        seed: int = 0,
        progress: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.request = request
        self._progress = progress
        self.recipe, self._options = request.recipe()
        self._seed = seed
        if example is None:
            if not batches:
                raise AutoSparseError("the network's images are unknown: pass data=, (images, labels), or example=")
            example = batches[0][0]
        images = example.to(next(model.parameters()).device)
        self.coupling = couple(model, images, request.keep)
        if not self.coupling.groups:
            reasons = "; ".join(sorted(set(self.coupling.fixed.values())))
            raise AutoSparseError(f"{type(model).__name__} has no channels that could be removed: {reasons}")
        self.costs = costs_of(model, self.coupling, images)
        self._image_shape = tuple(images.shape[1:])
        self.budgets = budgets_of(self.coupling, self.costs, **request.shares)
        named = self._named_scorer(scorer)
        self._scorer_name = named[0] if named else None
        self._ingredients = {"batches": batches, "loss_fn": loss_fn, "scorer": named[1] if named else None}

    def require_reachable(self) -> None:
        """BudgetError when not even the narrowest network is within the budgets."""
        steps = steps_of(self.coupling, self.request.round_to)
        fill(self.coupling, self.budgets, steps, priorities_of_widths(self.coupling.widths, steps))

    def select(self, model: nn.Module) -> Selection:
        """The channels of ``model``, the dense network at any weights, that the method keeps; it is not changed."""
        if self.request.latency is not None:
            return self._select_by_latency(model, self.request.latency)
        return self._selected(model, self.budgets, self._scores)

    def _selected(self, model: nn.Module, budgets: Sequence[Budget], scoring: Scoring) -> Selection:
        return select_channels(model, self.coupling, budgets, self.recipe, scoring, self.request.round_to)

    def _select_by_latency(self, model: nn.Module, target: float) -> Selection:
        """The largest selection along one share whose measured latency is within ``target`` of the dense network's."""
        by, found = self.request.latency_by, dict[tuple[int, ...], Selection]()
        (cost,) = (budget.cost for budget in budgets_of(self.coupling, self.costs, **{by: 1.0}))
        known: dict[str, Mapping[str, np.ndarray]] = {}

        def scoring(network: nn.Module, left: Coupling) -> Mapping[str, np.ndarray]:
            if network is not model:
                return self._scores(network, left)
            if "dense" not in known:  # all trials begin with the same scores
                known["dense"] = self._scores(network, left)
            return known["dense"]

        def widths_at(share: float) -> Mapping[str, int]:
            budgets = budgets_of(self.coupling, self.costs, **{**self.request.shares, by: share})
            selection = self._selected(model, budgets, scoring)
            found[tuple(selection.widths.values())] = selection
            return selection.widths

        def latency(widths: Mapping[str, int]) -> Spread:
            if widths == self.coupling.widths:
                return Spread(1.0, 1.0, 1.0, 0)
            small = apply_selection(model, self.coupling, found[tuple(widths.values())], self._seed)
            device = next(model.parameters()).device
            batch = self.request.latency_batch
            timed = latency_share(small, model, self._image_shape, batch=batch, device=device, seconds=_SECONDS)
            self._progress(
                f"{cost(widths) / cost(self.coupling.widths):.1%} of the {by}: {timed.median:.1%} of the time"
            )
            return timed

        def trial(share: float) -> Trial:
            widths = widths_at(share)
            return Trial(share, widths, latency(widths))

        least = {name: int(widths[0]) for name, widths in steps_of(self.coupling, self.request.round_to).items()}
        lowest = cost(least) / cost(self.coupling.widths) * (1 + 1e-9)
        highest = max(lowest, self.request.shares.get(by, 1.0))
        best = search(target, trial(lowest), trial(highest), widths_at, latency)
        return replace(found[tuple(best.widths.values())], latency=best.latency)

    def imagine(self, model: nn.Module) -> Selection:
        """As :meth:`select` without rounding: what a trigger watches, in steps of one channel."""
        return select_channels(model, self.coupling, self.budgets, self.recipe, self._scores, round_to=1)

    @property
    def channel_share(self) -> float:
        """The share of the channels that the budgets leave when all groups keep the same share."""
        steps = steps_of(self.coupling, 1)
        widths = fill(self.coupling, self.budgets, steps, priorities_of_widths(self.coupling.widths, steps))
        count = channel_count(self.coupling)
        return count(widths) / count(self.coupling.widths)

    def plan(self, selection: Selection, began: float) -> ShrinkPlan:
        """``selection`` with what it costs; ``began`` is the ``perf_counter`` at which the work on it began."""
        return ShrinkPlan(self.coupling, self.costs, selection, self._summary(selection, began), self._seed)

    def _scores(self, network: nn.Module, left: Coupling) -> Mapping[str, np.ndarray]:
        assert self.recipe.criterion is not None  # a recipe without one is never scored
        stream = generator(self._seed, "random scores")
        with scoring_stream(self._seed):
            return score_channels(
                self.recipe.criterion, network, left, options=self._options, generator=stream, **self._ingredients
            )

    def _named_scorer(self, scorer: Scorer | str | Path | None) -> tuple[str, Scorer] | None:
        criterion = self.recipe.criterion
        if criterion is None or "scorer" not in CHANNEL_CRITERIA.get(criterion).needs:
            return None
        return named_scorer(scorer, "channels")

    def _summary(self, selection: Selection, began: float) -> ShrinkSummary:
        full, widths = self.coupling.widths, selection.widths
        params, flops = ((round(cost(full)), round(cost(widths))) for cost in (self.costs.params, self.costs.flops))
        count = channel_count(self.coupling)
        return ShrinkSummary(
            method=self.request.title,
            criterion=self.recipe.criterion,
            spread=self.recipe.spread,
            options=dict(self.request.options or {}),
            scorer=self._scorer_name,
            round_to=self.request.round_to,
            asked=self.request.asked,
            reached={
                "channels": count(widths) / count(full),
                "params": params[1] / params[0],
                "flops": flops[1] / flops[0],
                **({} if selection.latency is None else {"latency": selection.latency.median}),
            },
            params=params,
            flops=flops,
            note=self._note(selection),
            groups=tuple(GroupSummary(g.name, g.width, widths[g.name], g.unit) for g in self.coupling),
            fixed=dict(self.coupling.fixed),
            seconds=time.perf_counter() - began,
        )

    def _note(self, selection: Selection) -> str:
        full, widths, latency = self.coupling.widths, selection.widths, selection.latency
        if latency is not None and self.request.latency is not None:
            batch = self.request.latency_batch
            text = f"latency was measured at batch size {batch}: {latency.low:.3g} to {latency.high:.3g} of the dense"
            below = 1 - latency.median / self.request.latency
            return text + (f", {below:.1%} below the budget" if below > _NEAR else "")
        unused = {b.name: 1 - b.cost(widths) / b.cost(full) / b.share for b in self.budgets}
        tightest = min(unused, key=lambda name: unused[name])
        if unused[tightest] <= _NEAR:
            return ""
        return (
            f"{tightest} are {unused[tightest]:.1%} below the budget: channel counts go in steps (round-to "
            f"{self.request.round_to}), and every further step would exceed it"
        )
