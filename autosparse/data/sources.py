"""The data sets that have a name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from autosparse._torchvision import ensure_torchvision
from autosparse.data.arrays import Arrays, Source, make_arrays, resize, stratified_cut
from autosparse.data.download import absent, fetch
from autosparse.data.idx import read_idx
from autosparse.errors import AutoSparseError, FileFormatError
from autosparse.registry import Registry

#: (data_dir, image_size or None, download) -> Source
SOURCES: Registry[Callable[[Path, int | None, bool], Source]] = Registry(
    "data set", hint="your own images: imagefolder:PATH"
)

_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # the Debian package dataset-fashion-mnist


@SOURCES.register("digits")
def digits(data_dir: Path, image_size: int | None, download: bool) -> Source:
    """1,797 handwritten digits of 8x8 grey pixels, part of scikit-learn; a fixed fifth of them is the test part.

    Resized to ``image_size`` (32 unless told). Never mirrored: that makes other characters of them.
    """
    from sklearn.datasets import load_digits  # here, since scikit-learn takes a second to import

    bunch = load_digits()
    size = image_size or 32
    images = resize((bunch.images * (255 / 16)).round().astype(np.uint8), size)  # sixteen grey levels
    train, test = stratified_cut(bunch.target, 0.2, seed=0)
    rows = {"train": train, "test": test}

    def read(part: str) -> Arrays:
        return make_arrays(images[rows[part]], bunch.target[rows[part]])

    return Source(tuple(map(str, range(10))), size, False, {part: len(r) for part, r in rows.items()}, read)


@SOURCES.register("fashion-mnist")
def fashion_mnist(data_dir: Path, image_size: int | None, download: bool) -> Source:
    """60,000 / 10,000 grey images of clothes, 28x28.

    Framed with black to 32x32, the default, so that no pixel is interpolated; resized to any other ``image_size``.
    Taken from ``data_dir`` or the Debian package if its four IDX .gz files are there, else downloaded.
    """
    ensure_torchvision()
    from torchvision.datasets import FashionMNIST

    own = data_dir / "FashionMNIST" / "raw"  # where torchvision keeps them
    names = [name for name, _ in FashionMNIST.resources]
    places = [data_dir, own, _DEBIAN_FASHION]
    folder = next((place for place in places if all((place / name).is_file() for name in names)), None)
    if folder is None:
        if not download:
            raise absent("fashion-mnist", data_dir)
        fetch("fashion-mnist", own, partial(_download_idx, FashionMNIST.mirrors, FashionMNIST.resources))
        folder = own
    size = image_size or 32
    stems = {"train": "train", "test": "t10k"}
    labels = {part: read_idx(folder / f"{stem}-labels-idx1-ubyte.gz", 1) for part, stem in stems.items()}

    def read(part: str) -> Arrays:
        path = folder / f"{stems[part]}-images-idx3-ubyte.gz"
        images = read_idx(path, 3)
        if len(images) != len(labels[part]) or images.shape[1] != images.shape[2] or labels[part].max(initial=0) > 9:
            raise FileFormatError(f"{path} is not Fashion-MNIST or does not fit its labels: fetch both again")
        if images.shape[1] == 28 and size == 32:
            return make_arrays(np.pad(images, ((0, 0), (2, 2), (2, 2))), labels[part])
        return make_arrays(resize(images, size), labels[part])

    sizes = {part: len(values) for part, values in labels.items()}
    return Source(tuple(FashionMNIST.classes), size, True, sizes, read)


def _download_idx(mirrors: list[str], resources: list[tuple[str, str]], scratch: Path) -> Path:
    from torchvision.datasets.utils import download_url

    for name, md5 in resources:
        download_url(mirrors[0] + name, str(scratch / "raw"), filename=name, md5=md5)
    return scratch / "raw"


def _cifar(name: str, data_dir: Path, image_size: int | None, download: bool) -> Source:
    """50,000 / 10,000 colour photographs, 32x32, through torchvision; resized if ``image_size`` says so.

    torchvision unpickles the archive's files. It does so only after their MD5 sums equal those of the published
    archive, so no foreign pickle is loaded.
    """
    ensure_torchvision()
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]

    def download_to(scratch: Path) -> Path:
        kind(str(scratch), train=True, download=True)
        return scratch / kind.base_folder

    try:
        train = kind(str(data_dir), train=True)
    except RuntimeError:  # absent, or its MD5 sums are wrong
        if not download:
            raise absent(name, data_dir) from None
        fetch(name, data_dir / kind.base_folder, download_to)
        train = kind(str(data_dir), train=True)
    size = image_size or 32

    def read(part: str) -> Arrays:
        try:
            raw = train if part == "train" else kind(str(data_dir), train=False)
        except RuntimeError as error:
            raise AutoSparseError(f"{name} in {data_dir} is damaged ({error}): remove it and try again") from error
        return make_arrays(resize(np.ascontiguousarray(raw.data), size), np.asarray(raw.targets))

    return Source(tuple(train.classes), size, True, {"train": len(train), "test": 10_000}, read)


@SOURCES.register("cifar10")
def cifar10(data_dir: Path, image_size: int | None, download: bool) -> Source:
    return _cifar("cifar10", data_dir, image_size, download)


@SOURCES.register("cifar100")
def cifar100(data_dir: Path, image_size: int | None, download: bool) -> Source:
    return _cifar("cifar100", data_dir, image_size, download)
