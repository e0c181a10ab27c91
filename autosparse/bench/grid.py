"""The grid of a benchmark: a YAML file, validated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from autosparse.bench.yaml_lines import Document, Where, read_yaml
from autosparse.data.sources import SOURCES
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.granularity import parse_granularity
from autosparse.models.registry import MODELS
from autosparse.pruning import check_budget
from autosparse.sanity import check_sanity
from autosparse.scorer.store import load_scorer
from autosparse.training import TrainConfig

DENSE = "dense"


def _plain(value: Any) -> Any:
    """``value`` if it is a number, a text, true, false, null, or a list of these."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not (value is None or isinstance(value, bool | int | float | str)):
        raise ValueError("give a number, a text, true, false, null or a list of these")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("give a finite number")
    return value


def _identifier(name: str) -> str:
    if not name.isidentifier():
        raise ValueError("no name of an option: correct it")
    return name


def _distinct(values: list[Any]) -> list[Any]:
    if twice := [value for index, value in enumerate(values) if value in values[:index]]:
        raise ValueError(f"has {_spelled(twice[0])} twice: keep one")
    return values


def _spelled(value: Any) -> str:
    text = repr(value.model_dump(exclude_defaults=True) if isinstance(value, BaseModel) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _named(value: Any) -> Any:
    """A bare name stands for an entry with nothing but a name."""
    return {"name": value} if isinstance(value, str) else value


Plain = Annotated[Any, AfterValidator(_plain)]
Options = dict[Annotated[str, AfterValidator(_identifier)], Plain]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ModelEntry(_Part):
    name: str
    args: Options = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return name if ":" in name else _checked(name, MODELS.get)


class DatasetEntry(_Part):
    name: str
    image_size: int | None = Field(None, ge=4)
    split_seed: int = 0

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return name if name.startswith("imagefolder:") else _checked(name, SOURCES.get)


class MethodEntry(_Part):
    """A method with its settings. ``choose``: for every option the values among which validation accuracy decides."""

    name: str
    label: str = ""
    args: Options = {}
    choose: dict[
        Annotated[str, AfterValidator(_identifier)],
        Annotated[list[Plain], Field(min_length=1), AfterValidator(_distinct)],
    ] = {}
    budget: str | None = None
    granularity: str | None = None
    sanity: str | None = None
    scorer: str | None = None
    min_layer_density: float = Field(0.0, ge=0, le=1)
    keep_connected: bool = False

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
        return value and _checked(value, look_up)

    @field_validator("granularity")
    @classmethod
    def _pattern(cls, text: str | None) -> str | None:
        blocks = _checked(text, parse_granularity) and parse_granularity(text)
        return f"{blocks.keep}:{blocks.size}" if blocks else None

    @model_validator(mode="after")
    def _settle(self) -> MethodEntry:
        given = self.model_dump(exclude_defaults=True, exclude={"name", "label"})
        if self.name == DENSE and given:
            raise ValueError(f"dense takes no {', '.join(given)}: remove it")
        if both := sorted(self.args.keys() & self.choose.keys()):
            raise ValueError(f"'{both[0]}' is both in args and in choose: keep one")
        self.label = self.label or self._description()
        return self

    def _description(self) -> str:
        facts = {**self.args, **{name: f"{len(values)} values" for name, values in self.choose.items()}}
        others = self.model_dump(exclude_defaults=True, exclude={"name", "label", "args", "choose"})
        return ", ".join([self.name, *(f"{name}={value}" for name, value in {**facts, **others}.items())])


class _Training(_Part):
    @field_validator("*")
    @classmethod
    def _valid(cls, value: Any, info: ValidationInfo) -> Any:
        return _checked(value, lambda given: TrainConfig(**{info.field_name or "": given}))


if TYPE_CHECKING:
    TrainEntry = _Training
else:
    #: The fields of TrainConfig but the seed, which is the cell's.
    TrainEntry = create_model(
        "TrainEntry",
        __base__=_Training,
        **{f.name: (get_type_hints(TrainConfig)[f.name], f.default) for f in fields(TrainConfig) if f.name != "seed"},
    )


class Grid(_Part):
    """Every model on every data set by every method at every density with every seed."""

    models: Annotated[
        list[Annotated[ModelEntry, BeforeValidator(_named)]], Field(min_length=1), AfterValidator(_distinct)
    ]
    datasets: Annotated[
        list[Annotated[DatasetEntry, BeforeValidator(_named)]], Field(min_length=1), AfterValidator(_distinct)
    ]
    methods: Annotated[list[Annotated[MethodEntry, BeforeValidator(_named)]], Field(min_length=1)]
    densities: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1), AfterValidator(_distinct)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_distinct)]
    train: TrainEntry = Field(default_factory=TrainEntry)
    score_images: int = Field(1280, ge=1)
    reference: str | None = None

    @field_validator("methods")
    @classmethod
    def _labels_differ(cls, methods: list[MethodEntry]) -> list[MethodEntry]:
        labels = [method.label for method in methods]
        if twice := [label for index, label in enumerate(labels) if label in labels[:index]]:
            raise ValueError(f"has two methods with the label '{twice[0]}': give one of them another label")
        return methods

    @field_validator("reference")
    @classmethod
    def _is_a_label(cls, reference: str | None, info: ValidationInfo) -> str | None:
        labels = [method.label for method in info.data.get("methods", [])]
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
    document = read_yaml(path)
    if not isinstance(document.value, dict):
        found = "nothing" if document.value is None else f"a {type(document.value).__name__}"
        raise document.error((), f"a grid is a mapping with keys such as models, datasets and methods, not {found}")
    try:
        return Grid.model_validate(document.value, context={"methods": list(known_methods)}), document
    except ValidationError as error:
        # A key that is missing may be one that is misspelled: the misspelling says more.
        first = min(error.errors(), key=lambda found: (found["type"] == "missing", document.line(_where(found))))
        raise document.error(_where(first), _problem(first)) from None


def _checked(value: Any, look_up: Any) -> Any:
    """``value`` if ``look_up(value)`` does not object; pydantic places only a ValueError."""
    try:
        look_up(value)
    except AutoSparseError as error:
        raise ValueError(str(error)) from None
    return value


def _where(found: ErrorDetails) -> Where:
    return tuple(part for part in found["loc"] if part != "[key]")


def _problem(found: ErrorDetails) -> str:
    """What is wrong with a value, from pydantic's description of it."""
    where = _where(found)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")
    kind, message = found["type"], found["msg"]
    if kind == "extra_forbidden":
        model = _ENTRIES[str(where[0])] if len(where) > 1 else Grid
        return f"{UnknownNameError('key', name.rpartition('.')[2], model.model_fields)}"
    if kind == "missing":
        return f"key '{name}' is missing: add it"
    if kind == "too_short":
        return f"{name} is empty: give at least one"
    if kind == "value_error":
        return f"{name}: {message.removeprefix('Value error, ')}"
    if kind == "model_type":
        return f"{name} is {_spelled(found['input'])}: give a name, or a mapping with the key name"
    return f"{name} is {_spelled(found['input'])}: {message.replace('Input', 'it')}"
