"""One cell of a benchmark: a network, pruned in one way and trained."""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from decimal import Decimal
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from autosparse.arguments import parse_arguments
from autosparse.bench.grid import CHANNEL_MEASURES, DENSE, Grid, MethodEntry
from autosparse.bench.setting import WEIGHTS
from autosparse.channels.widths import ROUND_TO
from autosparse.criteria import CRITERIA
from autosparse.errors import AutoSparseError
from autosparse.granularity import parse_granularity
from autosparse.recipes import recipe_of
from autosparse.scorer.choosing import default_scorer, like_of
from autosparse.training import TrainConfig

#: Part of every hash: raised when the same settings no longer give the same result.
CELL_VERSION = 1

_FOLDER = "imagefolder:"

#: Fields that cells had not from the beginning: at their defaults they are no part of facts and files.
_LATER = ("on_paths", "measure", "when", "what", "spread", "keep", "round_to", *CHANNEL_MEASURES)


def _default_training() -> dict[str, Any]:
    return {name: value for name, value in asdict(TrainConfig()).items() if name != "seed"}


@dataclass(frozen=True)
class Cell:
    """Everything that determines one result, and the label under which it is shown.

    Args:
        method: a name, or ``dense`` for the network that is not pruned.
        choose: options whose values are chosen by validation accuracy with ``choose_seed``, before the cell is run.
        density: the share of ``measure`` that is kept; 1 for ``dense``.
        measure: ``weights``, or what channels are removed to: ``flops``, ``params`` or ``channels``.
        seed: of initial weights, scores, data order and augmentation.
        score_images: training images that the method may look at; 0 for ``dense``.
        train: the fields of :class:`~autosparse.training.TrainConfig` but the seed.
        when, what, spread, keep, round_to: as :class:`~autosparse.channels.request.ShrinkRequest` has them.
        flops, params, channels: budgets beside ``measure``'s.
    """

    model: str
    dataset: str
    method: str
    density: float
    seed: int
    model_args: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    split_seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: str | None = None
    granularity: str | None = None
    sanity: str | None = None
    scorer: str | None = None
    min_layer_density: float = 0.0
    keep_connected: bool = False
    on_paths: bool | None = None
    choose: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    choose_seed: int | None = None
    score_images: int = 1280
    train: Mapping[str, Any] = field(default_factory=_default_training)
    measure: str = WEIGHTS
    when: str | None = None
    what: str | None = None
    spread: str | None = None
    keep: Sequence[str] = ()
    round_to: int = ROUND_TO
    flops: float | None = None
    params: float | None = None
    channels: float | None = None
    label: str = field(default="", compare=False)

    @property
    def is_dense(self) -> bool:
        return self.method == DENSE

    @property
    def title(self) -> str:
        """For messages: ``SynFlow on resnet20, digits, density 0.02, seed 1``."""
        kept = f"{'density' if self.measure == WEIGHTS else self.measure} {self.density:g}"
        return f"{self.label or self.method} on {self.model}, {self.dataset}, {kept}, seed {self.seed}"

    @property
    def removes_channels(self) -> bool:
        return self.measure != WEIGHTS

    @property
    def shares(self) -> dict[str, float]:
        """The budgets of a method that removes channels, the cell's own first."""
        found = {self.measure: self.density}
        for name in CHANNEL_MEASURES:
            if name != self.measure and (share := getattr(self, name)) is not None:
                found[name] = share
        return found

    @property
    def train_config(self) -> TrainConfig:
        return TrainConfig(**self.train, seed=self.seed)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What determines the result, JSON-able: the same images or scorer in another place are the same fact."""
        found = {**self.as_dict(), "cell_version": CELL_VERSION}
        del found["label"]
        found["options"] = {**self._split(), **self.options}
        if (other := like_of(self.budget)) is not None and (split := _split_of(other, {}, {})):
            found["budget_options"] = split
        if self.dataset.startswith(_FOLDER):
            found["dataset"] = _FOLDER + Path(self.dataset.removeprefix(_FOLDER)).name
        if self.scorer is not None and (self.scorer.endswith(".safetensors") or "/" in self.scorer):
            found["scorer"] = _content_of(Path(self.scorer))
        if self.scorer is None:
            found["scorer"] = self._default_scorer()
        return found

    def _split(self) -> dict[str, Any]:
        if self.is_dense or self.removes_channels:
            return {}
        return _split_of(self.method, self.options, self.choose)

    def _default_scorer(self) -> str | None:
        """The one that this release would take."""
        if self.is_dense or self.removes_channels:
            return None
        return default_scorer(self.method, self.options, self.budget)

    def with_scorer_named(self) -> Cell:
        """The same with the default scorer by name: another release may have another default."""
        if self.scorer is not None or self.choose:  # a choice decides what the scorer is for
            return self
        return replace(self, scorer=self._default_scorer())

    @cached_property
    def hash(self) -> str:
        """Names the result: 32 hexadecimal digits of the :attr:`facts`."""
        return digest(self.facts)

    def as_dict(self) -> dict[str, Any]:
        later = {f.name: f.default for f in fields(self) if f.name in _LATER}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}

    def candidates(self) -> Iterator[dict[str, Any]]:
        """Every combination of the values that are to be chosen from; one, empty, when there is nothing to choose."""
        for values in itertools.product(*self.choose.values()):
            yield dict(zip(self.choose, values, strict=True))

    def settled(self, chosen: Mapping[str, Any]) -> Cell:
        """The cell with ``chosen`` options, and nothing left to choose."""
        return replace(self, options={**self.options, **chosen}, choose={}, choose_seed=None)

    def command(self, out: Path | str) -> str:
        """The one line for a shell that repeats the cell into the folder ``out``."""
        words = ["autosparse", "train", *self._method_words(), "--model", self.model]
        words += _pairs("--model-arg", self.model_args)
        words += ["--dataset", self.dataset]
        if self.image_size is not None:
            words += ["--image-size", str(self.image_size)]
        if self.split_seed:
            words += ["--split-seed", str(self.split_seed)]
        words += [*self._training_words(), "--seed", str(self.seed), "--out", str(out)]
        return shlex.join(words)

    def _method_words(self) -> list[str]:
        if self.is_dense:
            return ["--dense"]
        if self.removes_channels:
            return self._channel_words()
        sparsity = 1 - Decimal(repr(self.density))  # 0.93, where binary floats make 0.9299999999999999
        words = ["--method", self.method, "--sparsity", f"{sparsity:f}", *_pairs("--method-arg", self.options)]
        for name in ("budget", "granularity", "sanity", "scorer"):
            if getattr(self, name) is not None:
                words += [f"--{name}", getattr(self, name)]
        if self.min_layer_density:
            words += ["--min-layer-density", repr(self.min_layer_density)]
        if self.keep_connected:
            words += ["--keep-connected"]
        if self.on_paths is not None:
            words += ["--on-paths" if self.on_paths else "--no-on-paths"]
        return [*words, "--score-images", str(self.score_images)]

    def _channel_words(self) -> list[str]:
        words = ["--where", "channels", "--method", self.method, *_pairs("--method-arg", self.options)]
        for name, share in self.shares.items():
            words += [f"--{name}", repr(share)]
        for name in ("when", "what", "spread", "scorer"):
            if getattr(self, name) is not None:
                words += [f"--{name}", getattr(self, name)]
        for module in self.keep:
            words += ["--keep", module]
        if self.round_to != ROUND_TO:
            words += ["--round-to", str(self.round_to)]
        return [*words, "--score-images", str(self.score_images)]

    def _training_words(self) -> list[str]:
        """The number of epochs, and whatever differs from its default."""
        words = []
        for setting in fields(TrainConfig):
            name, value = setting.name, self.train.get(setting.name, MISSING)
            option = name.replace("_", "-")
            if name == "epochs" or value not in (MISSING, setting.default):
                words += [f"--{'' if value else 'no-'}{option}"] if name == "augment" else [f"--{option}", str(value)]
        return words


def digest(facts: Mapping[str, Any]) -> str:
    """32 hexadecimal digits that name JSON-able ``facts``, whatever the order of their keys."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _split_of(method: str, options: Mapping[str, Any], choose: Mapping[str, Any]) -> dict[str, Any]:
    """The option ``split`` where a copy is trained: in cells from before it existed batches were whole."""
    taken = {**CRITERIA.get(recipe_of(method).criterion).options, **options}
    trains = "split" in taken and (taken["steps"] or "steps" in choose)
    return {"split": taken["split"]} if trains else {}


def _content_of(path: Path) -> str:
    try:
        status = path.stat()
        return _content(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise AutoSparseError(f"cannot read the scorer {path} ({error.strerror}): give the path of its file") from None


@lru_cache  # thousands of cells may ask
def _content(path: Path, size: int, changed: int) -> str:
    return f"blake2b:{hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}"


def _pairs(option: str, values: Mapping[str, Any]) -> list[str]:
    """``option KEY=VALUE`` for every value, as :func:`~autosparse.arguments.parse_arguments` reads it back."""
    words = []
    for name, value in values.items():
        plain = parse_arguments([f"value={value}"], "method", "")["value"] == value
        words += [option, f"{name}={value if plain else repr(value)}"]  # a text may look like a number
    return words


def cells_of(grid: Grid) -> list[Cell]:
    """All cells of ``grid``: dense ones, on which others may build, first, then seed by seed.

    Dense networks, and N:M patterns, whose density is theirs, come once a network, data set and seed whatever the
    densities. AutoSparseError when two cells differ in nothing that matters.
    """
    found = [
        Cell(
            model=model.name,
            model_args=model.args,
            dataset=dataset.name,
            image_size=dataset.image_size,
            split_seed=dataset.split_seed,
            method=method.name,
            options=method.args,
            budget=method.budget,
            granularity=method.granularity,
            sanity=method.sanity,
            scorer=method.scorer,
            min_layer_density=method.min_layer_density,
            keep_connected=method.keep_connected,
            on_paths=method.on_paths,
            choose=method.choose,
            choose_seed=grid.seeds[0] if method.choose else None,
            density=density,
            seed=seed,
            score_images=0 if method.name == DENSE else grid.score_images,
            train=grid.train.model_dump(),
            measure=measure,
            when=method.when,
            what=method.what,
            spread=method.spread,
            keep=tuple(method.keep),
            round_to=method.round_to,
            **{name: getattr(method, name) for name in CHANNEL_MEASURES},
            label=method.label,
        ).with_scorer_named()
        for seed in grid.seeds
        for model in grid.models
        for dataset in grid.datasets
        for entry in grid.methods
        for method in entry.variants()
        for measure, density in _amounts(method, grid)
    ]
    known: dict[str, Cell] = {}
    for cell in found:
        if (twin := known.setdefault(cell.hash, cell)) is not cell:
            raise AutoSparseError(
                f"{twin.title}, and {cell.title}, are the same cell: keep one (an image folder goes by its name, a "
                "scorer by its contents, wherever they are)"
            )
    return sorted(found, key=lambda cell: not cell.is_dense)


def _amounts(method: MethodEntry, grid: Grid) -> list[tuple[str, float]]:
    """What is kept in the cells of ``method``: a measure and a share of it for each."""
    if method.removes_channels:
        return [(name, share) for name in CHANNEL_MEASURES for share in getattr(grid, name)]
    blocks = parse_granularity(method.granularity)
    if method.name == DENSE:
        return [(WEIGHTS, 1.0)]
    return [(WEIGHTS, density) for density in (grid.densities if blocks is None else [blocks.keep / blocks.size])]
