"""Folders of results as the benchmark's runner leaves them, made of chosen numbers."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

LAYERS = {"conv.weight": 432, "block.conv1.weight": 2304, "classifier.weight": 640}

_CELL: dict[str, Any] = {
    "model": "resnet20",
    "model_args": {"width": 0.5},
    "dataset": "imagefolder:data/cifar10-jpeg.tar.gz",
    "image_size": None,
    "split_seed": 0,
    "method": "snip",
    "options": {},
    "budget": None,
    "granularity": None,
    "sanity": None,
    "scorer": None,
    "min_layer_density": 0,
    "keep_connected": False,
    "choose": None,
    "density": 0.05,
    "seed": 0,
    "score_images": 1280,
    "train": {"epochs": 3, "batch_size": 128, "lr": 0.1, "seed": 0},
}
_PROVENANCE = {
    "versions": {"python": "3.11.2", "autosparse": "0.1.0", "torch": "2.13.0"},
    "source_revision": "0123456789abcdef",
    "threads": 1,
    "machine": "x86_64",
    "gpu": "NVIDIA H200",
}


def cell_file(label: str, accuracy: float | None = None, *, error: str = "", **changes: Any) -> dict[str, Any]:
    """The content of one cell's file: finished with ``accuracy``, or failed with ``error``.

    ``changes`` are facts of the cell (``density``, ``seed``, ``method``, ...) and of its result; with ``measure`` the
    cell removed channels.
    """
    measured = changes.get("measure")
    cell = copy.deepcopy(_CELL) | {name: value for name, value in changes.items() if name in _CELL}
    cell["train"] = {**cell["train"], "seed": cell["seed"]}
    kept = {name: round(size * cell["density"]) for name, size in LAYERS.items()}
    result = {
        "test_accuracy": accuracy,
        "val_accuracy": accuracy,
        "total": sum(LAYERS.values()),
        "kept": sum(kept.values()),
        "density": sum(kept.values()) / sum(LAYERS.values()),
        "connected": True,
        "warnings": [],
        "layers": [
            {"name": name, "shape": [size], "weights": size, "kept": kept[name], "density": kept[name] / size}
            for name, size in LAYERS.items()
        ],
        "prune_seconds": 1.5,
        "prune_peak_bytes": 3_000_000,
        "train_seconds": 90.0,
        "prune_images": 1280,
        "history": [],
        "chosen": {},
    }
    if measured is not None:  # channels were removed
        cell["measure"] = measured
        left = 0.96 * cell["density"]
        result["channels"] = {"reached": {"flops": left, "params": left / 2, "channels": left**0.5}}
        result["latency"] = {"batch": 128, "share": 1.2 * left, "low": left, "high": 1.5 * left}
        result["training"] = {"dense_epochs": 1, "flops": 40, "dense_flops": 60}
    result |= {name: value for name, value in changes.items() if name in result}
    digest = hashlib.sha256(json.dumps([label, cell], sort_keys=True).encode()).hexdigest()[:16]
    return {
        "kind": "autosparse-cell",
        "schema_version": 1,
        "hash": digest,
        "status": "done" if accuracy is not None else "failed",
        "label": label,
        "cell": cell,
        "result": result if accuracy is not None else None,
        "error": None if accuracy is not None else {"type": "DivergedError", "message": error},
        "command": f"autosparse train --method {cell['method']} --density {cell['density']} --seed {cell['seed']}",
        "provenance": changes.get("provenance", _PROVENANCE),
        "seconds": 95.0,
    }


def write_cells(folder: Path, *contents: dict[str, Any]) -> Path:
    """A folder of results with these files."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    for content in contents:
        (folder / "cells" / f"{content['hash']}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def small_grid() -> list[dict[str, Any]]:
    """Two labels at two densities and dense, three seeds each; one more of ``magnitude`` failed."""
    table = {
        ("SNIP", "snip", 0.05): (0.60, 0.62, 0.64),
        ("SNIP", "snip", 0.01): (0.50, 0.52, 0.51),
        ("random_ERK", "random", 0.05): (0.63, 0.66, 0.69),
        ("random_ERK", "random", 0.01): (0.52, 0.53, 0.53),
        ("dense", "dense", 1.0): (0.80, 0.81, 0.82),
    }
    cells = [
        cell_file(label, accuracy, method=method, density=density, seed=seed)
        for (label, method, density), accuracies in table.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    broken = cell_file("magnitude", error="the loss is nan", method="magnitude", density=0.01, seed=0)
    return [*cells, broken]
