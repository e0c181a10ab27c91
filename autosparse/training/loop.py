"""The training loop."""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.data import ImageData
from autosparse.errors import AutoSparseError, DivergedError
from autosparse.masks import Masks
from autosparse.seeding import derive_seed, global_stream
from autosparse.training.callbacks import Callback
from autosparse.training.checkpoint import load_checkpoint, save_checkpoint
from autosparse.training.config import TrainConfig
from autosparse.training.evaluation import evaluate
from autosparse.training.precision import autocast, resolve_precision
from autosparse.triggers.base import HeldMasks, MaskSchedule
from autosparse.triggers.narrowing import Narrowing, narrowed_

_CHECK_EVERY = 20  # steps between looks at the loss: each look waits for the accelerator


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did. ``train_loss`` and ``train_accuracy`` are means over the augmented images it saw."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_accuracy: float | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def train(
    model: nn.Module,
    data: ImageData,
    config: TrainConfig,
    *,
    masks: Masks | None = None,
    schedule: MaskSchedule | None = None,
    narrowing: Narrowing | None = None,
    device: torch.device | str | None = None,
    checkpoint: Path | None = None,
    identity: dict[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    validate: bool = True,
    start_step: int = 0,
    stop_step: int | None = None,
) -> list[EpochRecord]:
    """Train ``model`` in place and return one record an epoch.

    Data order, augmentation and dropout are functions of (seed, epoch), so a run that continues from ``checkpoint``
    ends bit-equal to one that was never interrupted.

    Under torchrun or ``accelerate launch`` every process takes its share of each batch; the first one writes.

    Args:
        masks: which weights are kept; the others are held at exactly zero.
        schedule: masks that change on the way, instead of ``masks``. In the end it has the last ones.
        narrowing: channels that are removed on the way, instead of masks. Momentum follows the weights that stay.
        device: where to train; by default where the model is.
        checkpoint: a file that receives the state after every epoch and, when it exists, is continued from.
        identity: JSON-able facts that must agree between a checkpoint and the run that continues it.
        validate: measure validation accuracy after every epoch.
        start_step, stop_step: train only the steps from ``start_step`` up to ``stop_step`` of the whole schedule.

    Raises:
        DivergedError: the loss is no longer finite. AutoSparseError: fewer images than one batch, or channels to be
        removed in several processes. ValueError: more than one way to prune.
    """
    from accelerate import Accelerator

    if sum(way is not None for way in (masks, schedule, narrowing)) > 1:
        raise ValueError("give masks, a schedule of masks or a narrowing: one of them")
    device = torch.device(device) if device is not None else next(model.parameters()).device
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    if config.batch_size % accelerator.num_processes:
        raise AutoSparseError(
            f"batch-size {config.batch_size} is no multiple of the {accelerator.num_processes} processes that share it"
        )
    if narrowing is not None and accelerator.num_processes > 1:
        raise AutoSparseError("channels cannot be removed while several processes train: train in one process")
    precision = resolve_precision(config.precision, device)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.momentum > 0
    )
    per_epoch = config.steps_per_epoch(len(data.train))
    if per_epoch == 0:
        raise AutoSparseError(
            f"{data.name} has {len(data.train)} training images, less than one batch of {config.batch_size}: "
            "choose a smaller --batch-size"
        )
    window = range(start_step, min(per_epoch * config.epochs, stop_step if stop_step is not None else sys.maxsize))
    steps = {"start_step": start_step, "stop_step": stop_step}
    pruning: dict[str, Any] = {} if schedule is None else {"mask_schedule": schedule.identity}
    pruning |= {} if narrowing is None else {"narrowing": narrowing.identity}
    identity = {**asdict(config), "precision": precision, **steps, **pruning, **(identity or {})}
    history = _resume(checkpoint, model, optimizer, schedule, narrowing, identity)
    held = HeldMasks(model, optimizer, schedule)
    if schedule is not None and not history:
        schedule.start(model)
    held.hold(masks if schedule is None else schedule.masks)
    if narrowing is not None and not history and narrowing.start(model):
        narrowed_(model, optimizer, narrowing)
    # The model is where the caller wants it; moving it to the first accelerator is not asked for.
    module, stepper = accelerator.prepare(model, optimizer, device_placement=[False, False])
    run = _Run(module, stepper, held, accelerator, data, config, precision, device, callbacks, per_epoch, window)
    main = accelerator.is_main_process
    for epoch in range(history[-1].epoch + 1 if history else 0, config.epochs):
        if not run.steps_of(epoch):
            continue
        began = time.perf_counter()
        loss, accuracy = run.epoch(epoch)
        validation = evaluate(model, data.val, precision=precision) if validate else None
        history.append(
            EpochRecord(epoch, run.lr(run.steps_of(epoch)[-1]), loss, accuracy, validation, time.perf_counter() - began)
        )
        if narrowing is not None and narrowing.kept is None and narrowing.after_epoch(model, epoch + 1):
            narrowed_(model, optimizer, narrowing)
        if main and checkpoint is not None:
            metadata = {"identity": identity, "history": [record.as_dict() for record in history]}
            save_checkpoint(checkpoint, model, optimizer, metadata, schedule, narrowing)
        if main:
            for callback in callbacks:
                callback.on_epoch(history)
    return history


@dataclass(frozen=True)
class _Run:
    """What stays the same from epoch to epoch."""

    module: nn.Module
    optimizer: Any  # accelerate's wrapper around an optimizer
    held: HeldMasks
    accelerator: Any
    data: ImageData
    config: TrainConfig
    precision: str
    device: torch.device
    callbacks: Sequence[Callback]
    per_epoch: int
    window: range

    def steps_of(self, epoch: int) -> range:
        """The steps of ``epoch`` that lie in the window."""
        first = epoch * self.per_epoch
        return range(max(first, self.window.start), min(first + self.per_epoch, self.window.stop))

    def lr(self, step: int) -> float:
        return self.config.learning_rate(step, self.per_epoch * self.config.epochs)

    def batches(self, epoch: int) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """The epoch's steps with their batches: the same ones whether or not the steps before them were run."""
        steps = self.steps_of(epoch)
        batches = self.data.train.batches(
            self.config.batch_size,
            shuffle_seed=derive_seed(self.config.seed, "data", epoch),
            augment=self.config.augment,
            drop_last=True,
            shard=(self.accelerator.process_index, self.accelerator.num_processes),
        )
        first = epoch * self.per_epoch
        return zip(steps, itertools.islice(batches, steps.start - first, steps.stop - first), strict=True)

    def epoch(self, epoch: int) -> tuple[float, float]:
        """Train one epoch; the mean loss and the accuracy over its images."""
        loss_sum, correct, images = torch.zeros(3, device=self.device).unbind()
        with global_stream(self.config.seed, "epoch", epoch):
            self.module.train()
            for step, (x, y) in self.batches(epoch):
                loss, output = self.step(step, x.to(self.device), y.to(self.device))
                loss_sum += loss * len(x)
                correct += (output.argmax(1) == y.to(self.device)).sum()
                images += len(x)
                if step % _CHECK_EVERY == 0:
                    self.check(loss_sum, epoch, step)
        loss_sum, correct, images = self.accelerator.reduce(torch.stack([loss_sum, correct, images]), "sum")
        self.check(loss_sum, epoch, self.steps_of(epoch)[-1])
        return float(loss_sum / images), float(correct / images)

    def step(self, step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One step of SGD; the loss and the outputs before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        with autocast(self.precision, self.device):
            output = self.module(x)
        loss = F.cross_entropy(output.float(), y)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.held.after_step(step + 1)
        if self.accelerator.is_main_process:
            for callback in self.callbacks:
                callback.on_step(step + 1, self.window.stop)
        return loss.detach(), output.detach()

    def check(self, loss_sum: Tensor, epoch: int, step: int) -> None:
        if not math.isfinite(float(loss_sum)):
            raise DivergedError(
                f"the loss became {float(loss_sum)} in epoch {epoch + 1} of {self.config.epochs}, by step {step + 1}: "
                f"try a smaller --lr (now {self.config.lr}) or --precision fp32"
            )


def _resume(
    checkpoint: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: MaskSchedule | None,
    narrowing: Narrowing | None,
    identity: dict[str, Any],
) -> list[EpochRecord]:
    if checkpoint is None or not checkpoint.exists():
        return []

    def check(metadata: Mapping[str, Any]) -> None:
        check_identity(checkpoint, metadata.get("identity", {}), identity)

    metadata = load_checkpoint(checkpoint, model, optimizer, schedule, narrowing, check)
    return [EpochRecord(**record) for record in metadata["history"]]


def check_identity(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """AutoSparseError naming the first setting in which a run to be resumed differs from the command."""
    was, now = _flat(found), _flat(json.loads(json.dumps(wanted)))  # as JSON: a tuple comes back as a list
    for key in sorted({*was, *now}):
        if was.get(key) != now.get(key):
            raise AutoSparseError(
                f"cannot resume from {path}: {key} was {was.get(key)!r} and is now {now.get(key)!r}; "
                "repeat the first command's settings, or start anew with --force"
            )


def _flat(identity: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``section.key`` pairs, so that a difference can be named."""
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
