"""Shrunk networks on disk: a folder with ``model.safetensors`` and ``manifest.json``.

The manifest says how the dense network is built and which of its modules have other widths. Loading builds the dense
network, gives these modules their widths without allocating anything, compares every shape with what the file of
weights says it holds, and only then reads it. Other files in the folder are not looked at.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from autosparse.channels.changes import Change, changes_between, fill_, resize_
from autosparse.channels.sizes import Shape
from autosparse.errors import AutoSparseError, FileFormatError, first_line
from autosparse.files import (
    SCHEMA_VERSION,
    atomic_folder,
    check_schema,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)
from autosparse.models.rebuilding import check_description, rebuild
from autosparse.outputs import largest_difference, tensors_in
from autosparse.provenance import provenance
from autosparse.seeding import generator, global_stream

_KIND = "autosparse-shrunk"
_STATE_KIND = "state"  # as in every model.safetensors
_MANIFEST, _WEIGHTS = "manifest.json", "model.safetensors"
# Of a dimension (a classifier behind a flattened image may read millions), and of a tensor.
_LARGEST, _MOST_VALUES = 2**24, 2**40
_TOLERANCE = 1e-3  # of the largest output, between a network and what is read back


@dataclass(frozen=True)
class Manifest:
    """What a folder says about the shrunk network that it holds.

    Args:
        network: how the dense network is built (``model``, ``model_args``, ``num_classes``, ``in_channels``); ``None``
            for one that was given in Python.
        image_shape: channels, height and width of its images.
        changes: from modules whose widths differ from the dense network's to these widths.
        facts: how it was shrunk, and what became of it.
    """

    network: Mapping[str, Any] | None
    image_shape: tuple[int, int, int]
    changes: Mapping[str, Change]
    facts: Mapping[str, Any]


def save_shrunk(
    folder: Path,
    small: nn.Module,
    dense: nn.Module,
    *,
    network: Mapping[str, Any] | None,
    image_shape: Sequence[int],
    facts: Mapping[str, Any],
) -> None:
    """Write ``small`` into ``folder``, atomically and over what was there; :func:`load` reads it.

    What differs from ``dense`` is found by comparing the two. That nothing was missed is made sure of: the network
    that :func:`load` will return computes the same on an image of noise.

    Args:
        small: ``dense`` with other widths: narrower or wider, trained or not. Which parameters are frozen is not kept.
        network: how ``dense`` is built, as in every summary: ``model``, ``model_args``, ``num_classes`` and
            ``in_channels``; ``None`` if it cannot be built by name. Loading then needs it.
        image_shape: ``[C, H, W]``.
        facts: JSON-able.

    Raises:
        AutoSparseError: the two networks differ in more than widths that can be kept, or ``small`` cannot be evaluated
            on images of ``image_shape``.
    """
    path = Path(folder) / _MANIFEST
    manifest = {
        "kind": _KIND,
        "schema_version": SCHEMA_VERSION,
        "network": None if network is None else dict(network),
        "image_shape": list(image_shape),
        "modules": {name: asdict(change) for name, change in changes_between(small, dense).items()},
        "facts": dict(facts),
        "provenance": provenance(),
    }
    _check_function(path, small, dense, _parse(path, manifest))
    with atomic_folder(Path(folder)) as temporary:
        save_tensors(temporary / _WEIGHTS, _STATE_KIND, small.state_dict(), {"network": manifest["network"]})
        write_json(temporary / _MANIFEST, manifest)


def is_shrunk(folder: Path) -> bool:
    """Whether ``folder`` holds a manifest, sound or not."""
    path = Path(folder) / _MANIFEST
    return path.exists() or path.is_symlink()


def load(folder: Path | str, dense: nn.Module | None = None) -> nn.Module:
    """The network that a folder of ``autosparse shrink`` or :func:`save_shrunk` holds, on the CPU, in eval mode.

    It is a plain module that can be evaluated, trained further (after ``.train()``), exported or shrunk again. No code
    in the files can run.

    Args:
        dense: the network that it was shrunk from, with any weights; it is left as it was. Needed where that was
            given in Python or is made by code of your own, otherwise it is built by its name.

    Raises:
        FileFormatError: files that are missing, damaged, foreign, newer, or do not fit each other or ``dense``.
        AutoSparseError: ``dense`` is needed.
    """
    path, weights = Path(folder) / _MANIFEST, Path(folder) / _WEIGHTS
    manifest = read_manifest(Path(folder))
    _require_file(weights)
    model = build_dense(path, manifest) if dense is None else copy.deepcopy(dense).cpu()
    try:
        resize_(model, manifest.changes)
    except ValueError as error:
        other = "the dense network is another one, or " if dense is not None else ""
        raise FileFormatError(f"{path} does not fit the dense network ({error}): {other}it is damaged") from None
    _check_weights(weights, model)
    tensors, _ = load_tensors(weights, _STATE_KIND)
    _check_types(weights, model, tensors)
    # Copies: what was read may lie side by side in one mapping of the file, not aligned for fast kernels.
    fill_(model, {name: tensor.clone() for name, tensor in tensors.items()})
    return model.eval()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of ``folder``, checked; FileFormatError for any other folder, or a damaged one."""
    path = Path(folder) / _MANIFEST
    _require_file(path)
    return _parse(path, read_json(path))


def build_dense(path: Path, manifest: Manifest, own: str | None = None) -> nn.Module:
    """The dense network that ``manifest`` (of the file ``path``) names, with initial weights.

    Args:
        own: its name, where that is ``package.module:factory``: see :func:`~autosparse.models.rebuilding.rebuild`.
    """
    if manifest.network is None:
        raise AutoSparseError(
            f"{path.parent} holds a network that was given in Python and has no name: in Python, give "
            "autosparse.load(folder, dense) the dense network that it was shrunk from"
        )
    return rebuild(path, manifest.network, own)


def _parse(path: Path, manifest: Mapping[str, Any]) -> Manifest:
    check_schema(path, _KIND, manifest.get("kind"), manifest.get("schema_version"))
    network, facts, modules = (manifest.get(key) for key in ("network", "facts", "modules"))
    image_shape = manifest.get("image_shape")
    if not isinstance(image_shape, (list, tuple)) or len(image_shape) != 3 or not _is_shape(image_shape):
        raise _damaged(path, "image_shape", image_shape)
    if not isinstance(facts, Mapping):
        raise _damaged(path, "facts", facts)
    if not isinstance(modules, Mapping):
        raise _damaged(path, "modules", modules)
    changes = {name: _parse_change(path, name, change) for name, change in modules.items()}
    known = None if network is None else check_description(path, network)
    channels, height, width = image_shape
    return Manifest(known, (channels, height, width), changes, facts)


def _parse_change(path: Path, name: str, change: Any) -> Change:
    if not isinstance(change, Mapping) or change.keys() != {"type", "attributes", "tensors"}:
        raise _damaged(path, f"module {name}", change)
    attributes, tensors = change["attributes"], change["tensors"]
    sound = (
        isinstance(change["type"], str)
        and isinstance(attributes, Mapping)
        and all(_is_size(value) or _is_shape(value) for value in attributes.values())
        and isinstance(tensors, Mapping)
        and all(_is_shape(shape) for shape in tensors.values())
    )
    if not sound:
        raise _damaged(path, f"module {name}", change)
    widths: dict[str, int | Shape] = {
        key: value if isinstance(value, int) else tuple(value) for key, value in attributes.items()
    }
    return Change(change["type"], widths, {key: tuple(shape) for key, shape in tensors.items()})


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST


def _is_shape(value: Any) -> bool:
    is_sizes = isinstance(value, (list, tuple)) and 0 < len(value) <= 8 and all(map(_is_size, value))
    return is_sizes and math.prod(value) <= _MOST_VALUES


def _damaged(path: Path, what: str, value: object) -> FileFormatError:
    text = repr(value)
    return FileFormatError(
        f"{path} is damaged: its {what} is {text if len(text) <= 80 else text[:79] + '…'}; restore or remake the folder"
    )


def _require_file(path: Path) -> None:
    """FileFormatError unless ``path`` is a file, and not a link to one in some other place."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise FileFormatError(f"{path} is a link or a folder, not a file: restore or remake {path.parent}")
    if not path.exists():
        raise FileFormatError(f"{path.parent} holds no {path.name}: give a folder of 'autosparse shrink'")


def _check_weights(path: Path, model: nn.Module) -> None:
    """FileFormatError unless the file says it holds the tensors of ``model``; nothing is allocated."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise FileFormatError(f"{path} is damaged or no safetensors file ({error}): restore or remake it") from None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            here, there = (
                "missing" if shapes.get(name) is None else list(shapes[name]) for shapes in (expected, found)
            )
            raise FileFormatError(
                f"{path} does not fit {path.parent / _MANIFEST}: '{name}' is {there} in the file, {here} by the "
                "manifest; restore or remake the folder"
            )


def _check_types(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Real numbers may have another precision than in the dense network; other types must be what they are there."""
    for name, tensor in model.state_dict().items():
        found = tensors[name].dtype
        if found != tensor.dtype and not (found.is_floating_point and tensor.is_floating_point()):
            raise FileFormatError(f"{path}: '{name}' is {found}, not {tensor.dtype}; restore or remake the folder")


def _check_function(path: Path, small: nn.Module, dense: nn.Module, manifest: Manifest) -> None:
    """AutoSparseError unless ``dense`` with the changes of ``manifest`` computes what ``small`` does."""
    ours, rebuilt = copy.deepcopy(small).cpu(), copy.deepcopy(dense).cpu()
    try:
        resize_(rebuilt, manifest.changes)
    except ValueError as error:
        raise AutoSparseError(f"{path} cannot be written: {error}") from None
    fill_(rebuilt, ours.state_dict())
    expected = _outputs(ours, manifest.image_shape)
    try:
        found = _outputs(rebuilt, manifest.image_shape)
    except AutoSparseError:
        found = []
    if not largest_difference(found, expected) <= _TOLERANCE:
        raise AutoSparseError(
            f"{type(small).__name__} differs from the dense network in more than widths, weights and buffers, which is "
            "all that can be kept: save it as you build it"
        )


def _outputs(model: nn.Module, image_shape: Sequence[int]) -> list[Tensor]:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    noise = torch.randn(2, *image_shape, generator=generator(0, "store"), dtype=torch.float32).to(dtype)
    try:
        with torch.no_grad(), global_stream(0, "store"):
            return list(tensors_in(model.eval()(noise)))
    except Exception as error:  # whatever the user's module raises at images of a wrong shape
        reason = first_line(error)
        raise AutoSparseError(
            f"{type(model).__name__} cannot be evaluated on images of {list(image_shape)} ({reason}): give the shape "
            "that it was made for"
        ) from error
