"""The network that a folder of any command holds: shrunk, trained or pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from autosparse.channels.store import build_dense, is_shrunk, load, read_manifest
from autosparse.errors import FileFormatError
from autosparse.experiment.pruned import read_pruning
from autosparse.experiment.summary import read_summary
from autosparse.experiment.trained import TRAINING
from autosparse.files import read_json
from autosparse.masks import Masks
from autosparse.models.rebuilding import check_description, rebuild
from autosparse.training import load_state

_FACTS: Mapping[str, tuple[type, ...]] = {"network": (dict,), "data.image_size": (int,)}
_MOST_PIXELS = 2**16  # a side
_WHAT = "a folder of 'autosparse shrink', 'train' or 'prune'"


@dataclass(frozen=True)
class StoredNetwork:
    """A network as a folder holds it, on the CPU, in eval mode.

    Args:
        name: the dense network's, and what was done to it.
        image_shape: channels, height and width of its images.
        network: how the dense network is built; ``None`` for one that was given in Python.
        dense: the network that it was shrunk from, with initial weights; ``None`` if it was not shrunk.
    """

    name: str
    model: nn.Module
    image_shape: tuple[int, int, int]
    network: Mapping[str, Any] | None
    dense: nn.Module | None = None


def open_network(folder: Path, own: str | None = None) -> StoredNetwork:
    """Read the network of a folder; a pruned one is in its initial state, removed weights at zero.

    Args:
        own: the network's name if it is ``package.module:factory``: see
            :func:`~autosparse.models.rebuilding.rebuild`.

    Raises:
        FileFormatError: any other folder, or a damaged one. AutoSparseError: code of the user's that ``own`` does not
        name.
    """
    if is_shrunk(folder):
        manifest = read_manifest(folder)
        dense = build_dense(folder / "manifest.json", manifest, own)
        assert manifest.network is not None  # or it could not have been built
        name = f"{manifest.network['model']}, shrunk"
        return StoredNetwork(name, load(folder, dense), manifest.image_shape, manifest.network, dense)
    path = folder / "summary.json"
    if not path.is_file():
        raise FileFormatError(f"{folder} holds no manifest.json and no summary.json: give {_WHAT}")
    if read_json(path).get("kind") == TRAINING:
        summary, done = read_summary(folder, TRAINING, _WHAT, _FACTS), "trained"
    else:
        summary, done = read_pruning(folder), "pruned"
    network = check_description(path, summary["network"])
    model = rebuild(path, network, own)
    if done == "trained":
        load_state(folder / "model.safetensors", model)
    else:
        load_state(folder / "init.safetensors", model)
        Masks.load(folder / "masks.safetensors").apply(model)
    size = summary["data"]["image_size"]
    if not 0 < size <= _MOST_PIXELS:
        raise FileFormatError(f"{path} is damaged: 'data.image_size' is {size}; restore or remake the folder")
    return StoredNetwork(f"{network['model']}, {done}", model.eval(), (network["in_channels"], size, size), network)
