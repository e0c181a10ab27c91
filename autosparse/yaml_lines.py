"""YAML that remembers the lines its values stand on, so that a mistake can be pointed at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from autosparse.errors import FileFormatError

#: Keys and indices from the root to a value.
Where = tuple[str | int, ...]

_MAX_VALUES = 100_000  # aliases let a few lines stand for billions of values


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars: ``2:4`` and ``no`` are texts and ``5e-4`` is a number, unlike in YAML 1.1."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (filled below, for this class alone)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


class Document:
    """The value of a YAML file, and the lines of its parts."""

    def __init__(self, path: Path, value: Any, lines: Mapping[Where, int]) -> None:
        self.path = path
        self.value = value
        self._lines = lines

    def line(self, where: Where) -> int:
        """The line, from 1, of the value at ``where``, or of the innermost value around it that exists."""
        while where not in self._lines and where:
            where = where[:-1]
        return self._lines.get(where, 1)

    def error(self, where: Where, problem: str) -> FileFormatError:
        return FileFormatError(f"{self.path}:{self.line(where)}: {problem}")


def read_yaml(path: Path) -> Document:
    """Read one YAML document of plain values; FileFormatError with file and line for anything else."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileFormatError(f"cannot read {path} ({error.strerror}): give a YAML file") from None
    try:
        return _Reader(path, content).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise FileFormatError(f"{path}:{line}: no valid YAML ({error.problem}): correct it") from None
    except yaml.reader.ReaderError as error:
        raise FileFormatError(f"{path}:1: no text in UTF-8 ({error.reason}): give a YAML file") from None
    except RecursionError:
        raise FileFormatError(f"{path}:1: nested too deeply: give a plain grid") from None


class _Reader:
    def __init__(self, path: Path, content: bytes) -> None:
        self._path = path
        self._loader = _Loader(content)
        self._lines: dict[Where, int] = {}
        self._values = 0

    def document(self) -> Document:
        root = self._loader.get_single_node()
        value = None if root is None else self._value(root, (), _line(root))
        return Document(self._path, value, self._lines)

    def _value(self, node: yaml.Node, where: Where, line: int) -> Any:
        self._lines[where] = line
        self._values += 1
        if self._values > _MAX_VALUES:
            raise FileFormatError(f"{self._path}:{line}: more than {_MAX_VALUES} values: give a smaller file")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*where, index), _line(item)) for index, item in enumerate(node.value)]
        try:
            return self._loader.construct_object(node)
        except ValueError as error:  # such as !!int x
            raise FileFormatError(f"{self._path}:{line}: {error}: correct it") from None

    def _mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        given = [key.value for key, _ in node.value]
        if twice := next((key for index, key in enumerate(given) if key in given[:index]), None):
            line = _line([key for key, _ in node.value if key.value == twice][1])
            raise FileFormatError(f"{self._path}:{line}: key '{twice}' is given twice: keep one")
        self._loader.flatten_mapping(node)
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise FileFormatError(f"{self._path}:{_line(key)}: a key is no text: correct it")
            found[key.value] = self._value(value, (*where, key.value), _line(key))
        return found


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
