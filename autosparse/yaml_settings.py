"""Settings in YAML files: validated, with the line of the first mistake."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from autosparse.data.sources import SOURCES
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.models.registry import MODELS
from autosparse.yaml_lines import Document, Where, read_yaml

M = TypeVar("M", bound=BaseModel)


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


def distinct(values: list[Any]) -> list[Any]:
    if twice := [value for index, value in enumerate(values) if value in values[:index]]:
        raise ValueError(f"has {spelled(twice[0])} twice: keep one")
    return values


def spelled(value: Any) -> str:
    text = repr(value.model_dump(exclude_defaults=True) if isinstance(value, BaseModel) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def named(value: Any) -> Any:
    """A bare name stands for an entry with nothing but a name."""
    return {"name": value} if isinstance(value, str) else value


Plain = Annotated[Any, AfterValidator(_plain)]
Options = dict[Annotated[str, AfterValidator(_identifier)], Plain]
Values = dict[
    Annotated[str, AfterValidator(_identifier)], Annotated[list[Plain], Field(min_length=1), AfterValidator(distinct)]
]
Share = Annotated[float, Field(gt=0, le=1)]
Shares = Annotated[list[Share], AfterValidator(distinct)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ModelEntry(Part):
    name: str
    args: Options = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return name if ":" in name else checked(name, MODELS.get)


class DatasetEntry(Part):
    name: str
    image_size: int | None = Field(None, ge=4)
    split_seed: int = 0

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return name if name.startswith("imagefolder:") else checked(name, SOURCES.get)


def read_settings(
    path: Path,
    settings: type[M],
    what: str,
    keys: str,
    entries: Mapping[str, type[BaseModel]],
    context: Mapping[str, Any] | None = None,
) -> tuple[M, Document]:
    """The settings in a YAML file, and the file with its lines.

    Args:
        what, keys: what the file is, and examples of its keys, for messages.
        entries: key of the file -> what it is a list or a mapping of.
        context: for validators.

    Raises:
        FileFormatError: one line that names file, line and key of the first mistake, and what to do.
    """
    document = read_yaml(path)
    if not isinstance(document.value, dict):
        found = "nothing" if document.value is None else f"a {type(document.value).__name__}"
        raise document.error((), f"{what} is a mapping with keys such as {keys}, not {found}")
    try:
        return settings.model_validate(document.value, context=dict(context or {})), document
    except ValidationError as error:
        # A key that is missing may be one that is misspelled: the misspelling says more.
        first = min(error.errors(), key=lambda found: (found["type"] == "missing", document.line(_where(found))))
        raise document.error(_where(first), _problem(first, settings, entries)) from None


def checked(value: Any, look_up: Any) -> Any:
    """``value`` if ``look_up(value)`` does not object; pydantic places only a ValueError."""
    try:
        look_up(value)
    except AutoSparseError as error:
        raise ValueError(str(error)) from None
    return value


def _where(found: ErrorDetails) -> Where:
    return tuple(part for part in found["loc"] if part != "[key]")


def _problem(found: ErrorDetails, settings: type[BaseModel], entries: Mapping[str, type[BaseModel]]) -> str:
    """What is wrong with a value, from pydantic's description of it."""
    where = _where(found)
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")
    kind, message = found["type"], found["msg"]
    if kind == "extra_forbidden":
        model = entries[str(where[0])] if len(where) > 1 else settings
        return f"{UnknownNameError('key', name.rpartition('.')[2], model.model_fields)}"
    if kind == "missing":
        return f"key '{name}' is missing: add it"
    if kind == "too_short":
        return f"{name} is empty: give at least one"
    if kind == "value_error":
        return ": ".join(filter(None, [name, message.removeprefix("Value error, ")]))
    if kind == "model_type":
        return f"{name} is {spelled(found['input'])}: give a name, or a mapping with the key name"
    return f"{name} is {spelled(found['input'])}: {message.replace('Input', 'it')}"
