"""Images and labels as arrays, and the two things computed from them: the validation cut and the normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from autosparse.errors import AutoSparseError
from autosparse.seeding import generator

_CHUNK = 2048  # images converted at a time: bounds the memory of the temporaries


@dataclass(frozen=True)
class Arrays:
    """One part of a data set.

    Attributes:
        images: uint8 (N, H, W, 3); may be a read-only memory map.
        labels: int64 (N,).
        sums: int64 (N, 2, 3), each image's sum and sum of squares per channel. Being integers kept per image, they
            give exact statistics of any subset without another pass over the pixels.
    """

    images: np.ndarray
    labels: np.ndarray
    sums: np.ndarray


@dataclass(frozen=True)
class Source:
    """A data set whose parts are read on demand.

    Attributes:
        sizes: number of images of each part: "train", "test" and, if the set brings its own, "val".
        read: gives the arrays of one part.
        flips: whether a mirrored image keeps its class.
    """

    class_names: tuple[str, ...]
    image_size: int
    flips: bool
    sizes: Mapping[str, int]
    read: Callable[[str], Arrays]


def pixel_sums(images: np.ndarray) -> np.ndarray:
    """Sum and sum of squares of each image's pixels per channel: uint8 (N, H, W, C) -> int64 (N, 2, C)."""
    out = np.empty((len(images), 2, images.shape[-1]), dtype=np.int64)
    for start in range(0, len(images), _CHUNK):
        part = torch.from_numpy(images[start : start + _CHUNK].astype(np.int32)).flatten(1, 2)
        out[start : start + _CHUNK, 0] = part.sum(1).numpy()
        out[start : start + _CHUNK, 1] = part.square_().sum(1).numpy()
    return out


def mean_and_std(sums: np.ndarray, pixels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation on the scale [0, 1] of images with ``pixels`` pixels each.

    The deviation is at least one grey level, so that constant images can be normalised.
    """
    count = len(sums) * pixels * 255.0
    first, second = sums.sum(axis=0).astype(np.float64)
    mean = first / count
    std = np.sqrt(np.maximum(second / (count * 255.0) - mean**2, 0.0))
    return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())


def make_arrays(images: np.ndarray, labels: np.ndarray) -> Arrays:
    """Arrays with their sums; grey images (N, H, W) get three equal channels."""
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    return Arrays(np.ascontiguousarray(images), labels.astype(np.int64), pixel_sums(images))


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize of square images: uint8 (N, H, H) or (N, H, H, C) to ``size`` pixels a side.

    Smoothed (antialias) only when shrinking, where skipped pixels would otherwise be lost.
    """
    old = images.shape[1]
    if old == size:
        return images
    shape = (len(images), size, size, *images.shape[3:])
    out = np.empty(shape, dtype=np.uint8)
    for start in range(0, len(images), _CHUNK):
        part = torch.from_numpy(images[start : start + _CHUNK]).reshape(-1, old, old, images[0, 0, 0].size)
        scaled = F.interpolate(
            part.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear", antialias=size < old, align_corners=False
        )
        whole = scaled.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1)
        out[start : start + _CHUNK] = whole.reshape(-1, *shape[1:]).numpy()
    return out


def stratified_cut(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (kept, cut), each ascending: ``fraction`` of every class is cut, chosen by ``seed``.

    A class of n images gives round(fraction * n), but at least one and never all; a class of one image stays whole.
    """
    cut = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        order = torch.randperm(len(rows), generator=generator(seed, "cut", int(label))).numpy()
        cut[rows[order[:count]]] = True
    if not cut.any():
        raise AutoSparseError("every class has a single training image: too few to cut a validation split from them")
    return np.flatnonzero(~cut), np.flatnonzero(cut)
