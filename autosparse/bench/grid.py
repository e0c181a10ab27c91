"""The grid of a benchmark: a YAML file, validated."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from autosparse.channels.criteria import CHANNEL_CRITERIA
from autosparse.channels.recipes import CHANNEL_RECIPES, SPREADS, TRIGGERS
from autosparse.channels.widths import ROUND_TO
from autosparse.errors import UnknownNameError
from autosparse.granularity import parse_granularity
from autosparse.pruning import check_budget
from autosparse.sanity import check_sanity
from autosparse.scorer.store import load_scorer
from autosparse.training import TrainConfig
from autosparse.yaml_lines import Document
from autosparse.yaml_settings import (
    DatasetEntry,
    ModelEntry,
    Options,
    Part,
    Share,
    Shares,
    Values,
    checked,
    distinct,
    named,
    read_settings,
)

DENSE = "dense"

#: What a share may be kept of by removing channels: the keys of a grid beside ``densities``, which are of the weights.
CHANNEL_MEASURES = ("flops", "params", "channels")


_OF_WEIGHTS = ("budget", "granularity", "sanity", "min_layer_density", "keep_connected", "on_paths")
_OF_CHANNELS = ("when", "what", "spread", "keep", "round_to", *CHANNEL_MEASURES)


class MethodEntry(Part):
    """A method with its settings.

    ``choose``: for every option the values among which validation accuracy decides. ``each``: for every option the
    values that are all run, each under a label of its own. ``when`` to ``channels`` are for methods that remove
    channels; ``flops``, ``params`` and ``channels`` are budgets beside the grid's own.
    """

    name: str
    label: str = ""
    args: Options = Field(default_factory=dict)
    choose: Values = Field(default_factory=dict)
    each: Values = Field(default_factory=dict)
    budget: str | None = None
    granularity: str | None = None
    sanity: str | None = None
    scorer: str | None = None
    min_layer_density: float = Field(0.0, ge=0, le=1)
    keep_connected: bool = False
    on_paths: bool | None = None
    when: str | None = None
    what: str | None = None
    spread: str | None = None
    keep: list[str] = Field(default_factory=list)
    round_to: int = Field(ROUND_TO, ge=1)
    flops: Share | None = None
    params: Share | None = None
    channels: Share | None = None

    @property
    def removes_channels(self) -> bool:
        return self.name in CHANNEL_RECIPES

    def variants(self) -> Iterator[MethodEntry]:
        """An entry for every combination of the values in ``each``; the entry itself where there are none."""
        if not self.each:
            yield self
            return
        for values in itertools.product(*self.each.values()):
            own = dict(zip(self.each, values, strict=True))
            label = ", ".join([self.label, *(f"{name}={value}" for name, value in own.items())])
            yield self.model_copy(update={"args": {**self.args, **own}, "each": {}, "label": label})

    @field_validator("name")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        methods: list[str] = (info.context or {}).get("methods", [])
        if ":" not in name and name not in methods:
            raise ValueError(str(UnknownNameError("method", name, methods, "your own: package.module:function")))
        return name

    @field_validator("budget", "sanity", "scorer")
    @classmethod
    def _exists(cls, value: str | None, info: ValidationInfo) -> str | None:
        look_up = {"budget": check_budget, "sanity": check_sanity, "scorer": load_scorer}[info.field_name or ""]
        return value and checked(value, look_up)

    @field_validator("when", "what", "spread")
    @classmethod
    def _part(cls, value: str | None, info: ValidationInfo) -> str | None:
        known = {"when": TRIGGERS, "what": CHANNEL_CRITERIA.names(), "spread": SPREADS}[info.field_name or ""]
        if value is not None and value not in known:
            raise ValueError(str(UnknownNameError(info.field_name or "", value, known)))
        return value

    @field_validator("granularity")
    @classmethod
    def _pattern(cls, text: str | None) -> str | None:
        blocks = checked(text, parse_granularity) and parse_granularity(text)
        return f"{blocks.keep}:{blocks.size}" if blocks else None

    @model_validator(mode="after")
    def _settle(self) -> MethodEntry:
        given = self.model_dump(exclude_defaults=True, exclude={"name", "label"})
        if self.name == DENSE and given:
            raise ValueError(f"dense takes no {', '.join(given)}: remove it")
        if foreign := [name for name in (_OF_WEIGHTS if self.removes_channels else _OF_CHANNELS) if name in given]:
            other = "single weights" if self.removes_channels else "channels"
            raise ValueError(
                f"'{foreign[0]}' is for methods that remove {other}, which {self.name} does not: leave it out"
            )
        given_twice = [*self.args, *self.choose, *self.each]
        if both := [name for index, name in enumerate(given_twice) if name in given_twice[:index]]:
            where = [part for part in ("args", "choose", "each") if both[0] in getattr(self, part)]
            raise ValueError(f"'{both[0]}' is both in {' and in '.join(where)}: keep one")
        self.label = self.label or self._description()
        return self

    def _description(self) -> str:
        facts = {**self.args, **{name: f"{len(values)} values" for name, values in self.choose.items()}}
        others = self.model_dump(exclude_defaults=True, exclude={"name", "label", "args", "choose", "each"})
        others = {name: "+".join(value) if name == "keep" else value for name, value in others.items()}
        return ", ".join([self.name, *(f"{name}={value}" for name, value in {**facts, **others}.items())])


class _Training(Part):
    @field_validator("*")
    @classmethod
    def _valid(cls, value: Any, info: ValidationInfo) -> Any:
        return checked(value, lambda given: TrainConfig(**{info.field_name or "": given}))


if TYPE_CHECKING:
    TrainEntry = _Training
else:
    #: The fields of TrainConfig but the seed, which is the cell's.
    TrainEntry = create_model(
        "TrainEntry",
        __base__=_Training,
        **{f.name: (get_type_hints(TrainConfig)[f.name], f.default) for f in fields(TrainConfig) if f.name != "seed"},
    )


class Grid(Part):
    """Every model on every data set by every method at every density with every seed.

    ``densities`` are shares of the weights, for methods that prune weights; ``flops``, ``params`` and ``channels``
    shares for methods that remove channels.
    """

    models: Annotated[
        list[Annotated[ModelEntry, BeforeValidator(named)]], Field(min_length=1), AfterValidator(distinct)
    ]
    datasets: Annotated[
        list[Annotated[DatasetEntry, BeforeValidator(named)]], Field(min_length=1), AfterValidator(distinct)
    ]
    methods: Annotated[list[Annotated[MethodEntry, BeforeValidator(named)]], Field(min_length=1)]
    densities: Shares = Field(default_factory=list)
    flops: Shares = Field(default_factory=list)
    params: Shares = Field(default_factory=list)
    channels: Shares = Field(default_factory=list)
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(distinct)]
    train: TrainEntry = Field(default_factory=TrainEntry)
    score_images: int = Field(1280, ge=1)
    reference: str | None = None

    @field_validator("methods")
    @classmethod
    def _labels_differ(cls, methods: list[MethodEntry]) -> list[MethodEntry]:
        labels = [variant.label for method in methods for variant in method.variants()]
        if twice := [label for index, label in enumerate(labels) if label in labels[:index]]:
            raise ValueError(f"has two methods with the label '{twice[0]}': give one of them another label")
        return methods

    @model_validator(mode="after")
    def _amounts_are_there(self) -> Grid:
        """Every method has shares to keep; dense networks need none, and patterns bring their own."""
        for method in self.methods:
            names = CHANNEL_MEASURES if method.removes_channels else ("densities",)
            own = method.name == DENSE or method.granularity is not None
            if not own and not any(getattr(self, name) for name in names):
                raise ValueError(f"{method.label} needs to know how much to keep: add {names[0]}: [0.5, 0.25]")
        return self

    @field_validator("reference")
    @classmethod
    def _is_a_label(cls, reference: str | None, info: ValidationInfo) -> str | None:
        labels = [variant.label for method in info.data.get("methods", []) for variant in method.variants()]
        if reference is not None and labels and reference not in labels:
            raise ValueError(str(UnknownNameError("label", reference, labels)))
        return reference


_ENTRIES: Mapping[str, type[BaseModel]] = {
    "models": ModelEntry,
    "datasets": DatasetEntry,
    "methods": MethodEntry,
    "train": TrainEntry,
}


def read_grid(path: Path, known_methods: Iterable[str]) -> tuple[Grid, Document]:
    """The grid in a YAML file, and the file with its lines.

    Args:
        known_methods: names that ``methods`` may have, ``dense`` among them; ``package.module:function`` always may.

    Raises:
        FileFormatError: one line that names file, line and key of the first mistake, and what to do.
    """
    return read_settings(
        path, Grid, "a grid", "models, datasets and methods", _ENTRIES, {"methods": list(known_methods)}
    )
