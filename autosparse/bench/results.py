"""The cells of a benchmark, read from its folder and never trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from autosparse.bench.plan import Plan, read_plan
from autosparse.bench.setting import MEASURES, SETTING, WEIGHTS, Setting, setting_of
from autosparse.errors import FileFormatError
from autosparse.files import check_schema, read_json

KIND = "autosparse-cell"
DENSE = "dense"
_ADVICE = "remove it and run the benchmark again to remake it"

_NUMBER, _COUNT = (int, float), (int,)
_CELL: Mapping[str, tuple[type, ...]] = {
    "hash": (str,),
    "status": (str,),
    "label": (str,),
    "command": (str,),
    "provenance": (dict,),
    "seconds": (*_NUMBER, NoneType),
    "cell": (dict,),
    "cell.model": (str,),
    "cell.model_args": (dict, NoneType),
    "cell.dataset": (str,),
    "cell.method": (str,),
    "cell.sanity": (str, NoneType),
    "cell.granularity": (str, NoneType),
    "cell.scorer": (str, NoneType),
    "cell.density": _NUMBER,
    "cell.seed": _COUNT,
    "cell.train": (dict,),
}
_OUTCOME: Mapping[str, tuple[type, ...]] = {
    "test_accuracy": _NUMBER,
    "density": _NUMBER,
    "connected": (bool, NoneType),
    "warnings": (list,),
    "layers": (list,),
    "prune_seconds": (*_NUMBER, NoneType),
    "prune_peak_bytes": (*_NUMBER, NoneType),
    "train_seconds": (*_NUMBER, NoneType),
    "prune_images": (*_COUNT, NoneType),
}
_CHANNELS: Mapping[str, tuple[type, ...]] = {
    "channels.reached.flops": _NUMBER,
    "channels.reached.params": _NUMBER,
    "channels.reached.channels": _NUMBER,
    "latency.share": (*_NUMBER, NoneType),
    "latency.batch": (*_COUNT, NoneType),
    "training.flops": _COUNT,
    "training.dense_flops": _COUNT,
    "training.dense_epochs": _COUNT,
}
_LAYER: Mapping[str, tuple[type, ...]] = {"name": (str,), "weights": _COUNT, "kept": _COUNT}
# The rest of a cell says how the method was used; all cells of a label must agree on it.
_PLACE = (*SETTING, "measure", "density", "seed", "sanity", "label")


@dataclass(frozen=True)
class Smaller:
    """What is left of a network that lost channels, in shares of the dense network.

    Args:
        latency: of inference at batch size ``batch``, measured in turn with the dense network; None if it was not.
        training: FLOPs of the whole training; channels were removed after ``dense_epochs`` epochs.
    """

    flops: float
    params: float
    channels: float
    latency: float | None
    batch: int | None
    training: float
    dense_epochs: int


@dataclass(frozen=True)
class Outcome:
    """What one finished cell measured; accuracies and densities are fractions from 0 to 1.

    Args:
        layers: name -> (weights, weights kept), from input to output; a network may be widened.
        prune_images: with gradients recorded, before the training that is measured; None if that was not counted.
        smaller: where channels were removed.
    """

    test_accuracy: float
    density: float
    connected: bool | None
    warnings: tuple[str, ...]
    layers: Mapping[str, tuple[int, int]]
    prune_seconds: float | None
    prune_peak_bytes: float | None
    train_seconds: float | None
    prune_images: int | None = None
    smaller: Smaller | None = None

    @property
    def empty_layers(self) -> tuple[str, ...]:
        """Layers that keep no weight."""
        return tuple(name for name, (weights, kept) in self.layers.items() if weights and not kept)


@dataclass(frozen=True)
class Cell:
    """One pruned and trained network, or why there is none: ``outcome`` is None and ``error`` says what happened.

    ``usage`` is canonical JSON of everything that says how the method was used.
    """

    hash: str
    label: str
    method: str
    setting: Setting
    sanity: str | None
    granularity: str | None
    density: float
    seed: int
    usage: str
    outcome: Outcome | None
    error: str
    command: str
    provenance: Mapping[str, Any]
    seconds: float | None

    @property
    def is_dense(self) -> bool:
        return self.method == DENSE

    @property
    def name(self) -> str:
        """The label, with the sanity check where it does not say so itself."""
        return f"{self.label} [{self.sanity}]" if self.sanity and self.sanity not in self.label else self.label


@dataclass(frozen=True)
class Results:
    """All cells of a folder, by file name.

    Args:
        reference: the label that the plan compares with; None when it names none.
        absent: what the plan asks for and the folder does not have, as (setting, label, density, seed); None for a
            folder without a plan that this release can read.
        stale: cells left out because the plan now uses their label for other settings.
    """

    folder: Path
    cells: tuple[Cell, ...]
    reference: str | None = None
    absent: tuple[tuple[Setting, str, float, int], ...] | None = None
    stale: int = 0

    @property
    def done(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell.outcome is not None)

    @property
    def failed(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell.outcome is None)


def read_results(folder: Path) -> Results:
    """Read every cell of ``folder``.

    Raises:
        FileFormatError: no folder of results, one without a cell, or a file in it that is damaged, foreign, of a
            newer release, or at odds with another one.
    """
    if not (folder / "cells").is_dir():
        raise FileFormatError(f"{folder} holds no results (it has no folder 'cells'): give the --out of a benchmark")
    paths = sorted(path for path in (folder / "cells").glob("*.json") if not path.name.startswith("."))
    if not paths:
        raise FileFormatError(f"{folder} holds no results yet (no file in 'cells'): run the benchmark first")
    found = {path: _read_cell(path) for path in paths}
    plan = read_plan(folder / "grid.json")
    cells = _current(found, plan)
    _check_agreement(cells)
    there = {cell.hash for cell in cells.values()}
    absent = None
    if plan.cells is not None:
        absent = tuple(
            (setting_of(cell), str(cell["label"]), float(cell["density"]), int(cell["seed"]))
            for name, cell in plan.cells.items()
            if name not in there
        )
    return Results(folder, tuple(cells.values()), plan.reference, absent, len(found) - len(cells))


def _usage(cell: Mapping[str, Any]) -> str:
    facts = {name: value for name, value in cell.items() if name not in _PLACE}
    facts["scorer"] = Path(cell["scorer"]).name if cell.get("scorer") else None
    return json.dumps(facts, sort_keys=True)


def _read_cell(path: Path) -> Cell:
    content = read_json(path)
    check_schema(path, KIND, content.get("kind"), content.get("schema_version"))
    _check_types(path, content, _CELL)
    status, cell = content["status"], content["cell"]
    if status not in ("done", "failed"):
        raise FileFormatError(f"{path}: status is {status!r}, neither done nor failed: {_ADVICE}")
    if not 0 < cell["density"] <= 1:
        raise FileFormatError(f"{path}: cell.density is {cell['density']}, outside (0, 1]: {_ADVICE}")
    if cell.get("measure", WEIGHTS) not in MEASURES:
        raise FileFormatError(f"{path}: cell.measure is {cell['measure']!r:.60}, no known measure: {_ADVICE}")
    return Cell(
        hash=content["hash"],
        label=content["label"],
        method=cell["method"],
        setting=setting_of(cell),
        sanity=cell.get("sanity"),
        granularity=cell.get("granularity"),
        density=float(cell["density"]),
        seed=cell["seed"],
        usage=_usage(cell),
        outcome=_outcome(path, content.get("result")) if status == "done" else None,
        error="" if status == "done" else _error(path, content.get("error")),
        command=content["command"],
        provenance=content["provenance"],
        seconds=content["seconds"],
    )


def _outcome(path: Path, result: object) -> Outcome:
    if not isinstance(result, dict):
        raise FileFormatError(f"{path}: a finished cell without a result: {_ADVICE}")
    _check_types(path, result, _OUTCOME, "result.")
    smaller = _smaller(path, result) if "channels" in result else None
    for name in ("test_accuracy",) if smaller else ("test_accuracy", "density"):
        if not 0 <= result[name] <= 1:
            raise FileFormatError(f"{path}: result.{name} is {result[name]}, outside [0, 1]: {_ADVICE}")
    layers = {}
    for index, layer in enumerate(result["layers"]):
        if not isinstance(layer, dict):
            raise FileFormatError(f"{path}: result.layers[{index}] is no object: {_ADVICE}")
        _check_types(path, layer, _LAYER, f"result.layers[{index}].")
        if not 0 <= layer["kept"] <= (layer["kept"] if smaller else layer["weights"]):
            found = f"layer {layer['name']} keeps {layer['kept']} of {layer['weights']}"
            raise FileFormatError(f"{path}: {found}: {_ADVICE}")
        layers[layer["name"]] = (layer["weights"], layer["kept"])
    known: dict[str, Any] = {name: result.get(name) for name in _OUTCOME}
    return Outcome(**{**known, "warnings": tuple(map(str, result["warnings"])), "layers": layers}, smaller=smaller)


def _smaller(path: Path, result: Mapping[str, Any]) -> Smaller:
    _check_types(path, result, _CHANNELS, "result.")
    reached, training = result["channels"]["reached"], result["training"]
    latency = result.get("latency") or {}
    if training["dense_flops"] < 1:
        raise FileFormatError(f"{path}: result.training.dense_flops is {training['dense_flops']}, below 1: {_ADVICE}")
    return Smaller(
        flops=float(reached["flops"]),
        params=float(reached["params"]),
        channels=float(reached["channels"]),
        latency=latency.get("share"),
        batch=latency.get("batch"),
        training=training["flops"] / training["dense_flops"],
        dense_epochs=training["dense_epochs"],
    )


def _error(path: Path, error: object) -> str:
    if not isinstance(error, dict):
        raise FileFormatError(f"{path}: a failed cell without its error: {_ADVICE}")
    return " ".join(f"{error.get('type', 'error')}: {error.get('message', '')}".split())


def _check_types(
    path: Path, content: Mapping[str, Any], facts: Mapping[str, tuple[type, ...]], prefix: str = ""
) -> None:
    for name, kinds in facts.items():
        value: Any = content
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        right = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if not right or (isinstance(value, float) and not math.isfinite(value)):
            raise FileFormatError(f"{path}: {prefix}{name} is {value!r:.60}, not what belongs there: {_ADVICE}")


def _current(cells: Mapping[Path, Cell], plan: Plan) -> dict[Path, Cell]:
    """The cells without those of earlier plans that used a label for something else, or another scorer of that name.

    Which scorer a file held is told by the hash alone: where a planned cell takes the place of another one, the file
    has changed since, and what is not planned has the old one, other seeds included.
    """
    planned = [cell for cell in cells.values() if cell.hash in (plan.cells or ())]
    usages = {_group(cell): cell.usage for cell in planned}
    places = {(_group(cell), cell.density, cell.seed): cell.hash for cell in planned}
    changed = {
        _group(cell)
        for cell in cells.values()
        if places.get((_group(cell), cell.density, cell.seed), cell.hash) != cell.hash
    }
    return {
        path: cell
        for path, cell in cells.items()
        if usages.get(_group(cell), cell.usage) == cell.usage
        and (_group(cell) not in changed or cell.hash in (plan.cells or ()))
    }


def _group(cell: Cell) -> tuple[Setting, str, str | None]:
    """Cells that differ in density and seed alone have the same."""
    return cell.setting, cell.label, cell.sanity


def _check_agreement(cells: Mapping[Path, Cell]) -> None:
    """FileFormatError when a label stands for two usages in one setting, or a cell is there twice."""
    usages: dict[tuple[Setting, str, str | None], tuple[Path, Cell]] = {}
    places: dict[tuple[Setting, str, str | None, float, int], Path] = {}
    for path, cell in cells.items():
        group = _group(cell)
        first, other = usages.setdefault(group, (path, cell))
        if other.usage != cell.usage:
            raise FileFormatError(
                f"{first} and {path} give the label {cell.label!r} to different settings: "
                "give each its own label, or remove the files of one"
            )
        twin = places.setdefault((*group, cell.density, cell.seed), path)
        if twin != path:
            raise FileFormatError(f"{twin} and {path} are the same cell: remove one")
