"""``autosparse demo``: the whole path on embedded data, with a report."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table as RichTable

from autosparse.cli.options import DeviceOption, console, help_text, resolve_device
from autosparse.data import ImageData, load_data
from autosparse.experiment import Network, PruneSettings, prune_to_folder, train_to_folder
from autosparse.files import exclusive
from autosparse.masks import Masks
from autosparse.provenance import provenance
from autosparse.report.demo_results import DemoResults
from autosparse.scorer.dataset import IRPRun, list_runs, read_run
from autosparse.scorer.fit import FitConfig, FittedScorer, fit_scorer
from autosparse.scorer.store import save_scorer
from autosparse.training import Callback, ProgressBar, TrainConfig

IRP_SEED = 100
SEEDS = (0, 1, 2)
SPARSITY = 0.95
METHODS = ("autos", "snip", "magnitude", "random")
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
    from autosparse.report.demo_page import demo_page
    from autosparse.report.page import write_page

    where = resolve_device(device)
    data = load_data("digits", device=where)
    with exclusive(out):
        run = _irp(data, out / "irp.h5", where)
        fitted = _scorer(run, out / "scorer.safetensors")
        accuracies = _train_all(data, out, where)
        target = f"{TARGET.model} (width {TARGET.model_args['width']})"
        results = DemoResults(run, fitted, target, 1 - SPARSITY, TRAINING.epochs, SEEDS, accuracies, _densities(out))
        write_page(out / "report.html", demo_page(results, provenance()))
    console.print(_table(results))
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


def _table(results: DemoResults) -> RichTable:
    table = RichTable(
        *results.header, title=f"{results.target} on digits: mean ± standard deviation over seeds", title_justify="left"
    )
    for row in results.rows():
        table.add_row(*row)
    return table
