"""A split of an image set: rows of a store, turned into batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from autosparse.data.augment import Draws, Normaliser, crop_and_mirror
from autosparse.errors import AutoSparseError
from autosparse.seeding import generator


class Store(Protocol):
    """Where the images of a part lie."""

    image_size: int

    def fetch(self, batches: list[Tensor]) -> Iterator[Tensor]:
        """For each int64 tensor of rows: their images, uint8 (n, H, W, C) on the device."""
        ...


class Split:
    """Images for one purpose (training, validation, test). Batches are functions of their arguments alone.

    Args:
        labels: int64, one label for each row of the store.
        rows: int64, the rows of the store that belong to this split, in its fixed order.
    """

    def __init__(self, store: Store, labels: Tensor, rows: Tensor, normaliser: Normaliser, flips: bool) -> None:
        self._store = store
        self._labels = labels
        self._rows = rows
        self._normaliser = normaliser
        self._flips = flips

    def __len__(self) -> int:
        return len(self._rows)

    def part(self, images: int, seed: int) -> Split:
        """At most ``images`` of the images, drawn by ``seed``, as a split of their own."""
        rows = self._rows[torch.randperm(len(self._rows), generator=generator(seed, "part"))[:images]]
        return Split(self._store, self._labels, rows, self._normaliser, self._flips)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        augment: bool = False,
        drop_last: bool = False,
        limit: int | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (x, y): x float32 (n, C, H, W), normalised, channels_last; y int64 (n,); both on the device.

        The same arguments give bit-equal batches, whatever was drawn before.

        Args:
            batch_size: images in a batch, over all shards together.
            shuffle_seed: None keeps the fixed order; a number gives the permutation of that seed.
            augment: crop at a random place after padding by max(1, image_size // 8) pixels of the training mean
                (zero after normalisation, up to the rounding to a whole grey level); mirror half of the images
                unless the set's classes forbid it. Drawn from ``shuffle_seed``, or from seed 0 when that is None.
            drop_last: leave out a last batch of fewer than ``batch_size`` images.
            limit: only the first ``limit`` images of the (shuffled) order.
            shard: (rank, world); this process's contiguous slice of every batch. Shuffling and augmentation are
                drawn for the whole batch, so the ``world`` slices together are the batch of one process. A last
                batch smaller than ``world`` gives some ranks zero images, so that all see equally many batches.

        Raises:
            AutoSparseError: an argument out of range.
        """
        rank, world = shard
        if batch_size < 1:
            raise AutoSparseError(f"batch size {batch_size} is not positive: give 1 or more")
        if limit is not None and limit < 0:
            raise AutoSparseError(f"limit {limit} is negative: give 0 or more, or None for all images")
        if not 0 <= rank < world:
            raise AutoSparseError(f"shard {shard} is not (rank, world) with 0 <= rank < world")
        order = self._rows
        if shuffle_seed is not None:
            order = order[torch.randperm(len(order), generator=generator(shuffle_seed, "shuffle"))]
        order = order[:limit]
        if drop_last:
            order = order[: len(order) // batch_size * batch_size]
        return self._produce(order, batch_size, generator(shuffle_seed or 0, "augment") if augment else None, shard)

    def _produce(
        self, order: Tensor, batch_size: int, rng: torch.Generator | None, shard: tuple[int, int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        padding = max(1, self._store.image_size // 8)
        whole = list(order.split(batch_size)) if len(order) else []
        slices = [_slice(len(rows), shard) for rows in whole]
        mine = [rows[part] for rows, part in zip(whole, slices, strict=True)]
        for images, rows, all_rows, part in zip(self._store.fetch(mine), mine, whole, slices, strict=True):
            if rng is not None:
                draws = Draws.sample(len(all_rows), padding, self._flips, rng)[part]
                images = crop_and_mirror(images, draws, padding, self._normaliser.fill)
            y = self._labels[rows.to(self._labels.device, non_blocking=True)]
            yield self._normaliser(images), y


def _slice(count: int, shard: tuple[int, int]) -> slice:
    """Contiguous share of ``count`` images; shares differ by at most one."""
    rank, world = shard
    return slice(count * rank // world, count * (rank + 1) // world)
