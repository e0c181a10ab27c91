"""From image files to uint8 arrays, by threads: Pillow releases the interpreter's lock while it decodes."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from autosparse.errors import AutoSparseError, first_line

_GROUP = 64  # images handed to a thread at a time


def decode_image(name: Path, content: bytes, size: int) -> np.ndarray:
    """RGB uint8 (size, size, 3): bilinear resize of the shorter side to ``size``, then the central square.

    Pillow's guard against decompression bombs stays on. AutoSparseError names an image that cannot be read.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"mode {image.mode} has more than 8 bits a channel")
            rgb = image.convert("RGB")
        if rgb.size != (size, size):
            rgb = ImageOps.fit(rgb, (size, size), method=Image.Resampling.BILINEAR)
        return np.asarray(rgb)
    except Exception as error:  # Pillow's readers meet damage with exceptions of every kind
        reason = first_line(error)
        raise AutoSparseError(f"cannot read the image {name} ({reason}): replace or remove it") from error


def shorter_side(name: Path, content: bytes) -> int:
    """Pixels of an image's shorter side, from its header."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return min(image.size)
    except Exception as error:  # as above
        raise AutoSparseError(f"cannot read the image {name} ({error}): replace or remove it") from error


def decode_all(
    root: Path, files: Iterable[tuple[str, bytes]], total: int, size: int, put: Callable[[str, np.ndarray], None]
) -> None:
    """Decode (name, content) pairs and hand each result to ``put`` in the caller's thread, in the given order.

    Only a few groups are in flight, so memory stays bounded however many files come. A progress bar appears on a
    terminal after two seconds. ``root`` is put before the names in errors.
    """
    threads = min(8, os.cpu_count() or 1)
    waiting: deque[Future[list[tuple[str, np.ndarray]]]] = deque()
    source = iter(files)
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=total, desc="decoding", unit=" images", delay=2, disable=None, leave=False) as progress,
    ):

        def finish_one() -> None:
            group = waiting.popleft().result()
            for name, image in group:
                put(name, image)
            progress.update(len(group))

        try:
            while group := list(islice(source, _GROUP)):
                waiting.append(pool.submit(_decode_group, root, group, size))
                if len(waiting) > 2 * threads:
                    finish_one()
            while waiting:
                finish_one()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the first failure ends the work
            raise


def _decode_group(root: Path, group: list[tuple[str, bytes]], size: int) -> list[tuple[str, np.ndarray]]:
    return [(name, decode_image(root / name, content, size)) for name, content in group]
