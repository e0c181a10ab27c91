"""Coupled channels: what has to be removed together, and where it lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from autosparse.errors import AutoSparseError

#: ``out``: axis 0 of a weight, and its bias. ``in``: axis 1 of a weight. ``channel``: both at once, as in norms and
#: depthwise convolutions.
Side = Literal["out", "in", "channel"]


@dataclass(frozen=True, eq=False)
class Member:
    """Where the channels of a group lie in one module.

    Args:
        positions: ``[width, k]``: channel i of the group is positions[i] of the module's ``side``. k is 1, or more
            where one channel appears several times: 49 times in a linear layer behind a flattened 7x7 image, the size
            of a convolution's group, three times the head's size in a fused projection to queries, keys and values.
    """

    module: str
    side: Side
    positions: np.ndarray

    @property
    def multiplicity(self) -> int:
        return int(self.positions.shape[1])


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that stand or fall together in all of their modules: tied by additions, concatenations, depthwise
    convolutions, or because one layer reads what the other writes.

    Args:
        name: the first layer that computes them.
        attention: the attention module whose heads these are, if they are heads.
        operations: what the channels pass on their way that is no module, by autograd's names.
    """

    name: str
    members: tuple[Member, ...]
    attention: str | None = None
    operations: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many channels (heads, blocks of a grouped convolution) there are."""
        return int(self.members[0].positions.shape[0])

    @property
    def unit(self) -> int:
        """Outputs of the first layer that go with one channel."""
        return self.members[0].multiplicity

    def on(self, side: Side) -> Iterator[Member]:
        return (member for member in self.members if member.side == side)


@dataclass(frozen=True)
class Coupling:
    """The channel groups of a network that may shrink, and the layers that keep their widths.

    Args:
        fixed: from a layer to the reason why its outputs stay as they are.
    """

    groups: tuple[ChannelGroup, ...]
    fixed: Mapping[str, str]

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> ChannelGroup:
        return next(group for group in self.groups if group.name == name)

    @property
    def widths(self) -> dict[str, int]:
        return {group.name: group.width for group in self.groups}


#: From a group's name to a bool array [width]: which channels stay.
Kept = Mapping[str, np.ndarray]


def widths_of(kept: Kept) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in kept.items()}


def check_kept(coupling: Coupling, kept: Kept) -> None:
    """AutoSparseError unless ``kept`` names groups of the coupling, fits their widths, and leaves each a channel."""
    widths = coupling.widths
    for name, mask in kept.items():
        if name not in widths:
            raise AutoSparseError(f"there is no channel group '{name}': known are {', '.join(widths) or 'none'}")
        if mask.dtype != np.bool_ or mask.shape != (widths[name],):
            raise AutoSparseError(f"channel group '{name}' has {widths[name]} channels: give that many bools")
        if not mask.any():
            raise AutoSparseError(f"channel group '{name}' would vanish: keep one of its {widths[name]} channels")


def without(coupling: Coupling, kept: Kept) -> Coupling:
    """The coupling of the network that is left when only the channels of ``kept`` stay.

    Args:
        kept: for groups by name; the others stay whole.
    """
    check_kept(coupling, kept)
    stays = {group.name: kept.get(group.name, np.ones(group.width, dtype=bool)) for group in coupling}
    gone: dict[tuple[str, Side], list[np.ndarray]] = {}
    for group in coupling:
        for member in group.members:
            gone.setdefault((member.module, member.side), []).append(member.positions[~stays[group.name]].ravel())
    removed = {place: np.sort(np.concatenate(parts)) for place, parts in gone.items()}

    def moved(member: Member, stay: np.ndarray) -> Member:
        positions = member.positions[stay]
        return replace(member, positions=positions - np.searchsorted(removed[member.module, member.side], positions))

    groups = (
        replace(group, members=tuple(moved(member, stays[group.name]) for member in group.members))
        for group in coupling
    )
    return Coupling(tuple(groups), coupling.fixed)
