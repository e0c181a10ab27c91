"""One call from a data set's name to its splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from autosparse.data.arrays import Arrays, mean_and_std, stratified_cut
from autosparse.data.augment import Normaliser
from autosparse.data.imagefolder import open_imagefolder
from autosparse.data.sources import SOURCES
from autosparse.data.split import Split, Store
from autosparse.data.stores import MemoryStore, StreamStore
from autosparse.errors import AutoSparseError

_FOLDER = "imagefolder:"


@dataclass(frozen=True)
class ImageData:
    """An image set in three splits, all normalised with the mean and deviation of ``train``.

    Attributes:
        train: the training images without ``val``.
        val: for every choice made on the way (epoch, threshold, method).
    """

    name: str
    num_classes: int
    channels: int
    image_size: int
    class_names: tuple[str, ...]
    train: Split
    val: Split
    _open_test: Callable[[], Split] = field(repr=False)
    _provenance: dict[str, object] = field(repr=False)

    @cached_property
    def test(self) -> Split:
        """For the last number only; its images are loaded on first access."""
        return self._open_test()

    def with_less(self, images: int, seed: int) -> ImageData:
        """The same with at most ``images`` of the training images, drawn by ``seed``."""
        return replace(self, train=self.train.part(images, seed))

    def describe(self) -> dict[str, object]:
        """JSON-able provenance: name, counts, image size, validation cut, mean and deviation on the scale [0, 1].

        An image folder goes by its last path component: the same images in another place are the same data.
        """
        return dict(self._provenance)


def list_datasets() -> list[str]:
    """Names that :func:`load_data` takes; PATH stands for a folder or archive of the user's own images."""
    return sorted([*SOURCES.names(), f"{_FOLDER}PATH"])


def load_data(
    name: str = "digits",
    *,
    data_dir: Path | str = "data",
    image_size: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    device: torch.device | str = "cpu",
    memory_limit: int = 4 * 2**30,
    workers: int = 2,
    download: bool = True,
) -> ImageData:
    """The image set called ``name``, with a validation split cut from its training images.

    Args:
        name: one of :func:`list_datasets`.
        data_dir: where downloads and decoded images are kept.
        image_size: pixels a side; None is the set's own choice (32, or that of the first image of a folder).
        val_fraction: share of every class that goes to validation; unused if an image folder has val/ beside test/.
        seed: chooses the validation images.
        device: where batches are made.
        memory_limit: bytes; a part with larger images is read from disk batch by batch instead of being held on
            ``device``. The batches are the same.
        workers: processes that read batches ahead then; 0 reads in this process.
        download: fetch a missing set from the network.

    Raises:
        UnknownNameError: no such data set.
        AutoSparseError: an argument out of range, a set that cannot be had or read.
    """
    _check(image_size, val_fraction, workers)
    device = torch.device(device)
    if name.startswith(_FOLDER):
        source = open_imagefolder(Path(name.removeprefix(_FOLDER)), Path(data_dir), image_size)
    else:
        source = SOURCES.get(name)(Path(data_dir), image_size, download)
    arrays = source.read("train")
    cut = "val" not in source.sizes
    if cut:
        train_rows, val_rows = stratified_cut(arrays.labels, val_fraction, seed)
    else:
        train_rows = np.arange(len(arrays.labels))
    mean, std = mean_and_std(arrays.sums[train_rows], source.image_size**2)
    normaliser = Normaliser(mean, std, source.image_size, device)

    def store_of(part: Arrays) -> Store:
        fits = part.images.nbytes <= memory_limit
        return MemoryStore(part.images, device) if fits else StreamStore(part.images, device, workers)

    def split_of(part: Arrays, store: Store, rows: np.ndarray) -> Split:
        labels = torch.from_numpy(part.labels).to(device)
        return Split(store, labels, torch.from_numpy(rows), normaliser, source.flips)

    def whole(part: str) -> Split:
        read = source.read(part)
        return split_of(read, store_of(read), np.arange(len(read.labels)))

    store = store_of(arrays)  # shared by both splits when validation is cut from the training images
    train = split_of(arrays, store, train_rows)
    val = split_of(arrays, store, val_rows) if cut else whole("val")
    provenance: dict[str, object] = {
        "name": _FOLDER + Path(name.removeprefix(_FOLDER)).name if name.startswith(_FOLDER) else name,
        "counts": {"train": len(train), "val": len(val), "test": source.sizes["test"]},
        "num_classes": len(source.class_names),
        "image_size": source.image_size,
        "val_fraction": val_fraction if cut else None,
        "seed": seed,
        "mean": list(mean),
        "std": list(std),
    }
    return ImageData(
        name=name,
        num_classes=len(source.class_names),
        channels=3,
        image_size=source.image_size,
        class_names=source.class_names,
        train=train,
        val=val,
        _open_test=lambda: whole("test"),
        _provenance=provenance,
    )


def _check(image_size: int | None, val_fraction: float, workers: int) -> None:
    if image_size is not None and image_size < 4:
        raise AutoSparseError(f"image size {image_size} is too small: give 4 or more pixels")
    if not 0 < val_fraction < 1:
        raise AutoSparseError(f"validation fraction {val_fraction} is not between 0 and 1: give for example 0.1")
    if workers < 0:
        raise AutoSparseError(f"{workers} workers is negative: give 0 or more")
