"""``imagefolder:PATH``: decoded once into a cache of memory-mapped arrays."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from autosparse.data.arrays import Arrays, Source, pixel_sums
from autosparse.data.containers import Container, open_container
from autosparse.data.decode import decode_all, shorter_side
from autosparse.data.layout import PARTS, Layout, plan
from autosparse.errors import AutoSparseError, FileFormatError
from autosparse.files import atomic_path, read_json, write_json

_SCHEMA = 1  # of the cache; part of its folder's name, so an older cache is simply not found
_LARGEST_DEFAULT = 224  # pixels; larger photographs are shrunk to what ImageNet models take


def open_imagefolder(path: Path, data_dir: Path, image_size: int | None) -> Source:
    """The image folder or archive at ``path``, decoded on first use into ``data_dir``/cache.

    Args:
        image_size: pixels a side; None takes the first image's shorter side, at most 224.

    Raises:
        AutoSparseError: nothing there, another layout, an unreadable image, a damaged archive, no space for the cache.
    """
    path = path.expanduser().resolve()
    container = open_container(path)
    size = image_size or _default_size(container)
    key = json.dumps([_SCHEMA, str(path), container.identity(), size])
    folder = data_dir / "cache" / hashlib.sha256(key.encode()).hexdigest()[:24]
    try:
        return _open_cache(folder)
    except FileFormatError:  # absent, or damaged: the images are at hand to make it anew
        _make_cache(folder, container, size)
        return _open_cache(folder)


def _default_size(container: Container) -> int:
    for name, content in container.read():
        if any(part in PARTS for part in Path(name).parts[:2]):
            return min(_LARGEST_DEFAULT, shorter_side(container.path / name, content))
    plan(container.path, *container.names())  # says what is missing
    raise AutoSparseError(f"{container.path} holds no images")


def _make_cache(folder: Path, container: Container, size: int) -> None:
    """Decode every image of ``container``; meta.json is written last, so without it the cache does not exist."""
    layout = plan(container.path, *container.names())
    with ExitStack() as stack:
        writers = {part: _Writer(stack, folder, part, len(files), size) for part, files in layout.parts.items()}
        places = {
            name: (writers[part], row) for part, files in layout.parts.items() for row, (name, _) in enumerate(files)
        }

        def put(name: str, image: np.ndarray) -> None:
            writer, row = places[name]
            writer.put(row, image)

        wanted = ((name, content) for name, content in container.read() if name in places)
        decode_all(container.path, wanted, len(places), size, put)
        for writer in writers.values():
            writer.finish()
    _write_labels(folder, layout)
    write_json(
        folder / "meta.json",
        {
            "source": str(container.path),
            "image_size": size,
            "class_names": list(layout.class_names),
            "sizes": {part: len(files) for part, files in layout.parts.items()},
        },
    )


class _Writer:
    """Writes one part's images row by row.

    Plain writes, not a writable memory map: on a full disk they fail with an error, where a map would kill the process.
    """

    def __init__(self, stack: ExitStack, folder: Path, part: str, count: int, size: int) -> None:
        temporary = stack.enter_context(atomic_path(folder / f"{part}.npy"))
        self._file: BinaryIO = stack.enter_context(temporary.open("wb"))
        shape = (count, size, size, 3)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        self._start = self._file.tell()
        self._sums = np.zeros((count, 2, 3), dtype=np.int64)
        self._missing = np.ones(count, dtype=bool)
        self._target = folder / f"{part}-sums.npy"

    def put(self, row: int, image: np.ndarray) -> None:
        self._file.seek(self._start + row * image.nbytes)
        self._file.write(image.tobytes())
        self._sums[row] = pixel_sums(image[None])[0]
        self._missing[row] = False

    def finish(self) -> None:
        if self._missing.any():
            raise AutoSparseError(f"{self._missing.sum()} images vanished while they were read: try again")
        self._file.flush()
        _write_array(self._target, self._sums)


def _write_labels(folder: Path, layout: Layout) -> None:
    for part, files in layout.parts.items():
        _write_array(folder / f"{part}-labels.npy", np.array([label for _, label in files], dtype=np.int64))


def _write_array(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def _open_cache(folder: Path) -> Source:
    """The cache in ``folder``; FileFormatError unless all its files agree with its meta.json."""
    meta = read_json(folder / "meta.json")
    try:
        size, names = int(meta["image_size"]), tuple(map(str, meta["class_names"]))
        sizes = {str(part): int(count) for part, count in meta["sizes"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{folder / 'meta.json'} lacks {error}: remove the folder") from None

    def read(part: str) -> Arrays:
        return _open_part(folder, part, sizes[part], size, len(names))

    for part in sizes:
        read(part)  # opens memory maps, reads no pixels
    return Source(names, size, True, sizes, read)


def _open_part(folder: Path, part: str, count: int, size: int, classes: int) -> Arrays:
    images = _load(folder / f"{part}.npy", (count, size, size, 3), np.uint8, mapped=True)
    labels = _load(folder / f"{part}-labels.npy", (count,), np.int64)
    sums = _load(folder / f"{part}-sums.npy", (count, 2, 3), np.int64)
    if count and (labels.min() < 0 or labels.max() >= classes):
        raise FileFormatError(f"{folder / part}-labels.npy has labels outside its {classes} classes: remove the folder")
    return Arrays(images, labels, sums)


def _load(path: Path, shape: tuple[int, ...], dtype: Any, mapped: bool = False) -> np.ndarray:
    try:
        # Mapped first in any case: a forged shape then fails against the file's size instead of filling the memory.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FileFormatError(f"{path} is damaged ({error}): remove its folder") from None
    if array.shape != shape or array.dtype != dtype:
        raise FileFormatError(f"{path} holds {array.dtype} {array.shape}, not {shape}: remove its folder")
    return array if mapped else np.array(array)
