"""The contract of a channel criterion, and their registry: that of weights, with scores of another form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from autosparse.channels.criteria.slices import check_fits
from autosparse.channels.groups import Coupling
from autosparse.criteria.base import INGREDIENTS, Criterion, Ingredients, entering, evaluate
from autosparse.errors import AutoSparseError
from autosparse.registry import Registry

#: From a group's name to float64 numbers [width], one a channel.
ChannelScores = dict[str, np.ndarray]
ChannelFunction = Callable[..., ChannelScores]

#: What a channel criterion may ask for by the name of a parameter.
CHANNEL_INGREDIENTS: Mapping[str, str] = {
    **{name: INGREDIENTS[name] for name in ("model", "batches", "loss_fn", "gradients", "example", "generator")},
    "coupling": "the channel groups of the network",
    "scorer": INGREDIENTS["scorer"],
}

CHANNEL_CRITERIA: Registry[Criterion[ChannelScores]] = Registry("channel criterion")


def channel_criterion(
    name: str, *, paper: str = "", check: Callable[[nn.Module, Tensor], None] | None = None
) -> Callable[[ChannelFunction], ChannelFunction]:
    """Register a channel criterion.

    As :func:`autosparse.criteria.criterion`, with the ingredients :data:`CHANNEL_INGREDIENTS`. The function returns
    one float64 array [width] a group of the coupling, by name, and does nothing else.
    """
    return entering(CHANNEL_CRITERIA, CHANNEL_INGREDIENTS, name, paper, **({"check": check} if check else {}))


def list_channel_criteria() -> list[str]:
    """The names of all channel criteria, sorted."""
    return CHANNEL_CRITERIA.names()


@dataclass
class ChannelIngredients(Ingredients):
    """What channel criteria may ask for."""

    coupling: Coupling | None = None


def score_channels(
    name: str, model: nn.Module, coupling: Coupling, *, options: Mapping[str, Any] | None = None, **given: Any
) -> ChannelScores:
    """Scores of every coupled channel under the criterion ``name``, finite float64 arrays [width] by group.

    The model comes back as it was: weights, buffers, gradients, train/eval flags, and the global RNG.

    Args:
        coupling: of ``model`` as it is.
        options: values for the criterion's own options.
        given: ingredients (:data:`CHANNEL_INGREDIENTS`); ``gradients`` and ``example`` are derived from the others
            where they are not given.

    Raises:
        UnknownNameError: no such criterion or option. AutoSparseError: it needs something that was not given, the
        coupling is that of another network, or a score is not finite.
    """
    entry = CHANNEL_CRITERIA.get(name)
    check_fits(model, coupling)
    if not len(coupling):
        return {}
    with np.errstate(invalid="ignore"):  # what is not a number gets a message of its own
        scores = evaluate(entry, ChannelIngredients(model, coupling=coupling, **given), options or {})
    for group in coupling:
        if not np.isfinite(scores[group.name]).all():
            raise AutoSparseError(
                f"criterion '{name}' gives channel group '{group.name}' scores that are not finite: check the weights "
                f"of {type(model).__name__}"
            )
    return {group.name: scores[group.name] for group in coupling}
