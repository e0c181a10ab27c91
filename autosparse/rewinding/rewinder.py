"""Lottery-ticket rewinding and SAP: one run of rounds gives the tickets of every density."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autosparse.budget import select
from autosparse.criteria import CRITERIA
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError, DivergedError, FileFormatError
from autosparse.files import exclusive, load_tensors, no_empty_work, save_tensors
from autosparse.masks import Masks
from autosparse.pq_index import pq_survivors
from autosparse.rewinding.loop import Rounds
from autosparse.rewinding.ticket import BUDGET_OF, BatchSource, OnRound, Ticket, check_keep, fingerprint, trained_scores
from autosparse.seeding import generator
from autosparse.training import Callback, TrainConfig
from autosparse.triggers.rounds import PQRewinding, Rewinding

_SCORES = "irp-scores"


class Rewinder:
    """Rounds of training and pruning whose survivors are rewound, kept in a folder that only ever grows.

    The path of densities does not depend on the density asked for. The folder holds each round's scores of the weights
    that it trained, so a run that was taken to 10 % gives the ticket of 20 % without training, and goes on to 1 %
    as if it had been meant to from the start. It may be interrupted at any moment and continues, bit-equal, from the
    last epoch.

    The random state of round i is fixed by (seed, "round", i), as it is in ``autosparse generate``. One process is
    meant to use it: it is no part of a distributed launch.

    Args:
        model: a freshly initialised network; its state is what is rewound to. It is trained in place.
        settings: how the rounds prune.
        train: the final training; that of the rounds too, but for the epochs that ``settings`` may name.
        folder: where the rounds are kept. While :meth:`ticket` works no other process can use it
            (:func:`autosparse.files.exclusive`).
        seed: fixes data order and augmentation in the rounds; ``train.seed`` is for the final training alone.
        identity: JSON-able facts that must agree with what the folder holds, beside settings, training, data, seed
            and the initial weights.
        batches: the images of criteria that look at data; ``identity`` should say which.
        device: where to train; by default where the model is.
        callbacks: from the index of a round to callbacks of its training.

    Raises:
        UnknownNameError: no such criterion. AutoSparseError: rewinding would leave nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        settings: Rewinding | PQRewinding,
        train: TrainConfig,
        folder: Path,
        *,
        seed: int,
        identity: Mapping[str, Any] | None = None,
        batches: BatchSource | None = None,
        device: torch.device | str | None = None,
        callbacks: Callable[[int], Sequence[Callback]] = lambda index: (),
    ) -> None:
        self.settings = settings
        self.train = train
        self.criterion = CRITERIA.get("magnitude" if isinstance(settings, PQRewinding) else settings.criterion)
        if self.criterion.needs_data and batches is None:
            raise AutoSparseError(f"criterion '{self.criterion.name}' looks at data: pass batches=, a function")
        self._batches = batches
        self._callbacks = callbacks
        config = replace(train, epochs=settings.epochs or train.epochs, seed=seed)
        if config.epochs < 1:
            raise AutoSparseError("epochs is 0: every round needs at least one epoch of training")
        # The path of rounds depends neither on how many may be run nor, beside ``train``, on these epochs.
        path = {name: value for name, value in asdict(settings).items() if name not in ("epochs", "max_rounds")}
        facts = {
            "settings": {"kind": type(settings).__name__, **path},
            "train": asdict(config),
            "data": data.describe(),
            "initial_state": fingerprint(model),
        }
        self.rounds = Rounds(
            model,
            data,
            config,
            folder,
            seed=seed,
            prune=self._prune,
            rewind_steps=settings.rewind_steps,
            identity={**(identity or {}), **facts},
            device=device,
        )

    def ticket(self, keep: int, on_round: OnRound = lambda records: None) -> Ticket:
        """The ticket with exactly ``keep`` weights; rounds that it still needs are run first.

        Rounds go on until one would leave ``keep`` weights or fewer. That one stops short: beside all that it leaves,
        the best of what it would remove stay: a ticket holds every ticket of later rounds. Where ``max_rounds`` ends
        the run with more weights than ``keep``, the best of them by the last round's scores are taken
        (``records[-1]["kept_after"] > keep`` tells).

        Args:
            on_round: called with all rounds' records after each round that was run.

        Raises:
            BudgetError: ``keep`` is not between 1 and the number of weights. OutputExistsError: another process uses
            the folder. DivergedError: a loss is not finite (the message names the round). AutoSparseError: the folder
            holds another run.
        """
        run = self.rounds
        check_keep(keep, run.total)
        with exclusive(run.folder), no_empty_work(run.folder):
            run.prepare()
            try:
                while run.kept(run.completed) > keep and run.completed < self._limit:
                    run.round(self._callbacks(run.completed))
                    on_round(run.records)
            except AutoSparseError as error:
                run.abandon(error)
                if isinstance(error, DivergedError):
                    raise DivergedError(f"round {run.completed + 1}: {error}") from None
                raise
            done = min(run.completed, self._limit)
            needed = next((n for n in range(done) if run.kept(n) <= keep), done)
            masks = self._select(needed, keep) if needed else run.masks(0)
        return Ticket(run.rewind, masks, self.train, run.rewind_steps, run.records[:needed])

    @property
    def _limit(self) -> int:
        return self.settings.max_rounds if isinstance(self.settings, PQRewinding) else sys.maxsize

    def _prune(self, index: int, masks: Masks) -> Masks:
        """What round ``index`` leaves of ``masks``; its scores are on disk afterwards."""
        run = self.rounds
        scores = trained_scores(
            self.criterion.name,
            run.model,
            self._batches,
            masks=masks.to(next(run.model.parameters()).device),
            generator=generator(run.seed, "scores", index),
        )
        alive = torch.cat([scores[layer.name].detach().cpu()[masks[layer.name]] for layer in run.layers])
        save_tensors(self._scores_file(index), _SCORES, {"scores": alive}, run.identity)
        if isinstance(self.settings, PQRewinding):
            return pq_survivors(scores, run.layers, masks, self.settings)
        keep = self.settings.kept_after(index + 1, run.total)
        return select(scores, run.layers, keep, budget=BUDGET_OF[self.settings.scope], within=masks)

    def _select(self, completed: int, keep: int) -> Masks:
        """``keep`` weights by the scores of the last of ``completed`` rounds."""
        run = self.rounds
        before, after = run.masks(completed - 1), run.masks(completed)
        scores = self._scores(completed - 1, before)
        if keep < after.kept:
            return select(scores, run.layers, keep, within=after)
        # SAP's counts of layers and neurons are in what the round leaves: they have no budget rule of their own.
        budget = BUDGET_OF[self.settings.scope] if isinstance(self.settings, Rewinding) else "global"
        return select(scores, run.layers, keep, budget=budget, within=before, forced=after)

    def _scores_file(self, index: int) -> Path:
        return self.rounds.folder / f"scores-{index:05d}.safetensors"

    def _scores(self, index: int, masks: Masks) -> dict[str, Tensor]:
        """What round ``index`` scored its weights; zero where it had none."""
        path = self._scores_file(index)
        alive = load_tensors(path, _SCORES)[0]["scores"]
        if alive.shape != (masks.kept,):
            raise FileFormatError(
                f"{path} has {list(alive.shape)} scores, the round {masks.kept} weights: remake the run"
            )
        parts = alive.split([int(masks[layer.name].sum()) for layer in self.rounds.layers])
        return {
            layer.name: part.new_zeros(layer.shape).masked_scatter(masks[layer.name], part)
            for layer, part in zip(self.rounds.layers, parts, strict=True)
        }
