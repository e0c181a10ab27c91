"""Removing channels from a network into a folder, and training what is left or what loses them on its way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import nn

from autosparse.channels.groups import widths_of
from autosparse.channels.plan import Selection
from autosparse.channels.store import load, save_shrunk
from autosparse.cost import counted_images, measured
from autosparse.data import ImageData
from autosparse.experiment.network import Network, ShrinkSettings
from autosparse.experiment.summary import read_summary
from autosparse.files import SCHEMA_VERSION, atomic_folder, exclusive, require_absent, write_json
from autosparse.layers import layers_of, total_weights
from autosparse.provenance import provenance
from autosparse.pruning import score_batches
from autosparse.shrinking import Shrinker, ShrinkPlan
from autosparse.training import TrainConfig
from autosparse.triggers.early import EarlyNarrowing
from autosparse.triggers.init import AtInit

_SHRINKING = "autosparse-shrinking"
_SHRINKING_FACTS: Mapping[str, tuple[type, ...]] = {
    "method": (str,),
    "asked": (dict,),
    "reached": (dict,),
    "groups": (list,),
    "scorer": (str, NoneType),
    "dataset": (str,),
    "data.image_size": (int,),
    "network.model": (str,),
    "network.model_args": (dict,),
    "network.seed": (int,),
}
#: What of a summary says how a network was shrunk.
_CHANNELS = ("method", "criterion", "spread", "asked", "reached", "params", "flops", "note", "groups")


def shrink_to_folder(
    network: Network,
    data: ImageData,
    settings: ShrinkSettings,
    out: Path,
    *,
    dataset: str,
    device: torch.device | str = "cpu",
    force: bool = False,
    progress: Callable[[str], None] = lambda what: None,
) -> ShrinkPlan:
    """Remove channels from a freshly initialised network; write the smaller one, ``summary.json`` and ``widths.png``.

    Args:
        dataset: the data set's name as :func:`~autosparse.data.load_data` takes it, for the summary.
        progress: told about every network that is timed for a budget of latency.

    Raises:
        OutputExistsError: ``out`` is not empty and ``force`` is not set; and everything that ``plan_shrink`` raises.
    """
    with exclusive(out):
        require_absent(out, force)
        dense = network.build_for(data).to(device)
        with measured(device) as cost, counted_images() as images:
            began = time.perf_counter()
            shrinker = shrinker_for(dense, network, data, settings, progress)
            plan = shrinker.plan(shrinker.select(dense), began)
        summary = {
            "kind": _SHRINKING,
            "schema_version": SCHEMA_VERSION,
            **plan.summary.as_dict(),
            "peak_bytes": cost.peak_bytes,
            "images": images.count,
            "network": asdict(network),
            "dataset": dataset,
            "data": data.describe(),
            "settings": asdict(settings),
            "provenance": provenance(),
        }
        with atomic_folder(out) as folder:
            write_network(folder, plan.apply(dense), dense, network, data, plan.summary.as_dict())
            write_json(folder / "summary.json", summary)
    return plan


def write_network(
    folder: Path, small: nn.Module, dense: nn.Module, network: Network, data: ImageData, channels: Mapping[str, Any]
) -> None:
    """The files from which ``autosparse.load`` rebuilds ``small``, and the picture of its widths.

    Args:
        channels: a :class:`~autosparse.shrinking.ShrinkSummary` as JSON.
    """
    from autosparse.report.save import save_figure
    from autosparse.report.widths_figure import widths_figure

    shape = (data.channels, data.image_size, data.image_size)
    facts = {name: channels.get(name) for name in _CHANNELS}
    save_shrunk(folder, small, dense, network=asdict(network), image_shape=shape, facts=facts)
    before, after = ({group["name"]: group[side] for group in channels["groups"]} for side in ("before", "after"))
    title = f"{network.model}, {channels['method']}: {channels['reached']['flops']:.1%} of the FLOPs"
    save_figure(widths_figure(before, after, title), folder / "widths.png")


def shrinker_for(
    dense: nn.Module,
    network: Network,
    data: ImageData,
    settings: ShrinkSettings,
    progress: Callable[[str], None] = lambda what: None,
) -> Shrinker:
    """The request of ``settings`` on ``dense``, scored on the images that every method scores on."""
    batches = score_batches(data, seed=network.seed, images=settings.score_images, size=settings.micro_batch)
    return Shrinker(dense, settings, batches, scorer=settings.scorer, seed=network.seed, progress=progress)


def read_shrinking(folder: Path) -> dict[str, Any]:
    """The summary that :func:`shrink_to_folder` wrote; FileFormatError for any other folder, or a damaged summary."""
    return read_summary(folder, _SHRINKING, "a folder written by 'autosparse shrink'", _SHRINKING_FACTS)


@dataclass(frozen=True)
class ShrunkStart:
    """Where the training of a network begins that has lost channels, or will.

    Args:
        model: what is trained: the smaller network, or the dense one with a ``narrowing``.
        dense: the dense network, for what was lost; its weights do not matter.
        summary: of the shrinking, where it has happened.
    """

    model: nn.Module
    dense: nn.Module
    summary: Mapping[str, Any] | None = None
    narrowing: EarlyNarrowing | None = None
    shrinker: Shrinker | None = None

    def ended(self, images: int, epochs: int) -> dict[str, Any]:
        """The summary of the shrinking, and what it saved of the training, JSON-able, when that is over.

        Args:
            images: an epoch.
        """
        summary, trigger, dense_epochs = dict(self.summary or {}), {}, 0
        if self.narrowing is not None and self.shrinker is not None:
            assert self.narrowing.kept is not None  # a trigger that never fires raises
            began = time.perf_counter() - self.narrowing.seconds
            summary = self.shrinker.plan(
                Selection(widths_of(self.narrowing.kept), self.narrowing.kept), began
            ).summary.as_dict()
            trigger = self.narrowing.facts()
            dense_epochs = trigger["pruned_at_epoch"]
        return {
            **channel_outcome(self.dense, self.model, summary),
            "trigger": trigger,
            "training": training_flops(summary["flops"], images, dense_epochs, epochs),
        }


def start_from_shrunk(folder: Path, dense: nn.Module) -> ShrunkStart:
    """The training of the network in ``folder``, which was shrunk from one like ``dense``."""
    small = load(folder, dense).to(next(dense.parameters()).device).train()
    return ShrunkStart(small, dense, read_shrinking(folder))


def start_narrowing(
    model: nn.Module, network: Network, data: ImageData, settings: ShrinkSettings, config: TrainConfig
) -> ShrunkStart:
    """The training of ``model``, built from ``network``, which loses channels at the moment of the method's trigger."""
    shrinker = shrinker_for(model, network, data, settings)
    when = shrinker.recipe.when
    assert not isinstance(when, AtInit)  # is shrunk before the training
    trigger = when.watch(epochs=config.epochs, density=shrinker.channel_share)
    identity = {"settings": asdict(settings)}
    narrowing = EarlyNarrowing(shrinker.coupling, trigger, shrinker.select, shrinker.imagine, identity)
    return ShrunkStart(model, network.build(), narrowing=narrowing, shrinker=shrinker)


def channel_outcome(dense: nn.Module, small: nn.Module, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of ``dense``, JSON-able, in the terms of pruned weights and in those of channels.

    Args:
        summary: of the shrinking, as read or as :meth:`ShrinkSummary.as_dict` gives it.
    """
    left = {layer.name: layer.size for layer in layers_of(small)}
    layers = [
        {"name": layer.name, "shape": layer.shape, "weights": layer.size, "kept": left[layer.name]}
        | {"density": left[layer.name] / layer.size}
        for layer in layers_of(dense)
    ]
    total, kept = total_weights(layers_of(dense)), sum(left.values())
    return {
        "total": total,
        "kept": kept,
        "density": kept / total,
        "connected": True,
        "warnings": [summary["note"]] if summary.get("note") else [],
        "layers": layers,
        "seconds": summary.get("seconds"),
        "peak_bytes": summary.get("peak_bytes"),
        "images": summary.get("images"),
        "channels": {name: summary.get(name) for name in _CHANNELS},
    }


def training_flops(flops: Sequence[int], images: int, dense_epochs: int, epochs: int) -> dict[str, int]:
    """FLOPs of a training and of that of the dense network: three times the forward pass of every image.

    The backward pass costs twice as much as the forward pass.

    Args:
        flops: of one image in the dense and in the smaller network.
        images: an epoch.
        dense_epochs: epochs before channels were removed.
    """
    dense, small = flops
    return {
        "dense_epochs": dense_epochs,
        "flops": 3 * images * (dense_epochs * dense + (epochs - dense_epochs) * small),
        "dense_flops": 3 * images * epochs * dense,
    }
