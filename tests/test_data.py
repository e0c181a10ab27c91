"""What the data sets promise: same arguments, same batches; statistics of train only; errors in one line."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from autosparse._torchvision import ensure_torchvision
from autosparse.data import ImageData, Split, imagefolder, list_datasets, load_data, sources
from autosparse.data.arrays import mean_and_std, pixel_sums, resize, stratified_cut
from autosparse.data.augment import Draws, Normaliser, crop_and_mirror
from autosparse.data.download import fetch
from autosparse.data.idx import read_idx
from autosparse.data.stores import StreamStore
from autosparse.errors import AutoSparseError, FileFormatError, UnknownNameError

CLASSES = ("ant", "bee")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits", image_size=8)


def everything(split: Split, **arguments: Any) -> tuple[Tensor, Tensor]:
    """All batches of a split, joined."""
    pairs = list(split.batches(**{"batch_size": 100, **arguments}))
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def save_image(path: Path, seed: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, ten training and three test images each, 12x12."""
    root = tmp_path / "images"
    for part, count in (("train", 10), ("test", 3)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                save_image(root / part / name / f"{number:02}.png", 1000 * label + 10 * count + number)
    return root


def pack(folder: Path, archive: Path, arcname: str = "") -> Path:
    with tarfile.open(archive, "w:gz" if archive.suffix in (".gz", ".tgz") else "w") as tar:
        for child in sorted(folder.iterdir(), reverse=True):  # not the sorted order of a folder's walk
            tar.add(child, f"{arcname}{child.name}")
    return archive


def open_folder(path: Path, data_dir: Path, **arguments: Any) -> ImageData:
    return load_data(f"imagefolder:{path}", data_dir=data_dir, val_fraction=0.2, **arguments)


# Batches


def test_batches_are_normalised_by_the_training_split(digits: ImageData) -> None:
    x, y = everything(digits.train)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert x.shape == (len(digits.train), 3, 8, 8)
    torch.testing.assert_close(x.double().mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.double().std((0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-5, rtol=0)
    assert abs(everything(digits.test)[0].mean().item()) > 1e-4  # would be zero had it its own statistics


def test_batches_are_channels_last(digits: ImageData) -> None:
    for augment in (False, True):
        x, _ = next(digits.train.batches(4, augment=augment))
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_statistics_of_hand_computed_pixels() -> None:
    images = np.zeros((2, 1, 2, 3), dtype=np.uint8)
    images[..., 0] = [[[0, 255]], [[255, 0]]]  # mean 1/2, deviation 1/2
    images[..., 1] = 51  # constant: mean 1/5, deviation raised to one grey level
    mean, std = mean_and_std(pixel_sums(images), pixels=2)
    assert mean == pytest.approx((0.5, 0.2, 0.0))
    assert std == pytest.approx((0.5, 1 / 255, 1 / 255))
    x = Normaliser(mean, std, 1, torch.device("cpu"))(torch.tensor([[[[255, 51, 1]]]], dtype=torch.uint8))
    torch.testing.assert_close(x.flatten(), torch.tensor([1.0, 0.0, 1.0]))


def test_validation_is_a_stratified_cut_of_the_training_images() -> None:
    labels = np.array([0] * 20 + [1] * 10 + [2] * 2 + [3])
    kept, cut = stratified_cut(labels, 0.1, seed=0)
    assert sorted([*kept, *cut]) == list(range(33))
    assert np.bincount(labels[cut], minlength=4).tolist() == [2, 1, 1, 0]  # at least one, but never a whole class
    assert np.array_equal(cut, stratified_cut(labels, 0.1, seed=0)[1])
    assert not np.array_equal(cut, stratified_cut(labels, 0.1, seed=1)[1])


def test_splits_share_no_image_and_cover_all(digits: ImageData) -> None:
    assert len(digits.train) + len(digits.val) + len(digits.test) == 1797
    every = torch.cat([everything(split)[0] for split in (digits.train, digits.val, digits.test)])
    assert len(every.flatten(1).unique(dim=0)) == 1797  # no two digits are equal
    counts = torch.bincount(everything(digits.val)[1])
    assert counts.min() >= 13
    assert counts.max() <= 15


def test_seeds_reproduce_and_differ(digits: ImageData) -> None:
    assert same(everything(digits.val), everything(load_data("digits", image_size=8).val))
    assert not same(everything(digits.val), everything(load_data("digits", image_size=8, seed=1).val))
    again = load_data("digits", image_size=8, seed=1)
    assert torch.equal(everything(digits.test)[1], everything(again.test)[1])  # the test images stay the same


def test_same_arguments_give_bit_equal_batches_and_leave_global_randomness_alone(digits: ImageData) -> None:
    state = torch.get_rng_state()
    first = everything(digits.train, shuffle_seed=3, augment=True)
    everything(digits.train, shuffle_seed=4, augment=True)
    assert same(first, everything(digits.train, shuffle_seed=3, augment=True))
    assert not same(first, everything(digits.train, shuffle_seed=4, augment=True))
    assert torch.equal(state, torch.get_rng_state())


def test_shuffling_permutes(digits: ImageData) -> None:
    plain, shuffled = everything(digits.train)[1], everything(digits.train, shuffle_seed=0)[1]
    assert not torch.equal(plain, shuffled)
    assert torch.equal(plain.sort().values, shuffled.sort().values)
    assert torch.equal(plain, everything(digits.train)[1])


def test_limit_and_drop_last(digits: ImageData) -> None:
    whole = everything(digits.train, shuffle_seed=0)
    assert same(everything(digits.train, shuffle_seed=0, limit=250), (whole[0][:250], whole[1][:250]))
    sizes = [len(y) for _, y in digits.train.batches(100, limit=250)]
    assert sizes == [100, 100, 50]
    assert [len(y) for _, y in digits.train.batches(100, limit=250, drop_last=True)] == [100, 100]
    assert list(digits.train.batches(100, limit=0)) == []
    assert list(digits.train.batches(100, limit=99, drop_last=True)) == []


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_together_are_the_whole_batch(digits: ImageData, world: int) -> None:
    arguments: dict[str, Any] = {"shuffle_seed": 5, "augment": True, "limit": 21}
    whole = list(digits.train.batches(10, **arguments))
    shards = [list(digits.train.batches(10, shard=(rank, world), **arguments)) for rank in range(world)]
    assert {len(shard) for shard in shards} == {3}  # the last batch has one image, some ranks none of it
    for number, pair in enumerate(whole):
        parts = [shard[number] for shard in shards]
        assert same(pair, (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])))


@pytest.mark.parametrize(
    "arguments",
    [{"batch_size": 0}, {"batch_size": 4, "limit": -1}, {"batch_size": 4, "shard": (2, 2)}],
)
def test_batch_arguments_are_checked_at_the_call(digits: ImageData, arguments: dict[str, Any]) -> None:
    with pytest.raises(AutoSparseError, match=r"batch size|limit|shard"):
        digits.train.batches(**arguments)


# Augmentation


def draws(top: int, left: int, mirror: bool, count: int = 1) -> Draws:
    return Draws(torch.full((count,), top), torch.full((count,), left), torch.full((count,), mirror))


def crop(image: list[list[int]], top: int, left: int, mirror: bool) -> list[list[int]]:
    """Padding 1 with colour 9 around a one-channel image."""
    batch = torch.tensor(image, dtype=torch.uint8)[None, :, :, None]
    out = crop_and_mirror(batch, draws(top, left, mirror), 1, torch.tensor([9], dtype=torch.uint8))
    result: list[list[int]] = out[0, :, :, 0].tolist()
    return result


def test_crop_and_mirror_of_four_pixels() -> None:
    image = [[1, 2], [3, 4]]
    assert crop(image, 1, 1, False) == image  # the corner at the padding is the unshifted image
    assert crop(image, 1, 1, True) == [[2, 1], [4, 3]]
    assert crop(image, 0, 0, False) == [[9, 9], [9, 1]]
    assert crop(image, 2, 1, False) == [[3, 4], [9, 9]]
    assert crop(image, 1, 2, False) == [[2, 9], [4, 9]]
    assert crop(image, 1, 2, True) == [[9, 2], [9, 4]]


def test_crop_agrees_with_a_loop_over_images() -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 6, 5, 3), dtype=torch.uint8, generator=rng)
    fill = torch.tensor([1, 2, 3], dtype=torch.uint8)
    drawn = Draws.sample(40, 2, True, rng)
    assert drawn.mirror.any()
    assert not drawn.mirror.all()
    assert set(drawn.top.tolist()) == set(range(5))
    out = crop_and_mirror(images, drawn, 2, fill)
    for number, image in enumerate(images):
        padded = fill.repeat(10, 9, 1)
        padded[2:8, 2:7] = image
        top, left = int(drawn.top[number]), int(drawn.left[number])
        window = padded[top : top + 6, left : left + 5]
        assert torch.equal(out[number], window.flip(1) if drawn.mirror[number] else window)


def test_padding_is_zero_after_normalisation() -> None:
    normaliser = Normaliser((0.31, 0.52, 0.73), (0.25, 0.25, 0.25), 4, torch.device("cpu"))
    out = crop_and_mirror(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), draws(0, 0, False), 4, normaliser.fill)
    assert normaliser(out).abs().max() <= 0.5 / 255 / 0.25  # half a grey level


def test_digits_are_never_mirrored(digits: ImageData) -> None:
    assert not Draws.sample(1000, 1, False, torch.Generator()).mirror.any()
    plain, _ = next(digits.train.batches(1, limit=1))
    padded = torch.nn.functional.pad(plain, (1, 1, 1, 1), value=float("nan"))
    shifts = [padded[:, :, top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    for seed in range(12):
        place = (everything(digits.train, shuffle_seed=seed)[0] == plain).flatten(1).all(1)
        x = everything(digits.train, shuffle_seed=seed, augment=True)[0][place]
        assert any(torch.equal(x[~shift.isnan()], shift[~shift.isnan()]) for shift in shifts)


# Sets


def test_listing_and_unknown_names() -> None:
    assert list_datasets() == ["cifar10", "cifar100", "digits", "fashion-mnist", "imagefolder:PATH"]
    with pytest.raises(UnknownNameError, match="did you mean cifar10"):
        load_data("cifra10")


def test_digits_default_to_three_equal_channels_of_32_pixels() -> None:
    data = load_data()
    assert (data.name, data.num_classes, data.channels, data.image_size) == ("digits", 10, 3, 32)
    assert data.class_names == tuple("0123456789")
    x, _ = next(data.val.batches(5))
    assert x.shape == (5, 3, 32, 32)
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x[:, 0], x[:, 2])


def test_description_is_json_and_counts_without_loading_test(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data("digits", image_size=8)
    described = json.loads(json.dumps(data.describe()))
    assert described["counts"] == {"train": len(data.train), "val": len(data.val), "test": 359}
    assert described["name"] == "digits"
    assert described["image_size"] == 8
    assert described["val_fraction"] == 0.1
    assert described["seed"] == 0
    assert len(described["mean"]) == len(described["std"]) == 3
    assert "test" not in vars(data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 3}, "image size 3"),
        ({"val_fraction": 0.0}, "validation fraction 0.0"),
        ({"val_fraction": 1.0}, "validation fraction 1.0"),
        ({"val_fraction": float("nan")}, "validation fraction nan"),
        ({"workers": -1}, "-1 workers"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoSparseError, match=message):
        load_data("digits", **arguments)


def test_resize_keeps_constants_and_interpolates() -> None:
    images = np.array([[[0, 100], [0, 100]]], dtype=np.uint8)
    assert resize(images, 4)[0, 0].tolist() == [0, 25, 75, 100]  # pixel centres at 1/4 and 3/4
    assert resize(images, 2) is images
    assert resize(np.full((1, 8, 8, 3), 7, dtype=np.uint8), 4).tolist() == np.full((1, 4, 4, 3), 7).tolist()


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def write_fashion(folder: Path) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    for stem in ("train", "t10k"):
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", np.arange(40, dtype=np.uint8) % 10)
    return images


def test_fashion_mnist_from_idx_files_is_framed_to_32(tmp_path: Path) -> None:
    images = write_fashion(tmp_path)
    data = load_data("fashion-mnist", data_dir=tmp_path, download=False)
    assert (data.image_size, data.num_classes, len(data.train), len(data.val)) == (32, 10, 30, 10)
    x, y = everything(data.test)
    mean, std = data.describe()["mean"], data.describe()["std"]
    assert isinstance(mean, list)
    assert isinstance(std, list)
    pixels = (x[:, 1] * std[1] + mean[1]) * 255
    torch.testing.assert_close(pixels[:, 2:-2, 2:-2], torch.from_numpy(images).float(), atol=1e-3, rtol=0)
    assert pixels[:, :2].abs().max() < 1e-3
    assert y.tolist() == [number % 10 for number in range(40)]
    assert load_data("fashion-mnist", data_dir=tmp_path, image_size=16, download=False).image_size == 16


@pytest.mark.skipif(not sources._DEBIAN_FASHION.is_dir(), reason="the package dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_the_debian_package_is_found(tmp_path: Path) -> None:
    data = load_data("fashion-mnist", data_dir=tmp_path, download=False)
    assert (len(data.train) + len(data.val), len(data.test)) == (60_000, 10_000)
    assert not any(tmp_path.iterdir())


def test_fashion_mnist_whose_labels_do_not_fit(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(39, dtype=np.uint8))
    with pytest.raises(FileFormatError, match="does not fit its labels"):
        load_data("fashion-mnist", data_dir=tmp_path, download=False)


IDX = struct.pack(">BBBBI", 0, 0, 8, 1, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(IDX + b"ab"), "does not hold the 3 elements"),
        (gzip.compress(IDX + b"abcd"), "does not hold the 3 elements"),
        (gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 2**31)), "more than is plausible"),
        (gzip.compress(struct.pack(">BBBBI", 0, 0, 13, 1, 3)), "no IDX file"),
        (gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 3)[:6]), "damaged"),
        (gzip.compress(IDX + b"abc")[:-9], "damaged"),
        (b"no gzip", "damaged"),
    ],
    # gzip stores the time of day: ids made of the bytes would differ between pytest's processes
    ids=["two of three", "four of three", "too many", "wrong type", "short header", "cut", "no gzip"],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        read_idx(path, 1)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist"])
def test_no_network_is_one_line_with_ways_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(sources, "_DEBIAN_FASHION", tmp_path / "absent")
    with pytest.raises(AutoSparseError, match=rf"{name} could not be downloaded.*no route.*digits.*imagefolder:PATH"):
        load_data(name, data_dir=tmp_path / "data")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file() or "download" in path.name]
    with pytest.raises(AutoSparseError, match="downloading is off"):
        load_data(name, data_dir=tmp_path / "data", download=False)


class FakeCifar:
    """Stands for torchvision's reader: constant images, one grey level per class, once its folder is there."""

    base_folder = "batches"
    classes = ("a", "b")

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        folder = Path(root) / self.base_folder
        if download:
            folder.mkdir(parents=True)
        if not folder.is_dir():
            raise RuntimeError("Dataset not found or corrupted.")
        self.targets = [0, 1] * 10
        self.data = np.repeat(np.array(self.targets, dtype=np.uint8), 32 * 32 * 3).reshape(-1, 32, 32, 3)

    def __len__(self) -> int:
        return len(self.targets)


def test_cifar_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_torchvision()
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCifar)
    first = load_data("cifar10", data_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["batches"]
    again = load_data("cifar10", data_dir=tmp_path, download=False)
    assert same(everything(first.train), everything(again.train))
    x, y = everything(again.test)
    assert torch.equal(x[:, 0, 0, 0] > 0, y == 1)
    assert load_data("cifar10", data_dir=tmp_path, image_size=16).image_size == 16


def test_a_failed_download_leaves_what_was_there_and_a_good_one_replaces_it(tmp_path: Path) -> None:
    target = tmp_path / "set"
    target.mkdir()
    (target / "old").touch()

    def download(scratch: Path) -> Path:
        (scratch / "new").mkdir()
        (scratch / "new" / "file").touch()
        return scratch / "new"

    def fail(scratch: Path) -> Path:
        download(scratch)
        raise RuntimeError("File not found or corrupted.")

    with pytest.raises(AutoSparseError, match="corrupted"):
        fetch("x", target, fail)
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "old"]
    fetch("x", target, download)
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "file"]


# Image folders


def test_folder_and_archives_give_the_same_images(folder: Path, tmp_path: Path) -> None:
    plain = open_folder(folder, tmp_path / "data")
    assert (plain.image_size, plain.class_names, len(plain.train), len(plain.val)) == (12, CLASSES, 16, 4)
    (folder / "train" / "ant" / ".hidden.png").write_bytes(b"")
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "notes.txt").touch()
    for archive, inside in (("a.tar.gz", ""), ("b.tar", "./"), ("c.tgz", "top/")):
        packed = open_folder(pack(folder, tmp_path / archive, inside), tmp_path / "data")
        for first, second in ((plain.train, packed.train), (plain.val, packed.val), (plain.test, packed.test)):
            assert same(everything(first), everything(second))


def test_pixels_arrive_in_place(folder: Path, tmp_path: Path) -> None:
    data = open_folder(folder, tmp_path / "data")
    x, y = everything(data.test)
    mean, std = (torch.tensor(data.describe()[key])[None, :, None, None] for key in ("mean", "std"))
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    with Image.open(folder / "test" / "bee" / "01.png") as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    torch.testing.assert_close(((x * std + mean) * 255)[4], expected, atol=1e-3, rtol=0)


def test_second_use_decodes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(folder, tmp_path / "a.tar.gz")
    first = everything(open_folder(archive, tmp_path / "data").train)

    def refuse(*args: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(imagefolder, "decode_all", refuse)
    assert same(first, everything(open_folder(archive, tmp_path / "data").train))
    with pytest.raises(AssertionError, match="again"):
        open_folder(archive, tmp_path / "data", image_size=8)


def test_changed_images_are_decoded_again(folder: Path, tmp_path: Path) -> None:
    first = everything(open_folder(folder, tmp_path / "data").train)
    save_image(folder / "train" / "ant" / "00.png", 77)
    os.utime(folder / "train" / "ant" / "00.png", (1, 1))  # whatever the clock's resolution
    assert not same(first, everything(open_folder(folder, tmp_path / "data").train))


@pytest.mark.parametrize("victim", ["train.npy", "train-labels.npy", "train-sums.npy", "meta.json"])
def test_a_damaged_cache_is_made_anew(folder: Path, tmp_path: Path, victim: str) -> None:
    first = everything(open_folder(folder, tmp_path / "data").train)
    (path,) = (tmp_path / "data").rglob(victim)
    path.write_bytes(path.read_bytes()[:-9])
    assert same(first, everything(open_folder(folder, tmp_path / "data").train))


def test_other_sizes_are_resized_and_cropped(folder: Path, tmp_path: Path) -> None:
    save_image(folder / "train" / "ant" / "zz.jpg", 1, (40, 20))
    save_image(folder / "train" / "bee" / "zz.bmp", 2, (7, 30), mode="L")
    data = open_folder(folder, tmp_path / "data", image_size=16)
    assert next(data.train.batches(18))[0].shape == (18, 3, 16, 16)
    save_image(folder / "test" / "ant" / "00.png", 3, (400, 300))  # the first that a walk meets
    assert open_folder(folder, tmp_path / "data").image_size == 224


def test_the_same_images_are_described_alike_wherever_they_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = open_folder(folder, tmp_path / "data").describe()
    monkeypatch.chdir(folder.parent)
    assert open_folder(Path(folder.name), tmp_path / "data").describe() == there
    assert there["name"] == f"imagefolder:{folder.name}"


def test_val_is_the_test_part_alone_and_the_validation_part_beside_test(folder: Path, tmp_path: Path) -> None:
    cut = open_folder(folder, tmp_path / "data")
    (folder / "test").rename(folder / "val")
    alone = open_folder(folder, tmp_path / "data")
    assert same(everything(cut.test), everything(alone.test))
    save_image(folder / "test" / "bee" / "x.png", 5)
    both = open_folder(folder, tmp_path / "data")
    assert (len(both.train), len(both.val), len(both.test)) == (20, 6, 1)
    assert both.describe()["val_fraction"] is None
    assert everything(both.val)[1].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_is_bit_equal_to_memory(folder: Path, tmp_path: Path, workers: int) -> None:
    held = open_folder(folder, tmp_path / "data")
    streamed = open_folder(folder, tmp_path / "data", memory_limit=0, workers=workers)
    state = torch.get_rng_state()
    for arguments in ({}, {"shuffle_seed": 1, "augment": True, "shard": (1, 2)}, {"limit": 0}):
        pairs = list(held.train.batches(6, **arguments))
        others = list(streamed.train.batches(6, **arguments))
        assert len(pairs) == len(others)
        assert all(same(first, second) for first, second in zip(pairs, others, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert same(everything(held.test), everything(streamed.test))


def test_a_reader_sent_to_a_worker_carries_the_file_name_only(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(30000, dtype=np.uint8).reshape(100, 10, 10, 3))
    images = np.load(tmp_path / "x.npy", mmap_mode="r")
    sent = pickle.dumps(StreamStore(images, torch.device("cpu"), 0)._reader)
    assert len(sent) < 1000
    rows = torch.tensor([7, 3])
    assert torch.equal(pickle.loads(sent)[rows], torch.from_numpy(images[rows.numpy()]))


def test_test_images_are_loaded_on_first_access_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    original = imagefolder._open_part

    def watched(*args: Any) -> Any:
        arrays = original(*args)
        if args[1] == "test":
            held.append(len(arrays.images))
        return arrays

    data = open_folder(folder, tmp_path / "data")
    monkeypatch.setattr(imagefolder, "_open_part", watched)
    everything(data.train)
    everything(data.val)
    data.describe()
    assert held == []
    assert data.test is data.test
    assert held == [6]


# Image folders that cannot be used


def remove(path: Path) -> None:
    for child in sorted(path.rglob("*"), reverse=True):
        child.rmdir() if child.is_dir() else child.unlink()
    path.rmdir()


def empty_class(root: Path) -> None:
    (root / "train" / "cow").mkdir()


def no_classes(root: Path) -> None:
    remove(root / "train")
    (root / "train").mkdir()


def foreign_class(root: Path) -> None:
    save_image(root / "test" / "cow" / "0.png", 0)


def no_test_images(root: Path) -> None:
    remove(root / "test" / "ant")
    remove(root / "test" / "bee")


def unreadable(root: Path) -> None:
    (root / "train" / "bee" / "03.png").write_bytes(b"not an image")


def truncated(root: Path) -> None:
    path = root / "train" / "bee" / "03.png"
    path.write_bytes(path.read_bytes()[:-200])


def sixteen_bits(root: Path) -> None:
    Image.fromarray(np.full((12, 12), 40000, dtype=np.uint16)).save(root / "train" / "bee" / "03.png")


def too_large(root: Path) -> None:
    with (root / "train" / "bee" / "03.png").open("wb") as file:
        file.truncate(65 * 2**20)


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (lambda root: remove(root / "train"), "no train folder"),
    (lambda root: remove(root / "test"), "neither a test nor a val folder"),
    (no_classes, "no class folders in train/"),
    (empty_class, "train/cow holds no images"),
    (no_test_images, "no images in test/"),
    (foreign_class, "class 'cow' of test/ is not in train/"),
    (unreadable, r"bee/03\.png"),
    (truncated, r"bee/03\.png"),
    (sixteen_bits, r"bee/03\.png .*8 bits"),
    (too_large, r"bee/03\.png has 65 MiB"),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_unusable_folders(
    folder: Path, tmp_path: Path, fault: Callable[[Path], None], message: str, packed: bool
) -> None:
    fault(folder)
    path = pack(folder, tmp_path / "a.tar") if packed else folder
    with pytest.raises(AutoSparseError, match=message) as caught:
        open_folder(path, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not [file for file in (tmp_path / "data").rglob("*") if file.is_file()]  # no half-made cache


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(AutoSparseError, match="does not exist"):
        open_folder(tmp_path / "absent.tar", tmp_path / "data")


def test_a_decompression_bomb_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # Pillow refuses more than twice that: 144 pixels are too many
    with pytest.raises(AutoSparseError, match=r"\.png .*decompression bomb"):
        open_folder(folder, tmp_path / "data", image_size=12)


def test_foreign_and_damaged_archives(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no archive")
    packed = pack(folder, tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "flipped.tar.gz").write_bytes(packed[:-6] + b"\0\0" + packed[-4:])  # a wrong checksum
    for name in ("x.tar", "cut.tar.gz", "flipped.tar.gz"):
        with pytest.raises(AutoSparseError, match=rf"{name} is damaged or no tar archive"):
            open_folder(tmp_path / name, tmp_path / "data")


def test_a_damaged_header_is_not_taken_for_the_end(folder: Path, tmp_path: Path) -> None:
    archive = pack(folder, tmp_path / "a.tar")
    with tarfile.open(archive) as tar:
        last = tar.getmembers()[-1]
    content = bytearray(archive.read_bytes())
    content[last.offset] ^= 1
    archive.write_bytes(content)
    with pytest.raises(AutoSparseError, match=r"a\.tar is damaged"):
        open_folder(archive, tmp_path / "data")


@pytest.mark.parametrize(("kind", "message"), [("link", "is a link"), ("twice", "twice")])
def test_archives_with_links_or_repeated_names(folder: Path, tmp_path: Path, kind: str, message: str) -> None:
    archive = pack(folder, tmp_path / "a.tar")
    with tarfile.open(archive, "a") as tar:
        member = tarfile.TarInfo("train/ant/00.png" if kind == "twice" else "train/ant/link.png")
        if kind == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "../../../../etc/hostname"
        tar.addfile(member, io.BytesIO())
    with pytest.raises(AutoSparseError, match=message):
        open_folder(archive, tmp_path / "data")


def test_a_full_disk_leaves_no_half_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(imagefolder._Writer, "put", full)
    with pytest.raises(AutoSparseError, match="no space left"):
        open_folder(folder, tmp_path / "data")
    assert not [file for file in (tmp_path / "data").rglob("*") if file.is_file()]


# CIFAR-10 itself, where there is an archive of it

ARCHIVE = Path(os.environ.get("AUTOSPARSE_CIFAR10") or "absent")


@pytest.mark.slow
@pytest.mark.skipif(not ARCHIVE.is_file(), reason="AUTOSPARSE_CIFAR10 names no archive of CIFAR-10 images")
def test_cifar10_archive(tmp_path: Path) -> None:
    data = open_folder(ARCHIVE, tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (40_000, 10_000, 10_000)
    assert (data.image_size, data.num_classes) == (32, 10)
    assert torch.bincount(everything(data.val, batch_size=5000)[1]).tolist() == [1000] * 10
    assert data.describe()["mean"] == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.005)  # the published values
    assert data.describe()["std"] == pytest.approx([0.247, 0.243, 0.262], abs=0.005)
