"""The images of a cell, loaded once a process."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from autosparse.bench.cells import Cell
from autosparse.data import ImageData, load_data


def images_of(cell: Cell, data_dir: Path, device: str) -> ImageData:
    """The data set of ``cell`` with its splits, on ``device``; errors as in :func:`autosparse.data.load_data`."""
    return _load(cell.dataset, Path(data_dir), cell.image_size, cell.split_seed, device)


# Two, since the cells of a grid come data set by data set.
@lru_cache(maxsize=2)
def _load(name: str, data_dir: Path, image_size: int | None, split_seed: int, device: str) -> ImageData:
    return load_data(name, data_dir=data_dir, image_size=image_size, seed=split_seed, device=device)


forget_images = _load.cache_clear
