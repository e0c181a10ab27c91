"""Where a training begins: masks or a schedule of them, the state to start from, and what led there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.budget import density_of, keep_count
from autosparse.channels.store import is_shrunk
from autosparse.choose import Choice, choose
from autosparse.collapse import problems_of
from autosparse.cost import Cost, counted_images, measured
from autosparse.criteria import CRITERIA, score
from autosparse.data import ImageData
from autosparse.errors import FileFormatError
from autosparse.experiment.network import Network, PruneSettings, ShrinkSettings
from autosparse.experiment.pruned import prune_to_folder, read_pruning, write_pruning
from autosparse.experiment.shrunk import (
    ShrunkStart,
    read_shrinking,
    shrink_to_folder,
    start_from_shrunk,
    start_narrowing,
)
from autosparse.granularity import parse_granularity
from autosparse.layers import layers_of, total_weights
from autosparse.masks import Masks
from autosparse.pruning import layer_summaries, score_batches
from autosparse.recipes import Recipe, recipe_of
from autosparse.rewinding import AfterTrainingPruner, Rewinder, Ticket
from autosparse.sanity import rearranged
from autosparse.seeding import derive_seed, generator
from autosparse.training import Callback, TrainConfig, load_state
from autosparse.training.loop import check_identity
from autosparse.triggers.base import MaskSchedule, Target
from autosparse.triggers.gradient_flow import GradientFlow
from autosparse.triggers.init import AtInit
from autosparse.triggers.prune_regrow import PruneAndRegrow
from autosparse.triggers.rounds import AfterTraining, PQRewinding, Rewinding

_OUTCOME = ("total", "kept", "density", "connected", "warnings", "layers", "seconds", "peak_bytes", "images")


@dataclass(frozen=True)
class Known:
    """Results of earlier work that a method may use instead of doing it again.

    Args:
        gradients: initial gradients over the scoring images.
        trained: the state in which dense training ended.
        cost: what ``gradients`` or ``trained`` took: it counts as the method's own.
        rounds: a folder in which rounds of training and pruning are kept for all densities.
    """

    gradients: Mapping[str, Tensor] | None = None
    trained: Mapping[str, Tensor] | None = None
    cost: Cost = field(default_factory=Cost)
    rounds: Path | None = None


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Args:
        identity: what the pruning is, in JSON-able facts that tell one from another.
        outcome: what it did: counts, layers, seconds and so on; nothing while a schedule has not run.
        shrunk: the network to train instead, where channels are removed.
    """

    config: TrainConfig
    masks: Masks | None = None
    schedule: MaskSchedule | None = None
    step: int = 0
    identity: Mapping[str, Any] = field(default_factory=dict)
    outcome: Mapping[str, Any] = field(default_factory=dict)
    shrunk: ShrunkStart | None = None


def start_from_folder(model: nn.Module, pruning: Path, config: TrainConfig) -> Start:
    """How the network in ``pruning`` is trained: ``model`` in the state that it holds, or a smaller one."""
    if is_shrunk(pruning):
        shrunk = start_from_shrunk(pruning, model)
        assert shrunk.summary is not None  # it has been read
        return Start(
            config,
            identity={key: shrunk.summary[key] for key in ("method", "scorer", "asked", "reached")},
            shrunk=shrunk,
        )
    summary = read_pruning(pruning)
    masks = Masks.load(pruning / "masks.safetensors")
    masks.check(model)
    load_state(pruning / "init.safetensors", model)
    facts = ("method", "budget", "scorer", "sparsity", "kept", "total", "density")
    begin = summary.get("start", {})
    try:
        config = replace(config, **begin.get("train", {}))
        step = int(begin.get("step", 0))
    except (AttributeError, TypeError, ValueError):
        raise FileFormatError(
            f"{pruning / 'summary.json'} is damaged: 'start' is {begin!r}; remake the folder"
        ) from None
    outcome = {key: summary.get(key) for key in (*_OUTCOME, "rounds")}
    return Start(config, masks, None, step, {key: summary[key] for key in facts}, outcome)


def start_by_method(
    model: nn.Module,
    network: Network,
    data: ImageData,
    settings: PruneSettings | ShrinkSettings,
    config: TrainConfig,
    work: Path,
    *,
    dataset: str,
    device: torch.device,
    known: Known,
    callbacks: Callable[[str], list[Callback]],
) -> Start:
    """Where ``settings.method`` begins the training of ``model``, which is freshly built from ``network``.

    What is pruned before the training is kept in ``work``, and read from there when the run continues.
    """
    if isinstance(settings, ShrinkSettings):
        return _start_by_channels(model, network, data, settings, config, work / "pruning", dataset, device)
    recipe, own = recipe_of(settings.method).with_options(settings.options or {})
    if isinstance(recipe.when, PruneAndRegrow | GradientFlow):
        return Start(config, schedule=_schedule(model, data, recipe, own, settings, config, network.seed))
    folder = work / "pruning"
    if folder.exists():
        _check_begun(work, read_pruning(folder), network, data, settings)
    elif isinstance(recipe.when, AtInit):
        prune_to_folder(
            network,
            data,
            settings,
            folder,
            dataset=dataset,
            device=device,
            gradients=known.gradients,
            before=known.cost,
        )
    else:
        prune = partial(_ticket, recipe.when, network, data, settings, config, known, work, device, callbacks)
        _ticket_to_folder(prune, network, data, settings, folder, dataset, device, recipe, known.cost)
    return start_from_folder(model, folder, config)


def _start_by_channels(
    model: nn.Module,
    network: Network,
    data: ImageData,
    settings: ShrinkSettings,
    config: TrainConfig,
    folder: Path,
    dataset: str,
    device: torch.device,
) -> Start:
    recipe, _ = settings.recipe()
    if not isinstance(recipe.when, AtInit):
        return Start(config, shrunk=start_narrowing(model.to(device), network, data, settings, config))
    if folder.exists():
        _check_begun(folder.parent, read_shrinking(folder), network, data, settings)
    else:
        shrink_to_folder(network, data, settings, folder, dataset=dataset, device=device)
    return start_from_folder(model.to(device), folder, config)


def _check_begun(
    work: Path, found: Mapping[str, Any], network: Network, data: ImageData, settings: PruneSettings | ShrinkSettings
) -> None:
    """AutoSparseError if what an unfinished run has pruned is not what is asked for now."""
    facts = {"network": asdict(network), "data": data.describe(), "settings": asdict(settings)}
    check_identity(work, {name: found.get(name) for name in facts}, facts)


def _schedule(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    own: Mapping[str, Any],
    settings: PruneSettings,
    config: TrainConfig,
    seed: int,
) -> MaskSchedule:
    per_epoch = config.steps_per_epoch(len(data.train))
    layers, blocks = layers_of(model), parse_granularity(settings.granularity)
    density = density_of(settings.sparsity or 0.0)
    if blocks is not None:
        density = sum(blocks.counts(layers).values()) / total_weights(layers)
    target = Target(layers, density, per_epoch * config.epochs, per_epoch, seed)
    budget, floor = settings.budget or recipe.budget, settings.min_layer_density
    given: dict[str, Any] = {"generator": generator(seed, "random scores"), "loss_fn": F.cross_entropy}
    if CRITERIA.get(recipe.criterion).needs_data:
        given["batches"] = score_batches(data, seed=seed, images=settings.score_images, size=settings.micro_batch)
    if isinstance(recipe.when, PruneAndRegrow):

        def scores(network: nn.Module) -> Mapping[str, Tensor]:
            return score(recipe.criterion, network, options=own, **given)

        return recipe.when.schedule(target, scores=scores, budget=budget, min_layer_density=floor)
    assert isinstance(recipe.when, GradientFlow)
    choice = Choice(recipe.criterion, own, recipe.rounds, budget, blocks, floor, settings.sanity == "invert")

    def prune_now(network: nn.Module, density: float) -> Masks:
        masks, _ = choose(network, choice, target.count(density), **given)
        return rearranged(settings.sanity, masks, layers, blocks, generator(seed, "shuffled masks"))

    return recipe.when.schedule(target, prune_now=prune_now)


def _ticket(
    when: Rewinding | PQRewinding | AfterTraining,
    network: Network,
    data: ImageData,
    settings: PruneSettings,
    config: TrainConfig,
    known: Known,
    work: Path,
    device: torch.device,
    callbacks: Callable[[str], list[Callback]],
    keep: int,
) -> Ticket:
    model = network.build().to(device)
    batches = partial(score_batches, data, seed=network.seed, images=settings.score_images, size=settings.micro_batch)
    folder = known.rounds or work / "rounds"
    identity = (
        {"score_images": settings.score_images}
        if CRITERIA.get(getattr(when, "criterion", "magnitude")).needs_data
        else {}
    )
    if isinstance(when, AfterTraining):
        return AfterTrainingPruner(
            model,
            data,
            when,
            config,
            folder,
            trained=known.trained,
            identity=identity,
            batches=batches,
            device=device,
            callbacks=callbacks("dense"),
        ).ticket(keep)
    return Rewinder(
        model,
        data,
        when,
        config,
        folder,
        seed=network.seed,
        identity=identity,
        batches=batches,
        device=device,
        callbacks=lambda index: callbacks(f"round {index + 1}"),
    ).ticket(keep)


def _ticket_to_folder(
    prune: Callable[[int], Ticket],
    network: Network,
    data: ImageData,
    settings: PruneSettings,
    folder: Path,
    dataset: str,
    device: torch.device,
    recipe: Recipe,
    trained: Cost,
) -> None:
    """Write what rounds of training and pruning gave as a pruning at initialisation would be written.

    Its seconds and images are those of all trainings that it needs, whether they were run now or shared.

    Args:
        trained: what a dense training took that was shared.
    """
    model = network.build()
    layers = layers_of(model)
    assert settings.sparsity is not None  # only N:M patterns have none, which these methods refuse
    with measured(device) as cost, counted_images() as images:
        ticket = prune(keep_count(total_weights(layers), settings.sparsity))
    masks = rearranged(settings.sanity, ticket.masks, layers, None, generator(network.seed, "shuffled masks"))
    state = dict(ticket.state)
    if settings.sanity == "reinit":
        state = replace(network, seed=derive_seed(network.seed, "reinit")).build().state_dict()
    model.load_state_dict(state)
    facts = {
        "method": settings.method,
        "criterion": recipe.criterion,
        "budget": recipe.budget,
        "scorer": None,
        "options": dict(settings.options or {}),
        "granularity": "weights",
        "sanity": settings.sanity,
        "sparsity": settings.sparsity,
        **outcome_of(model, masks, data),
        "seconds": max(cost.seconds, sum(record["seconds"] for record in ticket.records) + trained.seconds),
        "peak_bytes": cost.peak_bytes,
        "images": _images(ticket.records, trained, images.count),
        "rounds": ticket.records,
        "start": {"step": ticket.start_step, "train": {"lr": ticket.train.lr, "epochs": ticket.train.epochs}},
    }
    write_pruning(folder, network, data, settings, dataset, masks, state, facts)


def _images(records: Sequence[Mapping[str, Any]], trained: Cost, run: int) -> int | None:
    """Images of all rounds, or of the dense training: ``trained`` if it was shared, otherwise what ``run`` saw."""
    if records:
        counts: list[Any] = [record.get("images") for record in records]  # records of an earlier release have none
        return None if None in counts else sum(counts)
    return trained.images or run


def outcome_of(model: nn.Module, masks: Masks, data: ImageData) -> dict[str, Any]:
    """What ``masks`` leave of ``model``, JSON-able."""
    batch = list(data.train.batches(2, limit=2))
    connected, problems = problems_of(model, masks, [(x.to(next(model.parameters()).device), y) for x, y in batch])
    return {
        "total": masks.total,
        "kept": masks.kept,
        "density": masks.density,
        "connected": connected,
        "warnings": problems,
        "layers": [summary.__dict__ for summary in layer_summaries(masks)],
    }
