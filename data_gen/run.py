"""One IRP run, from a configuration to a record in an HDF5 file; the rounds are :mod:`autosparse.rewinding`'s."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autosparse.budget import select
from autosparse.criteria import mean_gradient
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError, DivergedError, OutputExistsError
from autosparse.experiment import Network
from autosparse.files import exclusive, no_empty_work, remove_folder, require_absent, require_space, work_folder
from autosparse.layers import Layer
from autosparse.masks import Masks
from autosparse.provenance import provenance
from autosparse.pruning import score_batches
from autosparse.rewinding import BUDGET_OF, OnRound, Rounds, trained_scores
from autosparse.scorer.dataset import IRPRun, list_runs, read_run
from autosparse.training import Callback
from data_gen.config import IRPConfig
from data_gen.records import append_run, round_table


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
    on_round: OnRound = lambda rounds: None,
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
        rounds = run.rounds
        if resume and not force and (written := _written(out, name, run.identity)) is not None:
            if rounds.owns_folder():  # left by a kill between writing and cleaning up
                remove_folder(work)
            return written
        _claim(out, name, unfinished=rounds.started, resume=resume, append=append, force=force)
        if force and not resume:
            remove_folder(work)
        require_space(out, 32 * rounds.total)
        run.prepare()
        try:
            while rounds.completed < config.rounds:
                run.round(callbacks(rounds.completed))
                on_round(rounds.records)
        except AutoSparseError as error:
            rounds.abandon(error)
            raise
        record = run.record(name)
        append_run(out, record, replace=force, fresh=force and not append)
        remove_folder(work)
    return record


def _claim(out: Path, name: str, *, unfinished: bool, resume: bool, append: bool, force: bool) -> None:
    """An error unless the run may be written to ``out``: it is free, grows by a new run, or may be overwritten."""
    if unfinished and not (resume or force):
        raise OutputExistsError(
            f"{work_folder(out)} holds an unfinished run: continue it with --resume or discard it with --force"
        )
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
    """One run: the rounds of a network as the library runs them, under the schedule of an IRP configuration."""

    def __init__(self, config: IRPConfig, data: ImageData, work: Path, device: torch.device) -> None:
        self.config = config
        self.data = data
        network = Network(config.model, config.model_args, data.num_classes, data.channels, config.seed)
        self.model = network.build_for(data).to(device)
        self.identity = {"config": config.as_dict(), "data": data.describe()}
        self.rounds = Rounds(
            self.model,
            data,
            config.train,
            work,
            seed=config.seed,
            prune=self._prune,
            rewind_steps=config.rewind_steps,
            identity=self.identity,
            device=device,
        )

    def batches(self) -> Any:
        """The training images over which gradients are averaged; the same ones whenever they are asked for."""
        return score_batches(self.data, seed=self.config.seed, images=self.config.gradient_images)

    def prepare(self) -> None:
        """Make the initial state, the rewound state and the initial gradients, or read them and the progress."""
        self.rounds.prepare({"gradient": lambda: mean_gradient(self.model, self.batches(), F.cross_entropy)})

    def round(self, callbacks: list[Callback]) -> None:
        try:
            self.rounds.round(callbacks)
        except DivergedError as error:
            raise DivergedError(f"round {self.rounds.completed + 1} of {self.config.rounds}: {error}") from None

    def _prune(self, index: int, masks: Masks) -> Masks:
        config, rounds = self.config, self.rounds
        scores = trained_scores(config.criterion, self.model, self.batches)
        keep = config.kept_after(index + 1, rounds.total)
        return select(scores, rounds.layers, keep, budget=BUDGET_OF[config.scope], within=masks)

    def record(self, name: str) -> IRPRun:
        """The finished run."""
        rounds, layers = self.rounds, self.rounds.layers
        states: dict[str, Mapping[str, Tensor]] = {"initial_state": rounds.initial}
        if self.config.rewind_steps:
            states["rewind_state"] = rounds.rewind
        return IRPRun(
            name=name,
            config=self.config.as_dict(),
            provenance=provenance(),
            data=self.data.describe(),
            layers=layers,
            initial_value=_flatten(rounds.initial, layers),
            initial_gradient=_flatten(rounds.measured["gradient"], layers),
            rounds_survived=rounds.survived.numpy().astype(np.uint16),
            rounds=round_table(rounds.records),
            states=states,
        )


def _flatten(tensors: Mapping[str, Tensor], layers: list[Layer]) -> np.ndarray:
    return torch.cat([tensors[layer.name].detach().cpu().float().reshape(-1) for layer in layers]).numpy()
