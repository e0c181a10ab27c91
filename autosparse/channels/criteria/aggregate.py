"""From scores of weights to scores of channels."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autosparse.channels.criteria.base import ChannelScores
from autosparse.channels.criteria.slices import filters, float64, names_of, readers, slices
from autosparse.channels.groups import ChannelGroup, Coupling
from autosparse.errors import AutoSparseError, UnknownNameError

HOW = ("mean", "sum", "top-share")


def aggregate(
    model: nn.Module,
    coupling: Coupling,
    scores: Mapping[str, Tensor],
    how: str = "mean",
    *,
    top_share: float = 0.1,
    with_readers: bool = False,
) -> ChannelScores:
    """Scores of channels from those of their weights: float64 arrays [width] by group.

    Args:
        scores: of the weights of convolutions and linear layers by parameter name, as criteria of weights give them.
        how: ``mean`` or ``sum`` of all weights of the channel, or ``top-share``: the mean of its best ones.
        top_share: which share of a channel's weights ``top-share`` takes, in (0, 1]; at least one weight.
        with_readers: the weights that read the channel count too, not just those that compute it.

    Raises:
        AutoSparseError: a setting out of range, or a group none of whose weights has a score.
    """
    if how not in HOW:
        raise UnknownNameError("aggregate", how, HOW)
    if not 0 < top_share <= 1:
        raise AutoSparseError(f"top-share is {top_share}: give a number in (0, 1], such as 0.1")
    found = {}
    for group in coupling:
        rows = torch.cat(_rows(model, group, scores, with_readers), dim=1)
        if how == "top-share":
            rows = rows.topk(math.ceil(top_share * rows.shape[1]), dim=1, sorted=False).values
        total = float64(rows.sum(1, dtype=torch.float64))
        found[group.name] = total if how == "sum" else total / rows.shape[1]
    return found


def _rows(model: nn.Module, group: ChannelGroup, scores: Mapping[str, Tensor], with_readers: bool) -> list[Tensor]:
    members = filters(model, group) + (readers(model, group) if with_readers else [])
    names = [names_of(model, member)[0] for member in members]
    rows = [slices(model, m, scores[name]) for m, name in zip(members, names, strict=True) if name in scores]
    if not rows:
        raise AutoSparseError(
            f"no weight of channel group '{group.name}' has a score: leave it alone with --keep {group.name}, "
            f"keep=['{group.name}'] in Python"
        )
    return rows
