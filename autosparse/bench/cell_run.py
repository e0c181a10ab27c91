"""One cell of a benchmark, run with the same function as ``autosparse train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from autosparse.bench.cells import Cell, digest
from autosparse.bench.images import images_of
from autosparse.bench.shared import Shared
from autosparse.channels.recipes import CHANNEL_RECIPES
from autosparse.channels.request import LATENCY_BATCH
from autosparse.channels.store import load
from autosparse.cost import Cost, counted_images, measured
from autosparse.criteria import CRITERIA, mean_gradient
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError
from autosparse.experiment import Known, Network, PruneSettings, ShrinkSettings, TrainResult, train_to_folder
from autosparse.experiment.shrunk import shrinker_for
from autosparse.files import load_tensors, save_tensors
from autosparse.measuring import latency_share
from autosparse.pruning import SCORE_BATCH, score_batches, scoring_stream
from autosparse.recipes import recipe_of
from autosparse.training import load_state
from autosparse.triggers.init import AtInit
from autosparse.triggers.rounds import AfterTraining, PQRewinding, Rewinding

_GRADIENTS = "initial-gradients"


def run_cell(
    cell: Cell, *, data_dir: Path, device: str, work: Path, shared: Shared, test: bool = True
) -> dict[str, Any]:
    """Prune and train as ``cell`` says; the JSON-able result.

    Args:
        work: a folder for unfinished state, from which a killed cell goes on.
        shared: work that other cells need too: initial gradients, dense trainings, rounds of pruning.
        test: whether to look at the test images.

    Raises:
        OutputExistsError: another process works on the rounds that this cell needs: try again later.
    """
    data = images_of(cell, data_dir, device)
    network = network_of(cell, data)
    if cell.is_dense:
        if not test:
            raise AutoSparseError("a dense network has nothing to choose")
        return _result(_dense(cell, network, data, shared, device)[0])
    settings = settings_of(cell)
    settings.check(at_init=False)
    if isinstance(settings, ShrinkSettings):
        run = _train(cell, network, data, work / "run", device, settings, test=test)
        # A candidate is judged by its accuracy alone.
        return {**_result(run), "latency": _latency(work / "run", network, data, device) if test else None}
    known = _known(cell, network, settings, data, shared, device)
    return _result(_train(cell, network, data, work / "run", device, settings, known, test))


def network_of(cell: Cell, data: ImageData) -> Network:
    """The network of ``cell`` for the classes of ``data``."""
    return Network(cell.model, dict(cell.model_args), data.num_classes, data.channels, cell.seed)


def settings_of(cell: Cell) -> PruneSettings | ShrinkSettings:
    """How ``cell`` prunes, as the commands say it."""
    if cell.removes_channels:
        return ShrinkSettings(
            method=cell.method,
            options=dict(cell.options),
            when=cell.when,
            criterion=cell.what,
            spread=cell.spread,
            keep=tuple(cell.keep),
            round_to=cell.round_to,
            scorer=cell.scorer,
            score_images=cell.score_images,
            channels=cell.shares.get("channels"),
            params=cell.shares.get("params"),
            flops=cell.shares.get("flops"),
        )
    return PruneSettings(
        sparsity=None if cell.granularity else round(1 - cell.density, 12),
        method=cell.method,
        options=dict(cell.options),
        budget=cell.budget,
        granularity=cell.granularity or "weights",
        min_layer_density=cell.min_layer_density,
        keep_connected=cell.keep_connected,
        on_paths=cell.on_paths,
        sanity=cell.sanity,
        scorer=cell.scorer,
        score_images=cell.score_images,
    )


def _train(
    cell: Cell,
    network: Network,
    data: ImageData,
    out: Path,
    device: str,
    settings: PruneSettings | ShrinkSettings | None = None,
    known: Known | None = None,
    test: bool = True,
) -> TrainResult:
    return train_to_folder(
        network,
        data,
        cell.train_config,
        out,
        dataset=cell.facts["dataset"],
        settings=settings,
        known=known,
        device=device,
        resume=True,
        test=test,
    )


def _dense(
    cell: Cell, network: Network, data: ImageData, shared: Shared, device: str
) -> tuple[TrainResult, dict[str, torch.Tensor]]:
    """The dense training that ``cell`` is, or is measured from, and the state in which it ended."""

    def make(folder: Path) -> None:
        _train(cell, network, data, folder / "run", device)

    key = {"work": "dense training", "network": asdict(network), **_common(cell)}
    folder = shared.get(key, make) / "run"
    result = _train(cell, network, data, folder, device)  # finished: read
    model = network.build()
    load_state(folder / "model.safetensors", model)
    return result, model.state_dict()


def _known(
    cell: Cell, network: Network, settings: PruneSettings, data: ImageData, shared: Shared, device: str
) -> Known:
    """What other cells have computed already, or will need too."""
    recipe, _ = recipe_of(cell.method).with_options(cell.options)
    if isinstance(recipe.when, AfterTraining):
        dense, state = _dense(cell, network, data, shared, device)
        config = cell.train_config
        images = config.epochs * config.steps_per_epoch(len(data.train)) * config.batch_size
        return Known(trained=state, cost=Cost(dense.summary["seconds"], images=images))
    if isinstance(recipe.when, Rewinding | PQRewinding):
        facts = {"work": "rounds", "network": asdict(network), **_common(cell), "settings": asdict(recipe.when)}
        # Not Shared.get: the folder is never complete, as each density may add rounds. It brings its own lock.
        folder = shared.folder / f"{digest(facts)}.rounds"
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Known(rounds=folder)
    if isinstance(recipe.when, AtInit) and CRITERIA.get(recipe.criterion).looks_at_gradients:
        return _gradients(cell, network, settings, data, shared, device)
    return Known()


def _gradients(
    cell: Cell, network: Network, settings: PruneSettings, data: ImageData, shared: Shared, device: str
) -> Known:
    def make(folder: Path) -> None:
        size, images = settings.micro_batch, settings.score_images
        batches = score_batches(data, seed=network.seed, images=images, size=size)
        model = network.build().to(device)
        with measured(device) as cost, counted_images() as seen, scoring_stream(network.seed):
            gradients = mean_gradient(model, batches, F.cross_entropy)
        facts = {"cost": asdict(replace(cost, images=seen.count))}
        save_tensors(folder / "gradients.safetensors", _GRADIENTS, gradients, facts)

    key = {
        "work": "gradients",
        "network": asdict(network),
        "data": cell.facts["dataset"],
        "image_size": cell.image_size,
        "split_seed": cell.split_seed,
        "score_images": settings.score_images,
        "micro_batch": settings.micro_batch,
    }
    gradients, facts = load_tensors(shared.get(key, make) / "gradients.safetensors", _GRADIENTS)
    return Known(
        {name: value.to(device) for name, value in gradients.items()}, cost=Cost(**{"images": None, **facts["cost"]})
    )


def _latency(folder: Path, network: Network, data: ImageData, device: str) -> dict[str, Any]:
    """Inference of the smaller network in ``folder`` over that of the dense one, measured in turn."""
    dense = network.build().to(device)
    shape = (data.channels, data.image_size, data.image_size)
    small = load(folder, dense).to(device)
    found = latency_share(small, dense, shape, batch=LATENCY_BATCH, device=device)
    return {"batch": LATENCY_BATCH, "share": found.median, "low": found.low, "high": found.high}


def _common(cell: Cell) -> dict[str, Any]:
    """What determines a training beside the network and its masks."""
    names = ("dataset", "image_size", "split_seed", "train", "seed")
    return {name: cell.facts[name] for name in names}


def _result(run: TrainResult) -> dict[str, Any]:
    """What a cell's file holds of a training."""
    summary, pruned = run.summary, dict(run.summary["pruned"])
    result = {
        "test_accuracy": run.test_accuracy,
        "val_accuracy": summary["val_accuracy"],
        "total": pruned.pop("total", summary["nonzero_weights"]),
        "kept": pruned.pop("kept", summary["nonzero_weights"]),
        "density": pruned.pop("density", 1.0),
        "connected": pruned.pop("connected", True),
        "warnings": pruned.pop("warnings", []),
        "layers": pruned.pop("layers", []),
        "prune_seconds": pruned.pop("seconds", None),
        "prune_peak_bytes": pruned.pop("peak_bytes", None),
        "prune_images": pruned.pop("images", None),
        "train_seconds": summary["seconds"],
        "history": summary["history"],
        "chosen": {},
    }
    return {**result, **{name: value for name, value in pruned.items() if value}}  # rounds, or a schedule's facts


def trainings_of(method: str, options: Mapping[str, Any], density: float, images: int) -> float:
    """How many trainings, which look at ``images`` each, ``method`` costs down to ``density``.

    The short training of a copy counts by its images. SAP's rounds follow the data: they are counted as ten.
    The dense training before :class:`AfterTraining` is counted, although a grid's own dense cell can stand in for it.
    """
    if method == "dense" or method in CHANNEL_RECIPES:
        return 1.0
    recipe, own = recipe_of(method).with_options(options)
    return _trainings_under(recipe.when, density) + _short_training(recipe.criterion, own) / max(images, 1)


def _short_training(criterion: str, options: Mapping[str, Any]) -> int:
    """Images that a criterion trains a copy on."""
    asked = CRITERIA.get(criterion)
    return SCORE_BATCH * {**asked.options, **options}.get("steps", 0) if "stream" in asked.needs else 0


def _trainings_under(when: object, density: float) -> float:
    if isinstance(when, Rewinding):
        rounds = 0
        while when.fraction**rounds > density * (1 + 1e-9):
            rounds += 1
        return 1.0 + rounds
    if isinstance(when, PQRewinding):
        return 1.0 + min(10, when.max_rounds)
    return 2.0 if isinstance(when, AfterTraining) else 1.0


def check_cell(cell: Cell, data: ImageData) -> None:
    """Refuse a method that does not apply to the network, before anything is run.

    Raises:
        AutoSparseError: it names the method, the network and the reason.
    """
    model = network_of(cell, data).build_for(data)
    x, _ = next(iter(data.train.batches(2, limit=2)))
    try:
        _check_output(model, x, data.num_classes)
        if not cell.is_dense:
            settings = settings_of(cell)
            settings.check(at_init=False)
            if isinstance(settings, ShrinkSettings):
                shrinker_for(model, network_of(cell, data), data, settings).require_reachable()
            else:
                recipe, _ = recipe_of(cell.method).with_options(cell.options)
                CRITERIA.get(recipe.criterion).check(model, x)
    except AutoSparseError as error:
        raise AutoSparseError(f"{cell.method} does not apply to {cell.model}: {error}") from None


@torch.no_grad()
def _check_output(model: torch.nn.Module, x: torch.Tensor, classes: int) -> None:
    output = model(x)
    shape = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if shape != [len(x), classes]:
        raise AutoSparseError(f"its output for {len(x)} images is {shape}, not one tensor of {[len(x), classes]}")
