"""The IRP loop: mask, rewind, train, score, prune; resumable after every epoch."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.budget import select
from autosparse.criteria import mean_gradient, score
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError, DivergedError, FileFormatError, OutputExistsError
from autosparse.files import (
    exclusive,
    load_tensors,
    no_empty_work,
    require_absent,
    require_space,
    save_tensors,
    work_folder,
)
from autosparse.layers import Layer, layers_of, total_weights
from autosparse.masks import Masks
from autosparse.models import seeded_model
from autosparse.provenance import provenance
from autosparse.pruning import score_batches
from autosparse.scorer.dataset import IRPRun, list_runs, read_run
from autosparse.seeding import derive_seed
from autosparse.training import Callback, evaluate, train
from autosparse.training.loop import check_identity
from data_gen.config import IRPConfig
from data_gen.records import append_run, round_table

_SETUP, _PROGRESS = "irp-setup", "irp-progress"
_SETUP_FILE = "setup.safetensors"
RoundReport = Callable[[list[dict[str, Any]]], None]


def run_name(config: IRPConfig, data: ImageData) -> str:
    """The default name of a run: model, data set and seed."""
    text = f"{config.model}_{Path(data.name.removeprefix('imagefolder:')).name.partition('.')[0]}_seed{config.seed}"
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", text)


def generate(
    config: IRPConfig,
    data: ImageData,
    out: Path,
    *,
    name: str | None = None,
    device: torch.device | str = "cpu",
    resume: bool = False,
    append: bool = False,
    force: bool = False,
    callbacks: Callable[[int], list[Callback]] = lambda round_index: [],
    on_round: RoundReport = lambda rounds: None,
) -> IRPRun:
    """Run IRP and write the run into the HDF5 file ``out``.

    The unfinished state lives in ``OUT.work`` and is complete after every epoch; ``out`` itself appears, or grows by
    the new run, when the run is over.

    Args:
        name: the run's name in the file; by default model, data set and seed.
        resume: continue the unfinished run; start one when there is none; return one that is finished already.
        append: add the run to an existing file.
        force: discard an unfinished run and overwrite the file (with ``append``: the run of the same name).
        callbacks: from the round's index to callbacks of its training.
        on_round: called with all rounds' records after each round.

    Raises:
        OutputExistsError: ``out`` exists, has this run, is unfinished, or is being written by another process.
        DivergedError: a loss is not finite (the message names the round). AutoSparseError: the settings differ from
        the run to be resumed, or the disk is full.
    """
    name = name or run_name(config, data)
    with exclusive(out), no_empty_work(work := work_folder(out)):
        run = _IRP(config, data, work, torch.device(device))
        run.check()
        if resume and not force and (written := _written(out, name, run.identity)) is not None:
            if run.owns_work():  # left by a kill between writing and cleaning up
                shutil.rmtree(work)
            return written
        _claim(out, name, resume=resume, append=append, force=force)
        if force and not resume:
            shutil.rmtree(work, ignore_errors=True)
        require_space(out, 32 * run.total)
        run.prepare()
        try:
            while run.completed < config.rounds:
                run.round(callbacks(run.completed))
                on_round(run.rounds)
        except AutoSparseError as error:
            trained = any(work.glob("round-*.safetensors")) and not isinstance(error, DivergedError)
            if not (run.completed or trained):  # nothing worth continuing; better settings would be refused
                shutil.rmtree(work)
            raise
        record = run.record(name)
        append_run(out, record, replace=force, fresh=force and not append)
        shutil.rmtree(work)
    return record


def _claim(out: Path, name: str, *, resume: bool, append: bool, force: bool) -> None:
    """An error unless the run may be written to ``out``: it is free, grows by a new run, or may be overwritten."""
    work = work_folder(out)
    if (work / _SETUP_FILE).exists() and not (resume or force):
        raise OutputExistsError(f"{work} holds an unfinished run: continue it with --resume or discard it with --force")
    if out.is_dir():
        raise AutoSparseError(f"{out} is a folder: give the path of an HDF5 file, such as {out / 'irp.h5'}")
    taken = list_runs(out) if append and out.exists() else []
    if not append:
        require_absent(out, force)
    if name in taken and not force:
        raise OutputExistsError(f"{out} already has a run '{name}': choose another seed or --out, or give --force")


def _written(out: Path, name: str, identity: Mapping[str, Any]) -> IRPRun | None:
    """The run in ``out`` if it is the one that ``identity`` asks for."""
    if not out.is_file() or name not in list_runs(out):
        return None
    run = read_run(out, name)
    return run if _same({"config": run.config, "data": run.data}, identity) else None


def _same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two identities agree once they have been written and read (tuples become lists)."""
    return bool(json.loads(json.dumps(found)) == json.loads(json.dumps(wanted)))


class _IRP:
    """The state of one run: the network, how many rounds each weight survived, the rounds' records."""

    def __init__(self, config: IRPConfig, data: ImageData, work: Path, device: torch.device) -> None:
        self.config = config
        self.data = data
        self.work = work
        self.device = device
        self.model = seeded_model(
            config.model,
            seed=config.seed,
            num_classes=data.num_classes,
            in_channels=data.channels,
            **config.model_args,
        ).to(device)
        self.layers: list[Layer] = layers_of(self.model)
        self.total = total_weights(self.layers)
        self.identity = {"config": config.as_dict(), "data": data.describe()}
        self.survived = torch.zeros(self.total, dtype=torch.int32)
        self.rounds: list[dict[str, Any]] = []
        self.initial: dict[str, Tensor] = {}
        self.rewind: dict[str, Tensor] = {}
        self.gradient: dict[str, Tensor] = {}

    @property
    def completed(self) -> int:
        return len(self.rounds)

    def batches(self) -> Any:
        """The training images over which gradients are averaged; the same ones whenever they are asked for."""
        return score_batches(self.data, seed=self.config.seed, images=self.config.gradient_images)

    def check(self) -> None:
        """AutoSparseError when rewinding would leave nothing to train."""
        train, rewind = self.config.train, self.config.rewind_steps
        steps = train.epochs * (len(self.data.train) // train.batch_size)
        if rewind and rewind >= steps:
            raise AutoSparseError(f"rewind-steps is {rewind}, but a round has {steps} steps: give fewer or more epochs")

    def owns_work(self) -> bool:
        """Whether the work folder belongs to this very run."""
        setup = self.work / _SETUP_FILE
        return setup.exists() and _same(load_tensors(setup, _SETUP)[1], self.identity)

    def prepare(self) -> None:
        """Make the initial state, the rewound state and the initial gradients, or read them and the progress."""
        setup, progress = self.work / _SETUP_FILE, self.work / "progress.safetensors"
        if setup.exists():
            tensors, identity = load_tensors(setup, _SETUP)
            check_identity(self.work, identity, self.identity)
            for part, group in (("initial", self.initial), ("rewind", self.rewind), ("gradient", self.gradient)):
                group.update({key.partition("/")[2]: t for key, t in tensors.items() if key.startswith(part + "/")})
            self.rewind = self.rewind or self.initial
        else:
            self.initial = _snapshot(self.model)
            self.gradient = mean_gradient(self.model, self.batches(), F.cross_entropy)
            self.rewind = self._rewind_state()
            groups = {"initial": self.initial, "gradient": self.gradient}
            if self.config.rewind_steps:
                groups["rewind"] = self.rewind
            tensors = {f"{part}/{key}": t for part, group in groups.items() for key, t in group.items()}
            save_tensors(setup, _SETUP, tensors, self.identity)
        if progress.exists():
            tensors, metadata = load_tensors(progress, _PROGRESS)
            self.survived, self.rounds = tensors["rounds_survived"], metadata["rounds"]
            if self.survived.shape != (self.total,):
                raise FileFormatError(
                    f"{progress} has {self.survived.numel()} weights, the network {self.total}: start anew with --force"
                )

    def _rewind_state(self) -> dict[str, Tensor]:
        if self.config.rewind_steps == 0:
            return self.initial
        config = replace(self.config.train, seed=derive_seed(self.config.seed, "rewind"))
        train(self.model, self.data, config, device=self.device, stop_step=self.config.rewind_steps, validate=False)
        return _snapshot(self.model)

    def masks(self) -> Masks:
        """What the coming round trains with: the weights that survived all rounds so far."""
        alive = self.survived >= self.completed
        parts = alive.split([layer.size for layer in self.layers])
        return Masks({layer.name: part.reshape(layer.shape) for layer, part in zip(self.layers, parts, strict=True)})

    def round(self, callbacks: list[Callback]) -> None:
        """One round: rewind, train under the mask, score, prune; its state is on disk afterwards."""
        began = time.perf_counter()
        index, config = self.completed, self.config
        masks = self.masks()
        checkpoint = self.work / f"round-{index:05d}.safetensors"
        for stale in self.work.glob("round-*.safetensors"):
            if stale != checkpoint:
                stale.unlink()
        self.model.load_state_dict(self.rewind)
        try:
            history = train(
                self.model,
                self.data,
                replace(config.train, seed=derive_seed(config.seed, "round", index)),
                masks=masks,
                device=self.device,
                checkpoint=checkpoint,
                identity={"round": index},
                callbacks=callbacks,
                validate=False,
                start_step=config.rewind_steps,
            )
        except DivergedError as error:
            raise DivergedError(f"round {index + 1} of {config.rounds}: {error}") from None
        accuracy = evaluate(self.model, self.data.val, precision=config.train.precision)
        kept = self._prune(masks)
        self.rounds.append(
            {
                "round": index,
                "density": masks.density,
                "kept": masks.kept,
                "train_loss": history[-1].train_loss,
                "val_accuracy": accuracy,
                "kept_after": kept.kept,
                "seconds": time.perf_counter() - began,
            }
        )
        self.survived += torch.cat([kept[layer.name].cpu().reshape(-1) for layer in self.layers])
        save_tensors(
            self.work / "progress.safetensors",
            _PROGRESS,
            {"rounds_survived": self.survived},
            {"rounds": self.rounds},
        )
        checkpoint.unlink()

    def _prune(self, masks: Masks) -> Masks:
        config = self.config
        needs_data = config.criterion != "magnitude"
        scores = score(
            config.criterion,
            self.model,
            batches=self.batches() if needs_data else None,
            loss_fn=F.cross_entropy if needs_data else None,
        )
        keep = config.kept_after(self.completed + 1, self.total)
        budget = "uniform" if config.scope == "layer" else "global"
        return select(scores, self.layers, keep, budget=budget, within=masks)

    def record(self, name: str) -> IRPRun:
        """The finished run."""
        states: dict[str, Mapping[str, Tensor]] = {"initial_state": self.initial}
        if self.config.rewind_steps:
            states["rewind_state"] = self.rewind
        weights = {layer.name: self.initial[layer.name] for layer in self.layers}
        return IRPRun(
            name=name,
            config=self.config.as_dict(),
            provenance=provenance(),
            data=self.data.describe(),
            layers=self.layers,
            initial_value=_flatten(weights, self.layers),
            initial_gradient=_flatten(self.gradient, self.layers),
            rounds_survived=self.survived.numpy().astype(np.uint16),
            rounds=round_table(self.rounds),
            states=states,
        )


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the whole state on the CPU: weights, biases, norm parameters and buffers."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _flatten(tensors: Mapping[str, Tensor], layers: list[Layer]) -> np.ndarray:
    return torch.cat([tensors[layer.name].detach().cpu().float().reshape(-1) for layer in layers]).numpy()
