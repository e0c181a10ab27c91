"""The two places where images lie: in the device's memory, or on disk behind reading workers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class MemoryStore:
    """All images as one uint8 tensor (N, H, W, C) on ``device``."""

    def __init__(self, images: np.ndarray, device: torch.device) -> None:
        # A memory map is read once and copied: torch cannot share read-only memory.
        plain = images if images.flags.writeable else np.array(images)
        self._images = torch.from_numpy(plain).to(device)
        self.image_size = images.shape[1]

    def fetch(self, batches: list[Tensor]) -> Iterator[Tensor]:
        for rows in batches:
            yield self._images[rows.to(self._images.device, non_blocking=True)]


class StreamStore:
    """Images that stay where they are, usually a memory-mapped file; ``workers`` processes read batches ahead."""

    def __init__(self, images: np.ndarray, device: torch.device, workers: int) -> None:
        self._reader = _BatchReader(images)
        self._device = device
        self._workers = workers
        self.image_size = images.shape[1]

    def fetch(self, batches: list[Tensor]) -> Iterator[Tensor]:
        loader = DataLoader(
            self._reader,
            sampler=batches,  # the index that the reader gets is a whole batch of rows
            batch_size=None,
            num_workers=min(self._workers, len(batches)),
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # its workers' seeds would be drawn from the global generator
        )
        for images in loader:
            yield images.to(self._device, non_blocking=True)


class _BatchReader(Dataset[Tensor]):
    """Dataset whose index is a tensor of rows and whose item is their images, uint8 (n, H, W, C)."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self._images[rows.numpy()])

    def __getstate__(self) -> dict[str, object]:
        # Worker processes that are not forked get a pickled copy: of the file's name, not of all its pixels.
        images = self._images
        return {"file": str(images.filename)} if isinstance(images, np.memmap) else {"images": images}

    def __setstate__(self, state: dict[str, object]) -> None:
        file = state.get("file")
        self._images = np.load(str(file), mmap_mode="r", allow_pickle=False) if file else state["images"]  # type: ignore[assignment]
