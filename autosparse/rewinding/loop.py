"""Rounds of pruning with rewinding: mask, rewind, train, prune; resumable after every epoch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autosparse.data import ImageData
from autosparse.errors import AutoSparseError, DivergedError, FileFormatError
from autosparse.files import load_tensors, save_tensors
from autosparse.layers import layers_of, total_weights
from autosparse.masks import Masks
from autosparse.rewinding.ticket import snapshot
from autosparse.seeding import derive_seed
from autosparse.training import Callback, TrainConfig, evaluate, train
from autosparse.training.loop import check_identity

_SETUP, _PROGRESS = "irp-setup", "irp-progress"

#: From a round's index and the masks that it trained with to what is left of them; the model holds its trained weights.
Prune = Callable[[int, Masks], Masks]
#: Tensors that are measured on the initial network.
Measure = Callable[[], Mapping[str, Tensor]]


class Rounds:
    """The state of rounds on one network: how many of them each weight survived, and a record of each.

    ``folder`` holds it and is complete after every epoch: a killed run continues bit-equal. The caller sees to it that
    no other process uses the folder meanwhile (:func:`autosparse.files.exclusive`).

    Args:
        model: the network in its initial state; it is trained in place.
        config: the training of every round; its ``seed`` is replaced by one derived from ``seed``.
        seed: fixes the order and augmentation of the images in each round.
        prune: says what a round leaves. Masks have to be nested.
        rewind_steps: every round begins in the dense network's state after this many steps; 0 is the initial state.
            Batch norm and biases are rewound with the weights; momentum begins at zero.
        identity: JSON-able facts that must agree between a run and the one that continues it.

    Raises:
        AutoSparseError: rewinding would leave nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        config: TrainConfig,
        folder: Path,
        *,
        seed: int,
        prune: Prune,
        rewind_steps: int = 0,
        identity: Mapping[str, Any],
        device: torch.device | str | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.config = config
        self.folder = folder
        self.seed = seed
        self.rewind_steps = rewind_steps
        self.identity = identity
        self.device = device
        self.layers = layers_of(model)
        self.total = total_weights(self.layers)
        self.survived = torch.zeros(self.total, dtype=torch.int32)
        self.records: list[dict[str, Any]] = []
        self.initial: dict[str, Tensor] = {}
        self.rewind: dict[str, Tensor] = {}
        self.measured: dict[str, dict[str, Tensor]] = {}
        self._prune = prune
        self._setup, self._progress = folder / "setup.safetensors", folder / "progress.safetensors"
        steps = config.epochs * config.steps_per_epoch(len(data.train))
        if rewind_steps and rewind_steps >= steps:
            raise AutoSparseError(
                f"rewind-steps is {rewind_steps}, but a round has {steps} steps: give fewer or more epochs"
            )
        self._steps = steps - rewind_steps

    @property
    def completed(self) -> int:
        return len(self.records)

    @property
    def started(self) -> bool:
        """Whether the folder holds a run, this one or another."""
        return self._setup.exists()

    def owns_folder(self) -> bool:
        """Whether the folder holds this very run."""
        if not self.started:
            return False
        found = load_tensors(self._setup, _SETUP)[1]
        return found == json.loads(json.dumps(self.identity))  # as JSON: a tuple comes back as a list

    def prepare(self, measure: Mapping[str, Measure] | None = None) -> None:
        """Make the initial and the rewound state, or read them and the progress.

        Args:
            measure: what else to measure on the initial network, into ``measured`` under the same names.

        Raises:
            AutoSparseError: the folder holds a run of another identity. FileFormatError: it is damaged.
        """
        measure = measure or {}
        if self.started:
            tensors, identity = load_tensors(self._setup, _SETUP)
            check_identity(self.folder, identity, self.identity)
            self.initial = _group(tensors, "initial")
            self.rewind = _group(tensors, "rewind") or self.initial
            self.measured = {name: _group(tensors, name) for name in measure}
        else:
            self.initial = snapshot(self.model)
            self.measured = {name: dict(function()) for name, function in measure.items()}
            self.rewind = self._rewind_state()
            groups = {"initial": self.initial, **self.measured, "rewind": self.rewind if self.rewind_steps else {}}
            tensors = {f"{name}/{key}": tensor for name, group in groups.items() for key, tensor in group.items()}
            save_tensors(self._setup, _SETUP, tensors, self.identity)
        if self._progress.exists():
            tensors, metadata = load_tensors(self._progress, _PROGRESS)
            self.survived, self.records = tensors["rounds_survived"], metadata["rounds"]
            if self.survived.shape != (self.total,):
                raise FileFormatError(
                    f"{self._progress} has {self.survived.numel()} weights, the network {self.total}: "
                    "start anew with --force"
                )

    def _rewind_state(self) -> dict[str, Tensor]:
        if self.rewind_steps == 0:
            return self.initial
        config = replace(self.config, seed=derive_seed(self.seed, "rewind"))
        train(self.model, self.data, config, device=self.device, stop_step=self.rewind_steps, validate=False)
        return snapshot(self.model)

    def masks(self, completed: int | None = None) -> Masks:
        """The weights that survived the first ``completed`` rounds; by default what the coming round trains with."""
        alive = self.survived >= (self.completed if completed is None else completed)
        parts = alive.split([layer.size for layer in self.layers])
        return Masks({layer.name: part.reshape(layer.shape) for layer, part in zip(self.layers, parts, strict=True)})

    def kept(self, completed: int) -> int:
        """How many weights survived the first ``completed`` rounds."""
        return int((self.survived >= completed).sum())

    def round(self, callbacks: Sequence[Callback] = ()) -> None:
        """One round: rewind, train under the masks, prune; its state is on disk afterwards.

        Raises:
            DivergedError: the loss is not finite. What went before is kept, and the round can be tried again.
        """
        began = time.perf_counter()
        index, masks = self.completed, self.masks()
        checkpoint = self.folder / f"round-{index:05d}.safetensors"
        for stale in self._checkpoints():
            if stale != checkpoint:
                stale.unlink()
        self.model.load_state_dict(self.rewind)
        history = train(
            self.model,
            self.data,
            replace(self.config, seed=derive_seed(self.seed, "round", index)),
            masks=masks,
            device=self.device,
            checkpoint=checkpoint,
            identity={"round": index},
            callbacks=callbacks,
            validate=False,
            start_step=self.rewind_steps,
        )
        accuracy = evaluate(self.model, self.data.val, precision=self.config.precision)
        kept = self._prune(index, masks)
        self.records.append(
            {
                "round": index,
                "density": masks.density,
                "kept": masks.kept,
                "train_loss": history[-1].train_loss,
                "val_accuracy": accuracy,
                "kept_after": kept.kept,
                "images": self._steps * self.config.batch_size,
                "seconds": time.perf_counter() - began,
            }
        )
        self.survived += torch.cat([kept[layer.name].cpu().reshape(-1) for layer in self.layers])
        save_tensors(self._progress, _PROGRESS, {"rounds_survived": self.survived}, {"rounds": self.records})
        checkpoint.unlink()

    def abandon(self, error: AutoSparseError) -> None:
        """Remove what an error left if it is not worth continuing: better settings would be refused."""
        trained = any(self._checkpoints()) and not isinstance(error, DivergedError)
        if self.completed or trained:
            return
        for file in (*self._checkpoints(), self._setup):
            file.unlink(missing_ok=True)

    def _checkpoints(self) -> list[Path]:
        return list(self.folder.glob("round-*.safetensors"))


def _group(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors called ``name/KEY``, by key."""
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
