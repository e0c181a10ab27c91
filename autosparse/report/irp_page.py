"""The page of an IRP file: what survived in each run, where, and what could be seen of it beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autosparse.features import feature_set
from autosparse.report.feature_survival import feature_survival_figure
from autosparse.report.page import Section, render_page
from autosparse.report.survival import survival_figure
from autosparse.report.tables import Table
from autosparse.scorer.dataset import IRPRun
from autosparse.scorer.fit import examples

_FEATURES = "scale-free"
_REACH = {"global": "with one threshold for the whole network", "layer": "the same share of every layer"}


def irp_sections(runs: Sequence[IRPRun]) -> list[Section]:
    """Two chapters a run: survival by layer, and against the features of the initial weights."""
    return [
        section
        for run in runs
        for section in (survival_section(run, f"{run.name}: which weights survive"), _feature_section(run))
    ]


def irp_page(runs: Sequence[IRPRun], sections: Sequence[Section]) -> str:
    """The page as HTML."""
    intro = "Iterative rewind pruning: train, remove the weights that ended smallest, rewind the others, again."
    provenance = {run.name: {"settings": run.config, "made by": run.provenance} for run in runs}
    return render_page("IRP data", intro, sections, provenance)


def survival_section(run: IRPRun, title: str = "Which initial weights survive") -> Section:
    """What is left of each layer in each round, and how the rounds trained."""
    alive = [*(float(row["density"]) for row in run.rounds), float((run.rounds_survived == run.num_rounds).mean())]
    names = [layer.name for layer in run.layers]
    figure = survival_figure(_survival_by_layer(run), names, alive, "Weights alive, by layer and round")
    rounds = Table(
        header=("round", "density", "training loss", "validation accuracy"),
        rows=[
            (str(r["round"] + 1), f"{r['density']:.2%}", f"{r['train_loss']:.3f}", f"{r['val_accuracy']:.1%}")
            for r in run.rounds
        ],
        caption="Every round rewinds to the same initial state and trains under the mask of that density.",
    )
    train, reach = run.config["train"], _REACH.get(run.config["scope"], run.config["scope"])
    text = (
        f"Iterative rewind pruning of {run.config['model']} on {run.data['name']}: {run.num_rounds} rounds, each "
        f"trained for {train['epochs']} epochs and pruned by trained {run.config['criterion']}, {reach}."
    )
    caption = (
        "Each cell is the share of a layer's weights that is still there before a round; the last column is the "
        "final ticket."
    )
    return Section(title, text, [(figure, caption)], [rounds])


def _feature_section(run: IRPRun) -> Section:
    data, names = examples([run], _FEATURES), feature_set(_FEATURES).names
    figure = feature_survival_figure(
        data.x.numpy(), names, data.layer, data.y.numpy(), "Survival against initial features"
    )
    text = (
        "What can be seen of a weight before any training, and how long it survived. A line that rises among all "
        "weights and not within layers tells layers apart, not weights."
    )
    caption = (
        "Mean survival of weights in twenty groups of equally many ranks; equal values stay together, and the "
        "dashed line is the mean of all. Within layers: survivals less the mean of the layer, plus that of the network."
    )
    return Section(f"{run.name}: what could be seen beforehand", text, [(figure, caption)])


def _survival_by_layer(run: IRPRun) -> np.ndarray:
    """``[layers, rounds + 1]``: the fraction of each layer's weights alive before each round and at the end."""
    rows = []
    for layer in run.layers:
        survived = run.rounds_survived[layer.offset : layer.offset + layer.size]
        rows.append([float((survived >= index).mean()) for index in range(run.num_rounds + 1)])
    return np.array(rows)
