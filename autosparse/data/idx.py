"""Reader of IDX files (the MNIST family's format): a header of sizes, then bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from autosparse.errors import FileFormatError

_BYTES = 0x08  # the format's code for unsigned bytes, the only element type that is read
_MAX_ELEMENTS = 2**28  # five times Fashion-MNIST; a forged header must not fill the memory


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """The array in a gzip-compressed IDX file: uint8 with ``ndim`` axes.

    The header is two zero bytes, the element type, the number of axes, then each axis' length as a big-endian uint32.

    Raises:
        FileFormatError: not such a file, other axes, implausibly large, or another length than the header says.
    """
    try:
        with gzip.open(path, "rb") as file:
            magic = file.read(4)
            if magic != bytes((0, 0, _BYTES, ndim)):
                raise FileFormatError(f"{path} is no IDX file of bytes with {ndim} axes: fetch it again")
            shape = struct.unpack(f">{ndim}I", file.read(4 * ndim))
            count = math.prod(shape)
            if count > _MAX_ELEMENTS:
                raise FileFormatError(f"{path} claims {count} elements {shape}, more than is plausible: fetch it again")
            data = file.read(count + 1)  # one more, to notice a surplus
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise FileFormatError(f"{path} is damaged ({error}): fetch it again") from error
    if len(data) != count:
        raise FileFormatError(f"{path} does not hold the {count} elements that its header states: fetch it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape).copy()
