"""Which channels are important: criteria give every coupled channel a score, larger means keep.

Every module of this package is imported here, so that a new criterion is one new file.
"""

import importlib
import pkgutil

from autosparse.channels.criteria.base import (
    CHANNEL_CRITERIA,
    CHANNEL_INGREDIENTS,
    ChannelScores,
    channel_criterion,
    list_channel_criteria,
    score_channels,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "CHANNEL_CRITERIA",
    "CHANNEL_INGREDIENTS",
    "ChannelScores",
    "channel_criterion",
    "list_channel_criteria",
    "score_channels",
]
