"""A network and a pruning in names and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from autosparse.channels.request import ShrinkRequest
from autosparse.data import ImageData
from autosparse.models import seeded_model
from autosparse.models.images import require_takes
from autosparse.pruning import SCORE_BATCH, Request


@dataclass(frozen=True)
class Network:
    """A network by name, with the seed of its initial weights."""

    model: str = "vgg16"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int = 10
    in_channels: int = 3
    seed: int = 0

    def build(self) -> nn.Module:
        """The network with its initial weights, on the CPU."""
        return seeded_model(
            self.model,
            seed=self.seed,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            **self.model_args,
        )

    def build_for(self, data: ImageData) -> nn.Module:
        """:meth:`build`, and see that the network takes images of ``data``.

        Raises:
            AutoSparseError: it fails on one; and everything that :meth:`build` raises.
        """
        model = self.build()
        require_takes(model, self.model, data.channels, data.image_size)
        return model


@dataclass(frozen=True)
class PruneSettings(Request):
    """A request, and what it is measured with: the scorer by name or file, and the images.

    Args:
        micro_batch: images of one backward pass.
    """

    scorer: str | None = None
    score_images: int = 1280
    micro_batch: int = SCORE_BATCH


@dataclass(frozen=True)
class ShrinkSettings(ShrinkRequest):
    """A request to remove channels, and what it is measured with; as :class:`PruneSettings`."""

    scorer: str | None = None
    score_images: int = 1280
    micro_batch: int = SCORE_BATCH
