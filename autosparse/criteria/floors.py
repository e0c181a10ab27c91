"""Layers that everything must pass through: what pruning on the way to a density leaves them at least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autosparse.errors import AutoSparseError
from autosparse.layers import Layer

_NOTHING = 1e-6  # of the flow passes by a layer of a chain, up to rounding


@dataclass(frozen=True)
class Floors:
    """A floor for each layer that everything must pass through, in prunings by one threshold for the network.

    Nothing makes up for a block of a deep chain that is all but closed.

    Args:
        owner: the criterion, for messages.
        layers: of the network, all of them.
        bypass: the share of the flow that passes by each layer (:func:`~autosparse.connectivity.passing_by`); ``None``:
            unknown, and no layer has a floor.
        least: of the mean layer's weights, as far as one weight for each of the layer's output channels goes.

    Raises:
        AutoSparseError: ``least`` out of range.
    """

    owner: str
    layers: Sequence[Layer]
    bypass: Mapping[str, float] | None
    least: float

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise AutoSparseError(f"{self.owner} has least {self.least}: give a number between 0 and 1")

    def of(self, keep: int) -> list[int]:
        """Weights that each layer has at least, or all that are left of it, when ``keep`` are kept of the network."""
        if self.bypass is None:
            return [0] * len(self.layers)
        most = int(self.least * keep / len(self.layers))
        return [min(most, layer.shape[0]) if self.bypass[layer.name] < _NOTHING else 0 for layer in self.layers]
