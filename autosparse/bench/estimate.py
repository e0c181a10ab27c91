"""How long a benchmark will take, from a few timed steps of training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from autosparse.bench.cells import Cell, digest
from autosparse.bench.images import images_of
from autosparse.bench.setting import SETTING
from autosparse.cost import torch_threads
from autosparse.experiment import Network
from autosparse.training import Callback, train

#: ``trainings_of(method, options, density, images)``: how many trainings of so many images each a method costs.
TrainingsOf = Callable[[str, Mapping[str, Any], float, int], float]

_WARM_UP, _STEPS, _SECONDS = 2, 12, 5.0


@dataclass(frozen=True)
class Training:
    """What one training takes."""

    seconds: float
    images: int


@dataclass(frozen=True)
class Row:
    """Cells that differ in density and seed alone. ``seconds`` is for all of them, one after another."""

    model: str
    dataset: str
    label: str
    densities: tuple[float, ...]
    seeds: tuple[int, ...]
    trainings: float
    seconds: float


def plan(
    cells: Sequence[Cell], *, data_dir: Path, device: str, threads: int, trainings_of: TrainingsOf
) -> Iterator[Row]:
    """A row for each network, data set and method of ``cells``, with the time that its trainings will take."""
    known: dict[str, Training] = {}
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        facts = replace(cell, seed=0, density=1.0).facts
        groups.setdefault(digest({**facts, "label": cell.label}), []).append(cell)
    with torch_threads(threads):
        for group in groups.values():
            first = group[0]
            key = digest({name: first.facts[name] for name in SETTING})
            if key not in known:
                known[key] = timed_training(first, data_dir=data_dir, device=device)
            trainings = _trainings(group, trainings_of, known[key].images)
            arguments = "".join(f" {name}={value}" for name, value in first.model_args.items())
            yield Row(
                model=first.model + arguments,
                dataset=first.dataset,
                label=first.label,
                densities=tuple(dict.fromkeys(cell.density for cell in group)),
                seeds=tuple(dict.fromkeys(cell.seed for cell in group)),
                trainings=trainings,
                seconds=trainings * known[key].seconds,
            )


def _trainings(group: Sequence[Cell], trainings_of: TrainingsOf, images: int) -> float:
    """Trainings of the cells of a row, and of their candidates, which are shared by the seeds."""
    count = 0.0
    for cell in group:
        count += trainings_of(cell.method, cell.options, cell.density, images)
    for cell in {cell.density: cell for cell in group if cell.choose}.values():
        count += sum(trainings_of(cell.method, {**cell.options, **c}, cell.density, images) for c in cell.candidates())
    return count


def timed_training(cell: Cell, *, data_dir: Path, device: str) -> Training:
    """What a training with the settings of ``cell`` will take, from a few steps of it.

    Scoring is not counted, but for what ``trainings_of`` knows of it. Validation after each epoch and the test count as
    forward passes, a third of a step.
    """
    data = images_of(cell, data_dir, device)
    config = cell.train_config
    network = Network(cell.model, dict(cell.model_args), data.num_classes, data.channels, cell.seed)
    watch = _Stopwatch(device)
    model = network.build().to(device)
    longest = replace(config, epochs=_WARM_UP + _STEPS + 1)  # of one step at least
    with suppress(_EnoughError):
        train(model, data, longest, device=device, callbacks=[watch], validate=False)
    per_epoch = config.steps_per_epoch(len(data.train))
    forward = len(data.val) / config.batch_size / 3
    return Training(
        seconds=watch.step_seconds * config.epochs * (per_epoch + forward),
        images=config.epochs * per_epoch * config.batch_size,
    )


class _EnoughError(Exception):
    """Ends a training that was begun to be timed."""


class _Stopwatch(Callback):
    """Times steps; after the warm-up it stops the training when it has seen enough."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._times: list[float] = []

    def on_step(self, step: int, steps: int) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._times.append(time.perf_counter())
        timed = len(self._times) - _WARM_UP - 1
        if timed >= _STEPS or (timed > 0 and self._times[-1] - self._times[_WARM_UP] > _SECONDS):
            raise _EnoughError

    @property
    def step_seconds(self) -> float:
        steps = [end - begin for begin, end in zip(self._times, self._times[1:], strict=False)]
        return median(steps[_WARM_UP:] or steps or [0.0])
