"""Pruning early in training, once the same channels are chosen epoch after epoch: Early-Bird tickets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from autosparse.errors import AutoSparseError
from autosparse.triggers.epochs import EpochTrigger, Look, check_cap, damaged, numbers


def hamming(a: np.ndarray, b: np.ndarray) -> float:
    """The share of channels that one of two tickets keeps and the other does not; bool arrays ``[channels]``."""
    return float(np.count_nonzero(a != b) / a.size)


@dataclass(frozen=True)
class TicketStable:
    """One pruning of a dense network as soon as the channels that it would keep hardly change; nothing is rewound.

    You et al. 2020, arXiv 1909.11957 ("Early-Bird tickets"). After every epoch the network is pruned hypothetically,
    which gives a ticket, the binary mask of all channels. It is pruned when the normalised Hamming distances of the
    newest ticket to each of the four before are at most 0.1.

    The distance is a share of all channels, so that a network that loses (or keeps) a share q <= 1/20 of them passes
    at once: two tickets of the same size differ in 2q at most. The authors rank channels by the scales of their batch
    norms, pulled towards zero by an L1 penalty of 1e-4 during the search; both are settings of the run.

    Args:
        threshold: the largest distance.
        tickets: how many are compared, the newest included; the earliest moment is after as many epochs.
        cap: the epoch at which the network is pruned even if it is not stable; ``None`` refuses a training in which it
            never is.
    """

    threshold: float = 0.1
    tickets: int = 5
    cap: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise AutoSparseError(f"threshold is {self.threshold}: give a number in [0, 1), such as 0.1")
        if self.tickets < 2:
            raise AutoSparseError(f"tickets is {self.tickets}: give 2 or more to compare")
        check_cap(self.cap)

    def watch(self, *, epochs: int, density: float) -> EpochTrigger:
        """The trigger of one run; AutoSparseError if that has too few epochs for the tickets, and no cap is given."""
        history = TicketHistory(self)
        return EpochTrigger(self, history, epochs=epochs, density=density, earliest=self.tickets, cap=self.cap)


class TicketHistory:
    """The last tickets, and after each epoch the largest distance of the newest from the others."""

    quantity = "largest distance between tickets"

    def __init__(self, settings: TicketStable) -> None:
        self._settings = settings
        self._widths: dict[str, int] = {}
        self._queue: list[np.ndarray] = []
        self.values: list[float | None] = []

    @property
    def threshold(self) -> float:
        return self._settings.threshold

    @property
    def wanted(self) -> str:
        return f"at most {self.threshold:g}"

    def see(self, epoch: int, look: Look) -> bool:
        return epoch > 0 and self.update(look.kept())

    def update(self, kept: Mapping[str, np.ndarray]) -> bool:
        """Take in the channels that pruning after another epoch would keep; whether to prune.

        Args:
            kept: from a group's name to a bool array ``[width]``.

        Raises:
            AutoSparseError: no channels, or not those of the epochs before.
        """
        widths = {name: len(mask) for name, mask in kept.items()}
        if not sum(widths.values()) or widths != (self._widths or widths):
            raise AutoSparseError("a ticket has no channels, or other ones than those before: give the same groups")
        self._widths = self._widths or widths
        newest = np.concatenate([np.asarray(kept[name], dtype=bool) for name in self._widths])
        self._queue = [*self._queue, newest][-self._settings.tickets :]
        if len(self._queue) < self._settings.tickets:
            self.values.append(None)
            return False
        largest = max(hamming(newest, ticket) for ticket in self._queue[:-1])
        self.values.append(largest)
        return largest <= self.threshold

    def as_dict(self) -> dict[str, Any]:
        """``widths`` of the groups, ``queue`` of tickets, ``values``: the largest distance after epoch 1, 2, ...

        A ticket is text: one bit a channel, group after group, padded to bytes and written as hexadecimal digits.
        """
        queue = [np.packbits(ticket).tobytes().hex() for ticket in self._queue]
        return {"widths": dict(self._widths), "queue": queue, "values": list(self.values)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`as_dict` said; FileFormatError if it is damaged."""
        values = numbers(state, "values", most=1.0, undefined=True)
        widths, queue = state.get("widths"), state.get("queue")
        if not isinstance(widths, Mapping) or not all(type(n) is int and n >= 0 for n in widths.values()):
            raise damaged("'widths' are not those of channel groups")
        if not isinstance(queue, list) or len(queue) != min(len(values), self._settings.tickets):
            raise damaged(f"'queue' does not hold the last tickets of {len(values)} epochs")
        if any((value is None) != (t < self._settings.tickets - 1) for t, value in enumerate(values)):
            raise damaged(f"'values' do not begin after {self._settings.tickets - 1} epochs")
        self._queue = [_ticket(text, sum(widths.values())) for text in queue]
        self._widths, self.values = dict(widths), values


def _ticket(text: object, channels: int) -> np.ndarray:
    try:
        packed = np.frombuffer(bytes.fromhex(str(text)), dtype=np.uint8)
    except ValueError:
        raise damaged("a ticket is no hexadecimal text") from None
    if not channels or len(packed) != math.ceil(channels / 8):
        raise damaged(f"a ticket of {8 * len(packed)} bits is none of {channels} channels")
    return np.unpackbits(packed, count=channels).astype(bool)
