"""Which file is which: from names like train/CLASS/FILE to parts, classes and labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from autosparse.errors import AutoSparseError

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Layout:
    """Images of an image folder.

    Attributes:
        parts: for "train", "test" and possibly "val": (file name, label) sorted by class and name, so that a folder
            and an archive of it give the same order.
    """

    class_names: tuple[str, ...]
    parts: dict[str, list[tuple[str, int]]]


def plan(path: Path, images: Iterable[str], folders: Iterable[str]) -> Layout:
    """Sort the names below ``path`` into parts and classes.

    The tree train/CLASS/..., test/CLASS/... or val/CLASS/... may lie below one more folder. With both test/ and val/,
    val/ is the validation part; a lone val/ is the test part, as in ImageNet.

    Raises:
        AutoSparseError: no train/, no test/ or val/, no classes, a class without images, a class unknown to train/.
    """
    found: dict[str, dict[str, list[str]]] = {}
    image_parts, folder_parts = _visible(images), _visible(folders)
    depth = _depth(path, image_parts + folder_parts)
    for parts in folder_parts:
        inner = parts[depth:]
        if inner and inner[0] in PARTS:
            classes = found.setdefault(inner[0], {})
            if len(inner) == 2:
                classes.setdefault(inner[1], [])
    for parts in image_parts:
        inner = parts[depth:]
        if inner and inner[0] in PARTS:
            classes = found.setdefault(inner[0], {})
            if len(inner) > 2:
                classes.setdefault(inner[1], []).append("/".join(parts))
    return _checked(path, found)


def _visible(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Names as tuples, without hidden ones: editors and file managers leave .folders that are no classes."""
    split = (PurePosixPath(name).parts for name in names)
    return [parts for parts in split if not any(part.startswith(".") for part in parts)]


def _depth(path: Path, names: list[tuple[str, ...]]) -> int:
    """0 if train/ lies at the top, 1 if it lies in the single top-level folder."""
    if any(parts[:1] == ("train",) for parts in names):
        return 0
    if len({parts[0] for parts in names if parts}) == 1 and any(parts[1:2] == ("train",) for parts in names):
        return 1
    raise AutoSparseError(f"{path} has no train folder: expected train/CLASS/*.jpg and test/CLASS/*.jpg in it")


def _checked(path: Path, found: dict[str, dict[str, list[str]]]) -> Layout:
    train = found["train"]
    if not train:
        raise AutoSparseError(f"{path} has no class folders in train/: expected train/CLASS/*.jpg")
    empty = sorted(name for name, files in train.items() if not files)
    if empty:
        raise AutoSparseError(f"{path}: train/{empty[0]} holds no images: fill or remove the folder")
    if "test" not in found and "val" not in found:
        raise AutoSparseError(f"{path} has neither a test nor a val folder: expected test/CLASS/*.jpg beside train/")
    if "test" not in found:
        found["test"] = found.pop("val")
    labels = {name: label for label, name in enumerate(sorted(train))}
    parts = {}
    for part, classes in found.items():
        foreign = sorted(classes.keys() - labels.keys())
        if foreign:
            raise AutoSparseError(f"{path}: class '{foreign[0]}' of {part}/ is not in train/: the classes must agree")
        parts[part] = [(file, labels[name]) for name in sorted(classes) for file in sorted(classes[name])]
        if not parts[part]:
            raise AutoSparseError(f"{path} has no images in {part}/: expected {part}/CLASS/*.jpg")
    return Layout(tuple(labels), parts)
