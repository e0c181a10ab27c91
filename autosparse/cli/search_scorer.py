"""``autosparse search-scorer``: a scorer from short trainings of the networks that it prunes."""

from __future__ import annotations

import math
import multiprocessing
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from pydantic import Field, ValidationInfo, field_validator
from rich.table import Table
from tqdm import tqdm

from autosparse.bench.runner import die_with_parent, threads_of
from autosparse.cli.options import RUN, DataDirOption, DeviceOption, ForceOption, console, help_text, resolve_device
from autosparse.data import ImageData, load_data
from autosparse.errors import AutoSparseError, DivergedError, UnknownNameError
from autosparse.features import feature_set
from autosparse.files import exclusive, require_absent
from autosparse.provenance import provenance
from autosparse.pruning import Request
from autosparse.scorer.search import SCALES, SearchConfig, Surrogate, Trial, scorer_of, search
from autosparse.scorer.store import card_path, save_scorer
from autosparse.scorer.trial_file import TrialFile
from autosparse.scorer.trials import Task, trial
from autosparse.yaml_settings import DatasetEntry, ModelEntry, Options, Part, Share, checked, read_settings


class TaskEntry(Part):
    """A network, the images and the density of some of the trials."""

    model: ModelEntry
    dataset: DatasetEntry
    density: Share
    train_images: int = Field(32_000, ge=1)
    score_images: int = Field(1280, ge=1)
    batch_size: int = Field(128, ge=2)
    lr: float = Field(0.1, gt=0)
    options: Options = Field(default_factory=dict)
    epochs: int = Field(1, ge=1)

    @field_validator("options")
    @classmethod
    def _known(cls, options: Options) -> Options:
        return checked(options, lambda given: Request(0.5, "autos", given).check())


class SearchEntry(Part):
    """The settings of a search."""

    tasks: list[TaskEntry] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    generations: int = Field(20, ge=1)
    candidates: int = Field(8, ge=2)
    features: Literal["flow", "state"] = "flow"
    start: dict[str, float] = Field(default_factory=lambda: dict(SearchConfig.start))
    spread: float = Field(0.35, gt=0)
    seed: int = 0

    @field_validator("start")
    @classmethod
    def _known(cls, start: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        names = feature_set(info.data.get("features", "flow")).names
        for name in start:
            if name not in names:
                raise ValueError(str(UnknownNameError("feature", name, names)))
        return start


def register(app: typer.Typer) -> None:
    app.command("search-scorer", help=help_text(search_scorer_command))(search_scorer_command)


def search_scorer_command(
    tasks: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file: networks, images and densities to try on.")],
    trials: Annotated[Path, typer.Option(help="NAME.jsonl, where every trial is kept; it grows.")],
    out: Annotated[Path, typer.Option(help="NAME.safetensors to write; the card goes to NAME.json.")],
    jobs: Annotated[int, typer.Option(help="Trials at a time.", min=1, rich_help_panel=RUN)] = 1,
    data_dir: DataDirOption = Path("data"),
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Search a scorer whose networks train well, by trying.

    Each trial prunes a small network at initialisation by a scorer, trains it for a moment and measures its
    validation loss. What all trials say together decides which scorers are tried next and which one is written.
    Repeat the command to go on where it was stopped; with all trials in the file it only fits. More generations, and
    tasks added after the others, continue a search.
    """
    config, datasets = _read(tasks)
    if out.suffix != ".safetensors":
        raise AutoSparseError(f"--out {out} must end in .safetensors; the card goes beside it as .json")
    with exclusive(out):
        require_absent(out, force)
        require_absent(card_path(out), force)
        file = TrialFile(trials, config)
        if len(file.trials) < config.trials:
            surrogate = _search(_Trials(config, datasets, data_dir, str(resolve_device(device))), file, jobs)
        else:
            surrogate = Surrogate(file.in_order(), config.names, config.seed)
        best = surrogate.best()
        predicted = surrogate.at(best)
        worth = {name: surrogate.at(surrogate.best(without=name))[0] - predicted[0] for name in config.names}
        card = {
            "search": asdict(config),
            "trials": config.trials,
            "slopes": {name: float(weight) / SCALES[name] for name, weight in zip(config.names, best, strict=True)},
            "predicted": {"start": surrogate.at(config.centre), "scorer": predicted},
            "worth": worth,
            "note": "losses are in standard deviations of the trials of one task; the scorer has the "
            "lowest sum of predicted mean and deviation; the worth of a feature is the mean of the best scorer without "
            "it, less that of the best",
            "provenance": provenance(),
        }
        save_scorer(out, scorer_of(best.tolist(), config.features), card)
    _print(card)
    console.print(f"wrote {out} and {card_path(out).name}", highlight=False, soft_wrap=True)


def _read(path: Path) -> tuple[SearchConfig, list[DatasetEntry]]:
    """The search in a file, and the images of each of its tasks."""
    entries = {"tasks": TaskEntry}
    found, _ = read_settings(path, SearchEntry, "a search", "tasks and seeds", entries)
    tasks = [
        Task(
            entry.model.name, entry.density, entry.model.args, entry.dataset.name, entry.dataset.image_size,
            entry.train_images, entry.score_images, entry.batch_size, entry.lr, entry.options,
            entry.epochs,
        )
        for entry in found.tasks
    ]  # fmt: skip
    config = SearchConfig(
        tuple(tasks), tuple(found.seeds), found.generations, found.candidates, tuple(found.start.items()), found.spread,
        found.seed, found.features,
    )  # fmt: skip
    return config, [entry.dataset for entry in found.tasks]


class _Trials:
    """Makes trials; the images of each task are loaded once."""

    def __init__(self, config: SearchConfig, datasets: Sequence[DatasetEntry], data_dir: Path, device: str) -> None:
        self.config = config
        self._arguments = (config, datasets, data_dir, device)
        self._device = device
        self._data: list[ImageData] = []
        loaded: dict[str, ImageData] = {}
        for entry in datasets:
            key = entry.model_dump_json()
            if key not in loaded:
                loaded[key] = load_data(
                    entry.name, data_dir=data_dir, image_size=entry.image_size, seed=entry.split_seed, device=device
                )
            self._data.append(loaded[key])

    def images(self) -> list[dict[str, Any]]:
        return [data.describe() for data in self._data]

    @contextmanager
    def in_processes(self, jobs: int) -> Iterator[Pool]:
        """``jobs`` processes that answer :func:`_loss`; they leave Ctrl-C to this one."""
        arguments = (self._arguments, threads_of(jobs))
        with multiprocessing.get_context("spawn").Pool(jobs, _begin, arguments) as pool:
            yield pool

    def loss(self, wanted: Trial) -> float:
        task, data = self.config.tasks[wanted.task], self._data[wanted.task]
        chance = math.log(data.num_classes)
        try:
            found = trial(task, scorer_of(wanted.weights, self.config.features), wanted.seed, data, self._device)
        except DivergedError:
            return chance
        return min(found, chance)


_worker: _Trials | None = None  # of a process of :meth:`_Trials.in_processes`


def _begin(arguments: tuple[Any, ...], threads: int) -> None:
    global _worker
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # a network without a layer is a trial like others
    torch.set_num_threads(threads)
    _worker = _Trials(*arguments)


def _loss(wanted: Trial) -> tuple[Trial, float]:
    assert _worker is not None
    return wanted, _worker.loss(wanted)


def _search(trials: _Trials, file: TrialFile, jobs: int) -> Surrogate:
    config = trials.config
    bar = tqdm(total=config.trials, desc="search", unit="trial", leave=False, disable=None)
    with bar, file.growing(trials.images()), trials.in_processes(jobs) as pool:
        bar.update(len(file.trials))

        def measure(wanted: Sequence[Trial]) -> Iterable[tuple[Trial, float]]:
            return pool.imap_unordered(_loss, wanted)

        def record(done: Trial) -> None:
            file.append(done)
            bar.update()

        def progress(generation: int, surrogate: Surrogate) -> None:
            start, best = surrogate.at(config.centre)[0], surrogate.at(surrogate.best())[0]
            bar.set_postfix_str(f"generation {generation + 1}, predicted {best - start:+.2f} from the start")

        return search(config, list(file.trials), measure, record, progress)[1]


def _print(card: dict[str, Any]) -> None:
    (start, start_sd), (found, found_sd) = card["predicted"]["start"], card["predicted"]["scorer"]
    console.print(
        f"predicted mean loss {found:+.2f} +- {found_sd:.2f}, of the start {start:+.2f} +- {start_sd:.2f} "
        "(in standard deviations of the trials)",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("feature", "slope", "worth")
    for name, worth in sorted(card["worth"].items(), key=lambda entry: -entry[1]):
        table.add_row(name, f"{card['slopes'][name]:+.3f}", f"{worth:.3f}")
    console.print(table)
