"""Writing IRP data as HDF5; ``data_gen/README.md`` documents the layout for people who read it without this code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from autosparse.errors import OutputExistsError
from autosparse.files import atomic_path
from autosparse.layers import Layer
from autosparse.scorer.dataset import KIND, SCHEMA_VERSION, WEIGHT_COLUMNS, IRPRun, list_runs

_CHUNK = 65_536
_ROUND_DTYPE = np.dtype(
    [
        ("round", "i4"),
        ("density", "f8"),
        ("kept", "i8"),
        ("train_loss", "f8"),
        ("val_accuracy", "f8"),
        ("kept_after", "i8"),
        ("seconds", "f8"),
    ]
)


def _layer_table(layers: list[Layer]) -> np.ndarray:
    width = max(len(layer.name.encode()) for layer in layers)
    numbers = [(name, "i8") for name in ("groups", "fan_in", "fan_out", "depth", "offset", "size")]
    dtype = np.dtype([("name", f"S{width}"), ("kind", "S8"), ("shape", "S64"), *numbers])
    rows = [
        (
            layer.name.encode(),
            layer.kind.encode(),
            "x".join(map(str, layer.shape)).encode(),
            layer.groups,
            layer.fan_in,
            layer.fan_out,
            layer.depth,
            layer.offset,
            layer.size,
        )
        for layer in layers
    ]
    return np.array(rows, dtype=dtype)


def round_table(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Records of rounds as the structured array that is stored."""
    return np.array([tuple(row[name] for name in _ROUND_DTYPE.names or ()) for row in rows], dtype=_ROUND_DTYPE)


def append_run(path: Path, run: IRPRun, replace: bool = False, fresh: bool = False) -> None:
    """Add ``run`` to the file (made when missing), atomically: a copy is extended and takes the file's place.

    Args:
        replace: overwrite a run of the same name.
        fresh: drop everything that the file held before.

    Raises:
        OutputExistsError: the file has a run of this name and ``replace`` is not set. FileFormatError: it is no IRP
        file, or a newer version's.
    """
    exists = path.exists() and not fresh
    if exists and run.name in list_runs(path) and not replace:
        raise OutputExistsError(f"{path} already has a run '{run.name}': choose another --out or seed, or give --force")
    with atomic_path(path) as temporary:
        if exists:
            shutil.copyfile(path, temporary)
        with h5py.File(temporary, "a") as file:
            file.attrs.update({"kind": KIND, "schema_version": SCHEMA_VERSION})
            runs = file.require_group("runs")
            if run.name in runs:
                del runs[run.name]
            _write_run(runs.create_group(run.name), run)


def _write_run(group: h5py.Group, run: IRPRun) -> None:
    group.attrs.update(
        {
            "config": json.dumps(run.config),
            "data": json.dumps(run.data),
            "seed": run.config["seed"],
            "rounds": run.num_rounds,
            "versions": json.dumps(run.provenance["versions"]),
            "source_revision": run.provenance["source_revision"],
            "provenance": json.dumps(run.provenance),
        }
    )
    compressed = {"chunks": True, "compression": "gzip", "compression_opts": 4, "shuffle": True}
    weights = group.create_group("weights")
    for name in WEIGHT_COLUMNS:
        values = getattr(run, name)
        weights.create_dataset(name, data=values, **{**compressed, "chunks": (min(_CHUNK, len(values)),)})
    group.create_dataset("layers", data=_layer_table(run.layers))
    group.create_dataset("rounds", data=run.rounds)
    for state_name, state in run.states.items():
        state_group = group.create_group(state_name)
        for name, tensor in state.items():
            array = tensor.detach().cpu().numpy()
            state_group.create_dataset(name, data=array, **(compressed if array.size > 1 and array.ndim else {}))
