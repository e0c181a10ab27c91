"""One seed, many independent streams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *stream: str | int) -> int:
    """A 63-bit seed for the named stream.

    Streams are independent of the order in which they are used, so an epoch's shuffle needs no saved RNG state: it is
    a function of (seed, "shuffle", epoch), which makes a resumed run equal to an uninterrupted one.
    """
    text = "/".join([str(seed), *map(str, stream)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *stream: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device`` for the named stream."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *stream))


@contextmanager
def global_stream(seed: int, *stream: str | int) -> Iterator[None]:
    """Seed torch's global RNG inside the block and restore it after; for code that takes no generator (nn.init)."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, *stream))
        yield
