"""Training a network into a folder: dense, under masks, or by a method that prunes on its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import nn

from autosparse.data import ImageData
from autosparse.errors import AutoSparseError, FileFormatError, OutputExistsError
from autosparse.experiment.network import Network, PruneSettings, ShrinkSettings
from autosparse.experiment.shrunk import ShrunkStart, write_network
from autosparse.experiment.start import Known, Start, outcome_of, start_by_method, start_from_folder
from autosparse.experiment.summary import read_summary
from autosparse.files import (
    SCHEMA_VERSION,
    atomic_folder,
    exclusive,
    no_empty_work,
    remove_folder,
    require_absent,
    work_folder,
    write_json,
)
from autosparse.layers import prunable
from autosparse.masks import Masks
from autosparse.provenance import provenance
from autosparse.training import Callback, EpochRecord, JsonlLog, TrainConfig, evaluate, save_state, train
from autosparse.training.loop import check_identity

TRAINING = "autosparse-training"
_TRAINING_FACTS: Mapping[str, tuple[type, ...]] = {
    "test_accuracy": (float, int, NoneType),
    "val_accuracy": (float, int, NoneType),
    "seconds": (float, int),
    "history": (list,),
}


@dataclass(frozen=True)
class TrainResult:
    """A finished training. ``summary`` is what ``summary.json`` holds; accuracies are fractions.

    ``test_accuracy`` is ``None`` where the test images were not to be looked at.
    """

    test_accuracy: float | None
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
    settings: PruneSettings | ShrinkSettings | None = None,
    known: Known | None = None,
    device: torch.device | str = "cpu",
    resume: bool = False,
    force: bool = False,
    callbacks: Callable[[str], list[Callback]] = lambda what: [],
    test: bool = True,
) -> TrainResult:
    """Train a network and write log, model, masks, curve and summary to ``out``.

    The network is dense, or pruned in one of two ways: it starts from the state and the masks of a ``pruning`` (or as
    the smaller network that it holds), or by the method of ``settings``, whenever that prunes. Test images are looked
    at once, after the last epoch. The
    unfinished state and its log live in ``OUT.work``; ``out`` appears, or is replaced, when the training is over.

    Args:
        pruning: a folder of :func:`prune_to_folder` or :func:`~autosparse.experiment.shrunk.shrink_to_folder`.
        settings: how to prune ``network`` before, on the way, or in rounds of training: its weights or its channels.
        known: what a method may use instead of computing it again.
        resume: continue an unfinished training for ``out`` (start one when there is none; without ``force``, return a
            finished one's result).
        force: discard an unfinished training and overwrite a finished one.
        callbacks: from what is trained (``train``, ``dense``, ``round 3``) to callbacks of that training.
        test: whether to look at the test images at all.

    Raises:
        OutputExistsError: ``out`` is taken. MaskMismatchError: the masks belong to another network. DivergedError:
        the loss is not finite. AutoSparseError: the settings differ from the run to be resumed.
    """
    from accelerate import PartialState

    # Under torchrun every process trains; the first one alone owns the output.
    processes = PartialState(cpu=torch.device(device).type == "cpu")
    if settings is not None and processes.num_processes > 1:
        raise AutoSparseError(
            "a method cannot prune under torchrun: prune in one process with 'autosparse prune', then train --masks"
        )
    with ExitStack() as held:
        if processes.is_main_process:
            held.enter_context(exclusive(out))
            held.enter_context(no_empty_work(work_folder(out)))
        work = work_folder(out)
        checkpoint = work / "checkpoint.safetensors"
        unfinished = checkpoint.exists() or (work / "pruning").exists() or (work / "rounds").exists()
        finished = (out / "summary.json").exists()
        if processes.is_main_process:
            _claim(out, unfinished, finished, resume, force)
        model = network.build_for(data)
        start: Start | None = None
        identity: dict[str, Any] = {"network": asdict(network), "dataset": dataset, "data": data.describe()}
        if settings is not None:  # a method may take long: it is begun when nothing speaks against it any more
            identity["pruning"] = asdict(settings)
        else:
            start = Start(config) if pruning is None else start_from_folder(model, pruning, config)
            identity["pruning"] = start.identity
        if resume and finished and not unfinished and not force:
            return _finished(out, {**identity, "config": asdict(config)})
        if not resume and processes.is_main_process:
            remove_folder(work)
        processes.wait_for_everyone()
        if start is None:
            assert settings is not None
            where, found = torch.device(device), known or Known()
            start = start_by_method(
                model, network, data, settings, config, work,
                dataset=dataset, device=where, known=found, callbacks=callbacks,
            )  # fmt: skip
        shrunk = start.shrunk
        model = model if shrunk is None else shrunk.model
        history = train(
            model,
            data,
            start.config,
            masks=start.masks,
            schedule=start.schedule,
            narrowing=None if shrunk is None else shrunk.narrowing,
            device=device,
            checkpoint=checkpoint,
            identity=identity,
            callbacks=[*callbacks("train"), JsonlLog(work / "log.jsonl")],
            start_step=start.step,
        )
        masks = start.schedule.masks if start.schedule is not None else start.masks
        summary = {
            "kind": TRAINING,
            "schema_version": SCHEMA_VERSION,
            "test_accuracy": evaluate(model, data.test, precision=config.precision) if test else None,
            **_measured(model, history),
            **identity,
            "config": asdict(config),
            "pruned": _outcome(start, model, masks, data, start.config),
            "history": [record.as_dict() for record in history],
            "provenance": provenance(),
        }
        if processes.is_main_process:
            _write_training(out, model, masks, history, summary, data, network, shrunk)
            remove_folder(work)
    return TrainResult(summary["test_accuracy"], history, summary)


def _measured(model: nn.Module, history: list[EpochRecord]) -> dict[str, Any]:
    """Facts about a training that is over, JSON-able."""
    return {
        "val_accuracy": history[-1].val_accuracy if history else None,
        "nonzero_weights": sum(int(weight.count_nonzero()) for weight in prunable(model).values()),
        "seconds": sum(record.seconds for record in history),
    }


def _outcome(
    start: Start, model: nn.Module, masks: Masks | None, data: ImageData, config: TrainConfig
) -> dict[str, Any]:
    """What was pruned, JSON-able; empty for a dense network."""
    if start.shrunk is not None:
        images = config.steps_per_epoch(len(data.train)) * config.batch_size
        return start.shrunk.ended(images, config.epochs)
    if start.schedule is None:
        return dict(start.outcome)
    if masks is None:  # the schedule never pruned
        masks = Masks.dense(model)
    return {**outcome_of(model, masks, data), "schedule": start.schedule.facts()}


def _claim(out: Path, unfinished: bool, finished: bool, resume: bool, force: bool) -> None:
    """OutputExistsError unless ``out`` is free, may be overwritten, or is to be continued."""
    if unfinished and not (resume or force):
        raise OutputExistsError(
            f"{work_folder(out)} holds an unfinished training: continue it with --resume, or start anew with --force"
        )
    if not (resume and (unfinished or finished)):
        require_absent(out, force)


def _write_training(
    out: Path,
    model: nn.Module,
    masks: Masks | None,
    history: list[EpochRecord],
    summary: dict[str, Any],
    data: ImageData,
    built: Network,
    shrunk: ShrunkStart | None,
) -> None:
    from autosparse.report.figures import curve_figure
    from autosparse.report.save import save_figure
    from autosparse.report.trigger_figure import trigger_figure

    network, kept, method = summary["network"], summary["pruned"], summary["pruning"].get("method")
    what = f"{method}, {kept['density']:.2%} of the weights" if kept else "dense"
    with atomic_folder(out) as folder:
        JsonlLog(folder / "log.jsonl").on_epoch(history)
        if shrunk is None:
            save_state(folder / "model.safetensors", model.state_dict(), {"network": network})
        else:
            write_network(folder, model, shrunk.dense, built, data, kept["channels"])
            if any(value is not None for value in kept["trigger"].get("values", ())):
                title = f"{network['model']}, {method}: pruned after epoch {kept['trigger']['pruned_at_epoch']}"
                save_figure(trigger_figure(kept["trigger"], title), folder / "trigger.png")
        if masks is not None:
            masks.save(folder / "masks.safetensors", {"network": network})
        if history:
            figure = curve_figure(summary["history"], f"{network['model']}, {what}", summary["test_accuracy"])
            save_figure(figure, folder / "curve.png")
        write_json(folder / "summary.json", summary)


def _finished(out: Path, identity: Mapping[str, Any]) -> TrainResult:
    summary = read_summary(out, TRAINING, "a folder written by 'autosparse train'", _TRAINING_FACTS)
    check_identity(out, {key: summary.get(key) for key in identity}, identity)
    try:
        history = [EpochRecord(**record) for record in summary["history"]]
    except TypeError as error:
        raise FileFormatError(f"{out / 'summary.json'} is damaged ({error}): restore or remake the folder") from None
    return TrainResult(summary["test_accuracy"], history, summary)
