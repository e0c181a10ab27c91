"""``autosparse demo``: the whole path on embedded data, with a report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from rich.table import Table as RichTable

from autosparse.cli.options import DeviceOption, console, help_text, resolve_device
from autosparse.data import ImageData, load_data
from autosparse.experiment import Network, PruneSettings, prune_to_folder, train_to_folder
from autosparse.files import exclusive
from autosparse.masks import Masks
from autosparse.provenance import provenance
from autosparse.report.tables import Table
from autosparse.scorer.dataset import IRPRun, list_runs, read_run
from autosparse.scorer.fit import FitConfig, FittedScorer, fit_scorer
from autosparse.scorer.store import save_scorer
from autosparse.training import Callback, ProgressBar, TrainConfig

if TYPE_CHECKING:
    from autosparse.report.page import Section

IRP_SEED = 100
SEEDS = (0, 1, 2)
SPARSITY = 0.95
METHODS = ("autos", "snip", "magnitude", "random")
LABELS = {"autos": "AutoS", "snip": "SNIP", "magnitude": "magnitude", "random": "random, ERK", "dense": "dense"}
SOURCE = Network("resnet20", {"width": 0.5}, seed=IRP_SEED)
# So narrow and so briefly trained that the digits do not forgive every mask.
TARGET = Network("vgg11", {"width": 0.125})
TRAINING = TrainConfig(epochs=6, batch_size=64, lr=0.1)
Accuracies = dict[str, list[float]]


def register(app: typer.Typer) -> None:
    app.command("demo", help=help_text(demo_command))(demo_command)


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder to write; a second call continues or shows what is there.")] = Path(
        "demo"
    ),
    device: DeviceOption = "auto",
) -> None:
    """Run the whole path in a few minutes, without any download, and write a report.

    On scikit-learn's digits: iterative rewind pruning of a small ResNet-20, a scorer fitted to it, pruning of a
    VGG-11 that the scorer has never seen, and training of the pruned networks beside SNIP, magnitude, random and dense.
    """
    from autosparse.report.page import write_page

    where = resolve_device(device)
    data = load_data("digits", device=where)
    with exclusive(out):
        run = _irp(data, out / "irp.h5", where)
        fitted = _scorer(run, out / "scorer.safetensors")
        accuracies = _train_all(data, out, where)
        page = _page(run, fitted, accuracies, _densities(out))
        write_page(out / "report.html", page)
    console.print(_table(accuracies))
    console.print(f"report: {out / 'report.html'}", highlight=False)


def _irp(data: ImageData, path: Path, device: torch.device) -> IRPRun:
    from data_gen import IRPConfig, generate

    if not path.exists():
        config = IRPConfig(
            model=SOURCE.model,
            model_args=SOURCE.model_args,
            rounds=12,
            final_density=0.02,
            train=TrainConfig(epochs=4, batch_size=64, lr=0.1),
            gradient_images=1024,
            seed=SOURCE.seed,
        )
        console.print(f"1/3 iterative rewind pruning: {SOURCE.model}, {config.rounds} rounds on digits")
        generate(
            config,
            data,
            path,
            device=device,
            resume=True,
            callbacks=lambda index: [ProgressBar(f"round {index + 1}/{config.rounds}", leave=False)],
        )
    return read_run(path, list_runs(path)[0])


def _scorer(run: IRPRun, path: Path) -> FittedScorer:
    console.print("2/3 scorer: from initial features to survival")
    fitted = fit_scorer([run], FitConfig())
    save_scorer(path, fitted.scorer, fitted.card)
    return fitted


def _train_all(data: ImageData, out: Path, device: torch.device) -> Accuracies:
    """Test accuracies by method and seed; what is finished already is read, not run again."""
    console.print(
        f"3/3 prune {TARGET.model} to {1 - SPARSITY:.0%} and train: {len(METHODS)} methods and dense, "
        f"{len(SEEDS)} seeds"
    )
    accuracies: Accuracies = {name: [] for name in (*METHODS, "dense")}
    for name in accuracies:
        for seed in SEEDS:
            network = Network(TARGET.model, TARGET.model_args, data.num_classes, data.channels, seed)
            masks = None if name == "dense" else out / f"prune-{name}-seed{seed}"
            if masks is not None and not (masks / "summary.json").exists():
                settings = PruneSettings(
                    SPARSITY, name, scorer=str(out / "scorer.safetensors") if name == "autos" else None
                )
                prune_to_folder(network, data, settings, masks, dataset="digits", device=device)
            result = train_to_folder(
                network,
                data,
                TrainConfig(**{**asdict(TRAINING), "seed": seed}),
                out / f"train-{name}-seed{seed}",
                dataset="digits",
                pruning=masks,
                device=device,
                resume=True,
                callbacks=partial(_bar, f"{name}, seed {seed}"),
            )
            assert result.test_accuracy is not None  # they were looked at
            accuracies[name].append(result.test_accuracy)
    return accuracies


def _bar(label: str, _: str) -> list[Callback]:
    return [ProgressBar(label, leave=False)]


def _densities(out: Path) -> dict[str, dict[str, float]]:
    """Layer densities of each method for the first seed."""
    folders = {name: out / f"prune-{name}-seed{SEEDS[0]}" for name in METHODS}
    return {name: Masks.load(folder / "masks.safetensors").layer_densities() for name, folder in folders.items()}


def survival_by_layer(run: IRPRun) -> np.ndarray:
    """``[layers, rounds + 1]``: the fraction of each layer's weights alive before each round and at the end."""
    rows = []
    for layer in run.layers:
        survived = run.rounds_survived[layer.offset : layer.offset + layer.size]
        rows.append([float((survived >= index).mean()) for index in range(run.num_rounds + 1)])
    return np.array(rows)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1%} ± {statistics.stdev(values):.1%}"


def _rows(accuracies: Mapping[str, Sequence[float]]) -> list[tuple[str, ...]]:
    return [
        (LABELS[name], "100%" if name == "dense" else f"{1 - SPARSITY:.0%}", _spread(v), *(f"{a:.1%}" for a in v))
        for name, v in accuracies.items()
    ]


HEADER = ("method", "density", "test accuracy", *(f"seed {seed}" for seed in SEEDS))


def _table(accuracies: Accuracies) -> RichTable:
    title = f"{_target()} on digits: mean ± standard deviation over seeds"
    table = RichTable(*HEADER, title=title, title_justify="left")
    for row in _rows(accuracies):
        table.add_row(*row)
    return table


def _page(
    run: IRPRun, fitted: FittedScorer, accuracies: Accuracies, densities: Mapping[str, Mapping[str, float]]
) -> str:
    from autosparse.report.page import render_page

    sections = [_survival_section(run), _scorer_section(run, fitted), _density_section(densities)]
    sections.append(_accuracy_section(accuracies))
    intro = "A scorer learned on one network prunes another that it has never seen. Made by: autosparse demo"
    return render_page("AutoSparse demo", intro, sections, provenance())


def _survival_section(run: IRPRun) -> Section:
    from autosparse.report.page import Section
    from autosparse.report.survival import survival_figure

    alive = [*(float(row["density"]) for row in run.rounds), float((run.rounds_survived == run.num_rounds).mean())]
    names = [layer.name for layer in run.layers]
    figure = survival_figure(survival_by_layer(run), names, alive, "Weights alive, by layer and round")
    rounds = Table(
        header=("round", "density", "training loss", "validation accuracy"),
        rows=[
            (str(r["round"] + 1), f"{r['density']:.2%}", f"{r['train_loss']:.3f}", f"{r['val_accuracy']:.1%}")
            for r in run.rounds
        ],
        caption="Every round rewinds to the same initial state and trains under the mask of that density.",
    )
    text = (
        f"Iterative rewind pruning of {run.config['model']} on digits: {run.num_rounds} rounds, each trained for "
        f"{run.config['train']['epochs']} epochs and pruned by trained magnitude with one threshold for the whole "
        "network."
    )
    caption = (
        "Each cell is the share of a layer's weights that is still there before a round; the last column is the "
        "final ticket."
    )
    return Section("Which initial weights survive", text, [(figure, caption)], [rounds])


def _scorer_section(run: IRPRun, fitted: FittedScorer) -> Section:
    from autosparse.report.page import Section
    from autosparse.report.survival import prediction_figure

    overlaps = list(fitted.figures["scorer"].overlap)
    predictors = Table(
        header=("predictor", "R2", "Spearman", *(f"top {name}" for name in overlaps)),
        rows=[
            (name, f"{f.r2:.3f}", f"{f.spearman:.3f}", *(f"{f.overlap[key]:.3f}" for key in overlaps))
            for name, f in fitted.figures.items()
        ],
        caption="Prediction of survival on layers that the scorer was not fitted to. For magnitude and SNIP, R2 is "
        "that of the best monotone function of the score.",
    )
    text = (
        f"The scorer maps {len(fitted.card['normalisation']['columns'])} scale-free features of an initial weight "
        "to the share of rounds it survives. The figures are for held-out layers."
    )
    figure = prediction_figure(
        fitted.heldout_predicted, fitted.heldout_label, run.num_rounds, "Predicted and true survival"
    )
    return Section("What the scorer learned", text, [(figure, "A perfect scorer lies on the diagonal.")], [predictors])


def _density_section(densities: Mapping[str, Mapping[str, float]]) -> Section:
    from autosparse.report.figures import layer_density_figure
    from autosparse.report.page import Section

    figure = layer_density_figure(densities, f"Layer densities at {1 - SPARSITY:.0%}")
    text = f"{SPARSITY:.0%} of the weights removed in one shot, before training, from the same initial weights."
    return Section(
        f"Pruning {_target()} at initialisation", text, [(figure, "Where each method spends its weights.")], []
    )


def _accuracy_section(accuracies: Accuracies) -> Section:
    from autosparse.report.figures import accuracy_figure
    from autosparse.report.page import Section

    pruned = {name: values for name, values in accuracies.items() if name != "dense"}
    title = f"{_target()} on digits, {1 - SPARSITY:.0%} of the weights"
    figure = accuracy_figure(pruned, title, ("dense", accuracies["dense"]))
    text = (
        f"Test accuracy after {TRAINING.epochs} epochs with the same settings and data order for all; the last epoch "
        "counts. With three seeds and a small test set, differences of one or two points mean little."
    )
    table = Table(header=HEADER, rows=_rows(accuracies), caption="Mean ± standard deviation over seeds.")
    return Section("What the pruning was worth", text, [(figure, "Points are seeds.")], [table])


def _target() -> str:
    return f"{TARGET.model} (width {TARGET.model_args['width']})"
