"""Pruning a freshly initialised network into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from autosparse.cost import Cost, measured
from autosparse.data import ImageData
from autosparse.experiment.network import Network, PruneSettings
from autosparse.experiment.summary import read_summary
from autosparse.files import SCHEMA_VERSION, atomic_folder, exclusive, require_absent, write_json
from autosparse.masks import Masks
from autosparse.provenance import provenance
from autosparse.pruning import Pruned, prune, score_batches, training_stream
from autosparse.recipes import recipe_of
from autosparse.rewinding.ticket import snapshot
from autosparse.seeding import derive_seed
from autosparse.training import save_state

_PRUNING = "autosparse-pruning"

# What is read back from summaries, which may have been damaged since.
_PRUNING_FACTS: Mapping[str, tuple[type, ...]] = {
    "method": (str,),
    "budget": (str,),
    "scorer": (str, NoneType),
    "sparsity": (float, int),
    "kept": (int,),
    "total": (int,),
    "density": (float, int),
    "dataset": (str,),
    "data.image_size": (int,),
    "network.model": (str,),
    "network.model_args": (dict,),
    "network.seed": (int,),
}


def prune_to_folder(
    network: Network,
    data: ImageData,
    settings: PruneSettings,
    out: Path,
    *,
    dataset: str,
    device: torch.device | str = "cpu",
    force: bool = False,
    gradients: Mapping[str, Tensor] | None = None,
    before: Cost | None = None,
) -> Pruned:
    """Prune a freshly initialised network; write masks, initial state, ``summary.json`` and ``layers.png`` to ``out``.

    Args:
        dataset: the data set's name as :func:`~autosparse.data.load_data` takes it, for the summary.
        gradients: as for :func:`prune_network`.
        before: what they took; the summary counts it as the method's own.

    Raises:
        OutputExistsError: ``out`` is not empty and ``force`` is not set; and everything that ``prune`` raises.
    """
    with exclusive(out):
        require_absent(out, force)
        model = network.build_for(data).to(device)
        initial = snapshot(model)
        with measured(device) as cost:
            pruned = prune_network(model, network, data, settings, gradients)
        if settings.sanity == "reinit" or recipe_of(settings.method).rescale:  # the kept weights have changed
            initial = snapshot(pruned.model)
        took = Cost(pruned.summary.seconds, cost.peak_bytes, pruned.summary.images).after(before or Cost())
        facts = {**pruned.summary.as_dict(), **asdict(took)}
        write_pruning(out, network, data, settings, dataset, pruned.masks, initial, facts)
    return pruned


def write_pruning(
    out: Path,
    network: Network,
    data: ImageData,
    settings: PruneSettings,
    dataset: str,
    masks: Masks,
    state: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> None:
    """A folder of masks, of the state that training starts from, and of ``facts`` about them."""
    from autosparse.report.figures import layer_density_figure
    from autosparse.report.save import save_figure

    summary = {
        "kind": _PRUNING,
        "schema_version": SCHEMA_VERSION,
        **facts,
        "network": asdict(network),
        "dataset": dataset,
        "data": data.describe(),
        "settings": asdict(settings),
        "provenance": provenance(),
    }
    title = f"{network.model}, {settings.method}: {masks.density:.2%} of the weights kept"
    figure = layer_density_figure({settings.method: masks.layer_densities()}, title)
    with atomic_folder(out) as folder:
        masks.save(folder / "masks.safetensors", {"network": asdict(network)})
        save_state(folder / "init.safetensors", state, {"network": asdict(network)})
        save_figure(figure, folder / "layers.png")
        write_json(folder / "summary.json", summary)


def prune_network(
    model: nn.Module,
    network: Network,
    data: ImageData,
    settings: PruneSettings,
    gradients: Mapping[str, Tensor] | None = None,
) -> Pruned:
    """Prune ``model``, freshly built from ``network``, in place.

    Args:
        gradients: the initial gradients over the scoring images, where they are known already.
    """
    reinit = settings.sanity == "reinit"
    pruned = prune(
        model,
        score_batches(data, seed=network.seed, images=settings.score_images, size=settings.micro_batch),
        sparsity=settings.sparsity,
        method=settings.method,
        options=settings.options,
        scorer=settings.scorer,
        budget=settings.budget,
        granularity=settings.granularity,
        num_batches=None,
        min_layer_density=settings.min_layer_density,
        keep_connected=settings.keep_connected,
        on_paths=settings.on_paths,
        sanity=None if reinit else settings.sanity,
        seed=network.seed,
        gradients=gradients,
        stream=partial(training_stream, data, seed=network.seed, size=settings.micro_batch),
    )
    if reinit:
        other = replace(network, seed=derive_seed(network.seed, "reinit")).build()
        model.load_state_dict(other.state_dict())
        pruned.masks.apply(model)
        pruned.summary = replace(pruned.summary, sanity="reinit")
    return pruned


def read_pruning(folder: Path) -> dict[str, Any]:
    """The summary that :func:`prune_to_folder` wrote; FileFormatError for any other folder, or a damaged summary."""
    return read_summary(folder, _PRUNING, "a folder written by 'autosparse prune'", _PRUNING_FACTS)
