"""From names to results on disk: prune a network into a folder, train it into another."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import nn

from autosparse.data import ImageData
from autosparse.errors import FileFormatError, OutputExistsError
from autosparse.files import (
    SCHEMA_VERSION,
    atomic_folder,
    check_schema,
    exclusive,
    no_empty_work,
    read_json,
    require_absent,
    work_folder,
    write_json,
)
from autosparse.layers import prunable
from autosparse.masks import Masks
from autosparse.models import seeded_model
from autosparse.provenance import provenance
from autosparse.pruning import Pruned, prune, score_batches
from autosparse.report import curve_figure, layer_density_figure, save_figure
from autosparse.training import Callback, EpochRecord, JsonlLog, TrainConfig, evaluate, load_state, save_state, train
from autosparse.training.loop import check_identity

_PRUNING, _TRAINING = "autosparse-pruning", "autosparse-training"

# What is read back from summaries, which may have been damaged since.
_PRUNING_FACTS: Mapping[str, tuple[type, ...]] = {
    "method": (str,),
    "budget": (str,),
    "scorer": (str, NoneType),
    "sparsity": (float, int),
    "kept": (int,),
    "total": (int,),
    "density": (float, int),
    "dataset": (str,),
    "data.image_size": (int,),
    "network.model": (str,),
    "network.model_args": (dict,),
    "network.seed": (int,),
}
_TRAINING_FACTS: Mapping[str, tuple[type, ...]] = {
    "test_accuracy": (float, int),
    "val_accuracy": (float, int, NoneType),
    "seconds": (float, int),
    "history": (list,),
}


@dataclass(frozen=True)
class Network:
    """A network by name, with the seed of its initial weights."""

    model: str = "vgg16"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int = 10
    in_channels: int = 3
    seed: int = 0

    def build(self) -> nn.Module:
        """The network with its initial weights, on the CPU."""
        return seeded_model(
            self.model,
            seed=self.seed,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            **self.model_args,
        )


@dataclass(frozen=True)
class PruneSettings:
    """Arguments of :func:`autosparse.prune` that are names and numbers, and the images to score with."""

    sparsity: float
    method: str = "autos"
    scorer: str | None = None
    budget: str | None = None
    min_layer_density: float = 0.0
    keep_connected: bool = False
    score_images: int = 1280


def prune_to_folder(
    network: Network,
    data: ImageData,
    settings: PruneSettings,
    out: Path,
    *,
    dataset: str,
    device: torch.device | str = "cpu",
    force: bool = False,
) -> Pruned:
    """Prune a freshly initialised network; write masks, initial state, ``summary.json`` and ``layers.png`` to ``out``.

    Args:
        dataset: the data set's name as :func:`~autosparse.data.load_data` takes it, for the summary.

    Raises:
        OutputExistsError: ``out`` is not empty and ``force`` is not set; and everything that ``prune`` raises.
    """
    with exclusive(out):
        require_absent(out, force)
        model = network.build().to(device)
        initial = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        pruned = prune(
            model,
            score_batches(data, seed=network.seed, images=settings.score_images),
            sparsity=settings.sparsity,
            method=settings.method,
            scorer=settings.scorer,
            budget=settings.budget,
            num_batches=None,
            min_layer_density=settings.min_layer_density,
            keep_connected=settings.keep_connected,
            seed=network.seed,
        )
        summary = {
            "kind": _PRUNING,
            "schema_version": SCHEMA_VERSION,
            **pruned.summary.as_dict(),
            "network": asdict(network),
            "dataset": dataset,
            "data": data.describe(),
            "settings": asdict(settings),
            "provenance": provenance(),
        }
        title = f"{network.model}, {settings.method}: {pruned.summary.density:.2%} of the weights kept"
        figure = layer_density_figure({settings.method: pruned.masks.layer_densities()}, title)
        with atomic_folder(out) as folder:
            pruned.masks.save(folder / "masks.safetensors", {"network": asdict(network)})
            save_state(folder / "init.safetensors", initial, {"network": asdict(network)})
            save_figure(figure, folder / "layers.png")
            write_json(folder / "summary.json", summary)
    return pruned


def read_pruning(folder: Path) -> dict[str, Any]:
    """The summary that :func:`prune_to_folder` wrote; FileFormatError for any other folder, or a damaged summary."""
    return _read_summary(folder, _PRUNING, "a folder written by 'autosparse prune'", _PRUNING_FACTS)


def _read_summary(folder: Path, kind: str, what: str, facts: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """``summary.json`` of ``folder``, checked to be of ``kind`` and to hold ``facts`` (``a.b`` is nested) by type."""
    path = folder / "summary.json"
    if not path.is_file():
        raise FileFormatError(f"{folder} holds no summary.json: give {what}")
    summary = read_json(path)
    check_schema(path, kind, summary.get("kind"), summary.get("schema_version"))
    for name, types in facts.items():
        value: Any = summary
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, types):
            raise FileFormatError(f"{path} is damaged: '{name}' is {value!r}; restore or remake the folder")
    return summary


@dataclass(frozen=True)
class TrainResult:
    """A finished training. ``summary`` is what ``summary.json`` holds; accuracies are fractions."""

    test_accuracy: float
    history: list[EpochRecord]
    summary: dict[str, Any]


def train_to_folder(
    network: Network,
    data: ImageData,
    config: TrainConfig,
    out: Path,
    *,
    dataset: str,
    pruning: Path | None = None,
    device: torch.device | str = "cpu",
    resume: bool = False,
    force: bool = False,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train a network, dense or under the masks of ``pruning``, and write log, model, curve and summary to ``out``.

    A pruned network starts from the initial state that was saved with its masks. Test images are looked at once,
    after the last epoch. The unfinished state and its log live in ``OUT.work``; ``out`` appears, or is replaced, when
    the training is over.

    Args:
        pruning: a folder of :func:`prune_to_folder`; ``None`` trains the dense network from ``network.seed``.
        resume: continue an unfinished training for ``out`` (start one when there is none; without ``force``, return a
            finished one's result).
        force: discard an unfinished training and overwrite a finished one.

    Raises:
        OutputExistsError: ``out`` is taken. MaskMismatchError: the masks belong to another network. DivergedError:
        the loss is not finite. AutoSparseError: the settings differ from the run to be resumed.
    """
    from accelerate import PartialState

    # Under torchrun every process trains; the first one alone owns the output.
    processes = PartialState(cpu=torch.device(device).type == "cpu")
    with ExitStack() as held:
        if processes.is_main_process:
            held.enter_context(exclusive(out))
            held.enter_context(no_empty_work(work_folder(out)))
        work = work_folder(out)
        checkpoint = work / "checkpoint.safetensors"
        unfinished, finished = checkpoint.exists(), (out / "summary.json").exists()
        if processes.is_main_process:
            _claim(out, unfinished, finished, resume, force)
        model = network.build()
        masks, kept = (None, {}) if pruning is None else _start_pruned(model, pruning)
        identity = {"network": asdict(network), "dataset": dataset, "data": data.describe(), "pruning": kept}
        if resume and finished and not unfinished and not force:
            return _finished(out, {**identity, "config": asdict(config)})
        if not resume and processes.is_main_process:
            shutil.rmtree(work, ignore_errors=True)
        processes.wait_for_everyone()
        history = train(
            model,
            data,
            config,
            masks=masks,
            device=device,
            checkpoint=checkpoint,
            identity=identity,
            callbacks=[*callbacks, JsonlLog(work / "log.jsonl")],
        )
        accuracy = evaluate(model, data.test, precision=config.precision)
        summary: dict[str, Any] = {
            "kind": _TRAINING,
            "schema_version": SCHEMA_VERSION,
            "test_accuracy": accuracy,
            "val_accuracy": history[-1].val_accuracy if history else None,
            "nonzero_weights": sum(int(weight.count_nonzero()) for weight in prunable(model).values()),
            "seconds": sum(record.seconds for record in history),
            **identity,
            "config": asdict(config),
            "history": [record.as_dict() for record in history],
            "provenance": provenance(),
        }
        if processes.is_main_process:
            _write_training(out, model, history, summary)
            shutil.rmtree(work, ignore_errors=True)
    return TrainResult(accuracy, history, summary)


def _start_pruned(model: nn.Module, pruning: Path) -> tuple[Masks, dict[str, Any]]:
    """Put ``model`` into the initial state that was pruned; its masks, and what the pruning was."""
    summary = read_pruning(pruning)
    masks = Masks.load(pruning / "masks.safetensors")
    masks.check(model)
    load_state(pruning / "init.safetensors", model)
    facts = ("method", "budget", "scorer", "sparsity", "kept", "total", "density")
    return masks, {key: summary[key] for key in facts}


def _claim(out: Path, unfinished: bool, finished: bool, resume: bool, force: bool) -> None:
    """OutputExistsError unless ``out`` is free, may be overwritten, or is to be continued."""
    if unfinished and not (resume or force):
        raise OutputExistsError(
            f"{work_folder(out)} holds an unfinished training: continue it with --resume, or start anew with --force"
        )
    if not (resume and (unfinished or finished)):
        require_absent(out, force)


def _write_training(out: Path, model: nn.Module, history: list[EpochRecord], summary: dict[str, Any]) -> None:
    network, kept = summary["network"], summary["pruning"]
    what = f"{kept['method']}, {kept['density']:.2%} of the weights" if kept else "dense"
    with atomic_folder(out) as folder:
        JsonlLog(folder / "log.jsonl").on_epoch(history)
        save_state(folder / "model.safetensors", model.state_dict(), {"network": network})
        if history:
            figure = curve_figure(summary["history"], f"{network['model']}, {what}", summary["test_accuracy"])
            save_figure(figure, folder / "curve.png")
        write_json(folder / "summary.json", summary)


def _finished(out: Path, identity: Mapping[str, Any]) -> TrainResult:
    summary = _read_summary(out, _TRAINING, "a folder written by 'autosparse train'", _TRAINING_FACTS)
    check_identity(out, {key: summary.get(key) for key in identity}, identity)
    try:
        history = [EpochRecord(**record) for record in summary["history"]]
    except TypeError as error:
        raise FileFormatError(f"{out / 'summary.json'} is damaged ({error}): restore or remake the folder") from None
    return TrainResult(summary["test_accuracy"], history, summary)
