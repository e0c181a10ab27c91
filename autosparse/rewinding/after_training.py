"""Pruning once after training: the trained weights stay and are fine-tuned."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autosparse.budget import select
from autosparse.criteria import CRITERIA
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError
from autosparse.files import exclusive, load_tensors, no_empty_work, save_tensors
from autosparse.layers import layers_of, total_weights
from autosparse.rewinding.ticket import (
    BUDGET_OF,
    BatchSource,
    Ticket,
    check_keep,
    fingerprint,
    snapshot,
    trained_scores,
)
from autosparse.seeding import generator
from autosparse.training import Callback, TrainConfig, evaluate, train
from autosparse.training.loop import check_identity
from autosparse.triggers.rounds import AfterTraining

_TRAINED = "dense-training"


class AfterTrainingPruner:
    """One dense training, whose weights give the tickets of every density.

    The dense training is that of :func:`autosparse.training.train` and nothing else: a benchmark that has run it for
    its dense baseline hands in the result as ``trained``. Otherwise it is run when the first ticket is asked for and
    kept in ``folder``; it may be interrupted at any moment and continues, bit-equal, from the last epoch.

    Args:
        model: a freshly initialised network (any of the same kind, if ``trained`` is given). It is trained in place.
        train: the dense training, seed included; :meth:`AfterTraining.fine_tuning` derives that of the ticket.
        folder: where the dense training is kept; not used if ``trained`` is given. While :meth:`ticket` works no
            other process can use it (:func:`autosparse.files.exclusive`).
        identity: JSON-able facts that must agree with what the folder holds, beside training, data and initial weights.
        batches: the images of criteria that look at data.
        trained: the ``state_dict()`` that the dense training ended with.

    Raises:
        UnknownNameError: no such criterion. AutoSparseError: it looks at data and ``batches`` is missing.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        settings: AfterTraining,
        train: TrainConfig,
        folder: Path,
        *,
        trained: Mapping[str, Tensor] | None = None,
        identity: Mapping[str, Any] | None = None,
        batches: BatchSource | None = None,
        device: torch.device | str | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.model = model
        self.data = data
        self.settings = settings
        self.config = train
        self.folder = folder
        self.device = device
        self.trained = trained
        self.records: list[dict[str, Any]] = []
        self._batches = batches
        self._callbacks = callbacks
        if CRITERIA.get(settings.criterion).needs_data and batches is None:
            raise AutoSparseError(f"criterion '{settings.criterion}' looks at data: pass batches=, a function")
        if trained is None:
            facts = {"train": asdict(train), "data": data.describe(), "initial_state": fingerprint(model)}
            self.identity = {**(identity or {}), **facts}

    def ticket(self, keep: int) -> Ticket:
        """The ticket with exactly ``keep`` weights, at their trained values.

        The dense training is run first where it is still to do.

        Raises:
            BudgetError: ``keep`` is not between 1 and the number of weights. OutputExistsError: another process uses
            the folder. DivergedError: the loss is not finite. AutoSparseError: the folder holds another training, or
            ``trained`` is another network's.
        """
        layers = layers_of(self.model)
        check_keep(keep, total_weights(layers))
        if self.trained is None:
            with exclusive(self.folder), no_empty_work(self.folder):
                self.trained = self._train()
        self._load(self.trained)
        random = generator(self.config.seed, "scores", 0)
        scores = trained_scores(self.settings.criterion, self.model, self._batches, generator=random)
        masks = select(scores, layers, keep, budget=BUDGET_OF[self.settings.scope]).to("cpu")
        state = {name: tensor.detach().cpu() for name, tensor in self.trained.items()}
        return Ticket(state, masks, self.settings.fine_tuning(self.config), 0, list(self.records))

    def _train(self) -> dict[str, Tensor]:
        """The state after dense training, read from the folder where it is finished."""
        finished, checkpoint = self.folder / "trained.safetensors", self.folder / "checkpoint.safetensors"
        if finished.exists():
            state, facts = load_tensors(finished, _TRAINED)
            check_identity(finished, facts["identity"], self.identity)
            self.records = facts["records"]
            return state
        began = time.perf_counter()
        history = train(
            self.model,
            self.data,
            self.config,
            device=self.device,
            checkpoint=checkpoint,
            identity=self.identity,
            callbacks=self._callbacks,
            validate=False,
        )
        state = snapshot(self.model)
        total = total_weights(layers_of(self.model))
        self.records = [
            {
                "round": 0,
                "density": 1.0,
                "kept": total,
                "train_loss": history[-1].train_loss if history else None,
                "val_accuracy": evaluate(self.model, self.data.val, precision=self.config.precision),
                "kept_after": total,
                "seconds": time.perf_counter() - began,
            }
        ]
        save_tensors(finished, _TRAINED, state, {"identity": self.identity, "records": self.records})
        checkpoint.unlink(missing_ok=True)
        return state

    def _load(self, state: Mapping[str, Tensor]) -> None:
        try:
            self.model.load_state_dict(dict(state))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise AutoSparseError(
                f"the trained state does not fit {type(self.model).__name__} ({reason}): "
                "hand in what the same network was trained to"
            ) from None
