"""Reading IRP data: HDF5 files that ``data_gen`` writes and documents. Nothing in them is trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from autosparse.errors import FileFormatError, UnknownNameError
from autosparse.files import check_schema
from autosparse.layers import Layer

KIND = "autosparse-irp"
SCHEMA_VERSION = 1
_SETTINGS = {"model": str, "rounds": int, "train": dict, "criterion": str, "scope": str}  # of a run, that are used
_ROUND_COLUMNS = ("round", "density", "train_loss", "val_accuracy")
WEIGHT_COLUMNS = {"initial_value": np.float32, "initial_gradient": np.float32, "rounds_survived": np.uint16}


@dataclass(frozen=True)
class IRPRun:
    """One run. Arrays over weights are flat, layer after layer at ``layer.offset``.

    ``rounds_survived`` counts the rounds whose pruning a weight survived: the mask that round ``r`` (from 0) trained
    with is ``rounds_survived >= r``, the final ticket ``rounds_survived == rounds``. ``states`` holds the full
    ``state_dict`` of the initial and of the rewound network.
    """

    name: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    data: Mapping[str, Any]
    layers: list[Layer]
    initial_value: np.ndarray
    initial_gradient: np.ndarray
    rounds_survived: np.ndarray
    rounds: np.ndarray
    states: Mapping[str, Mapping[str, Tensor]]

    @property
    def num_rounds(self) -> int:
        return int(self.config["rounds"])

    def by_layer(self, values: np.ndarray) -> dict[str, Tensor]:
        """A flat array over weights as one tensor a layer, of the layer's shape."""
        return {
            layer.name: torch.from_numpy(values[layer.offset : layer.offset + layer.size]).reshape(layer.shape)
            for layer in self.layers
        }


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The file, checked to be ours; every way in which it can be damaged is one line."""
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist: give a file written by 'autosparse generate'")
    try:
        with h5py.File(path, "r") as file:
            check_schema(path, KIND, file.attrs.get("kind"), file.attrs.get("schema_version"), SCHEMA_VERSION)
            yield file
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise FileFormatError(
            f"{path} is damaged, truncated or no IRP file ({str(error).strip() or type(error).__name__}): "
            "restore it, or remake it with 'autosparse generate'"
        ) from None


def list_runs(path: Path) -> list[str]:
    """Names of the runs in the file."""
    with _opened(path) as file:
        return sorted(file["runs"])


def read_run(path: Path, name: str) -> IRPRun:
    """One run, with every size checked against the layers' before it is read.

    Raises:
        FileFormatError: damaged, foreign or newer file. UnknownNameError: no such run.
    """
    with _opened(path) as file:
        runs = file["runs"]
        if name not in runs:
            raise UnknownNameError("IRP run", name, runs)
        group = runs[name]
        config = _with(json.loads(group.attrs["config"]), "config", _SETTINGS)
        _with(config["train"], "config.train", {"epochs": int})
        data = _with(json.loads(group.attrs["data"]), "data", {"name": str})
        table, rounds = _checked(group["layers"]), _checked(group["rounds"])
        if missing := [column for column in _ROUND_COLUMNS if column not in (rounds.dtype.names or ())]:
            raise ValueError(f"the table of rounds has no column {missing[0]}")
        layers = [
            Layer(
                row["name"].decode(),
                row["kind"].decode(),
                tuple(int(n) for n in row["shape"].decode().split("x")),
                int(row["groups"]),
                int(row["depth"]),
                int(row["offset"]),
            )
            for row in table
        ]
        total = sum(layer.size for layer in layers)
        if [layer.offset for layer in layers] != list(accumulate((layer.size for layer in layers), initial=0))[:-1]:
            raise ValueError("layers do not lie one after the other")
        columns = {}
        for column, dtype in WEIGHT_COLUMNS.items():
            dataset = group["weights"][column]
            if dataset.shape != (total,) or dataset.dtype != dtype:
                raise ValueError(f"{column} is {dataset.dtype}{list(dataset.shape)}, not {np.dtype(dtype)}[{total}]")
            columns[column] = _checked(dataset)
        if int(columns["rounds_survived"].max()) > int(config["rounds"]):
            raise ValueError("a weight survived more rounds than there were")
        return IRPRun(
            name=name,
            config=config,
            provenance=json.loads(group.attrs["provenance"]),
            data=data,
            layers=layers,
            rounds=rounds,
            states={
                state: {key: torch.from_numpy(np.asarray(_checked(value))) for key, value in _tensors(group[state])}
                for state in ("initial_state", "rewind_state")
                if state in group
            },
            **columns,
        )


def _with(found: object, where: str, needed: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object, if it has the entries that are ``needed``, each of its type."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} is no object")
    for name, kind in needed.items():
        if not isinstance(found.get(name), kind):
            raise ValueError(f"{where} has no {name} of type {kind.__name__}")
    return found


def _checked(dataset: h5py.Dataset) -> Any:
    """The data, unless the file declares more than its stored bytes could unpack to (deflate: at most 1032 to 1)."""
    if dataset.nbytes > 1032 * dataset.id.get_storage_size() + 1024:
        raise ValueError(f"{dataset.name} declares {dataset.nbytes} bytes, more than the file can hold")
    return dataset[()]


def _tensors(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    found: list[tuple[str, h5py.Dataset]] = []
    group.visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
    return iter(found)
