"""Augmented training batches a second: this package's whole-batch pipeline against torchvision's image by image.

    python benchmarks/input_pipeline.py

Both take the same 10,000 RGB images of 32x32 pixels from memory and give shuffled, randomly cropped, mirrored and
normalised float batches of 128. torchvision's runs in a DataLoader whose two worker processes are kept from epoch to
epoch; this package's runs in the training process, with one torch thread and with two.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from common import Spread, interleave, options, parse, ratios, seconds, table
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autosparse._torchvision import ensure_torchvision
from autosparse.data import ImageData, load_data
from autosparse.data.arrays import Source, make_arrays
from autosparse.data.sources import SOURCES

BATCH = 128
WORKERS = 2
EPOCHS = 5  # epochs of the fast pipeline in one timing
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def synthetic(images: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8), np.arange(images) % 10


def own(images: np.ndarray, labels: np.ndarray) -> ImageData:
    """The images as a data set of this package; validation images are its own, so none is cut from training."""

    def source(data_dir: Path, image_size: int | None, download: bool) -> Source:
        sizes = {"train": len(images), "val": 10, "test": 10}
        names = tuple(map(str, range(10)))
        return Source(names, 32, True, sizes, lambda part: make_arrays(images[: sizes[part]], labels[: sizes[part]]))

    SOURCES.add("synthetic", source)
    return load_data("synthetic")


class PILImages(Dataset[tuple[Tensor, int]]):
    """As torchvision's CIFAR10: an array in memory, each item made a PIL image and transformed."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        ensure_torchvision()
        from torchvision import transforms

        self._images, self._labels = images, labels
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(_MEAN, _STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), int(self._labels[index])


def own_rate(data: ImageData, threads: int) -> Callable[[], float]:
    """A function that measures images a second with ``threads`` torch threads."""
    seeds = count()

    def epochs() -> None:
        for _ in range(EPOCHS):
            for _batch in data.train.batches(BATCH, shuffle_seed=next(seeds), augment=True):
                pass

    def rate() -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return EPOCHS * len(data.train) / seconds(epochs)
        finally:
            torch.set_num_threads(before)

    return rate


def torchvision_rate(images: np.ndarray, labels: np.ndarray) -> Callable[[], float]:
    loader = DataLoader(
        PILImages(images, labels), batch_size=BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )

    def epoch() -> None:
        for _batch in loader:
            pass

    return lambda: len(images) / seconds(epoch)


def main() -> None:
    parser = options(__doc__, repeats=7)
    parser.add_argument("--images", type=int, default=10_000)
    parsed = parse(parser)
    images, labels = synthetic(parsed.images)
    data = own(images, labels)
    theirs = f"torchvision, {WORKERS} worker processes"
    rates = interleave(
        {
            theirs: torchvision_rate(images, labels),
            "autosparse, 1 thread": own_rate(data, 1),
            "autosparse, 2 threads": own_rate(data, 2),
        },
        parsed.repeats,
    )
    print("## Input pipeline\n")
    print(f"{parsed.images:,} images of 32x32 pixels, batches of {BATCH}; {parsed.repeats} repeats in turn.\n")
    rows = [[name, Spread.of(values), ratios(values, rates[theirs])] for name, values in rates.items()]
    print(table(["pipeline", "images/s", "over torchvision"], rows))


if __name__ == "__main__":
    main()
