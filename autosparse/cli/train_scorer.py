"""``autosparse train-scorer``: a scorer from IRP data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from tqdm import tqdm

from autosparse.cli.options import RUN, TRAINING, ForceOption, console, help_text
from autosparse.errors import AutoSparseError
from autosparse.files import exclusive, require_absent
from autosparse.scorer.dataset import list_runs, read_run
from autosparse.scorer.fit import FitConfig, fit_scorer
from autosparse.scorer.metrics import Prediction
from autosparse.scorer.store import card_path, save_scorer


def register(app: typer.Typer) -> None:
    app.command("train-scorer", help=help_text(train_scorer_command))(train_scorer_command)


def train_scorer_command(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="HDF5 files of 'autosparse generate'; all their runs are used."),
    ],
    out: Annotated[Path, typer.Option(help="NAME.safetensors to write; the card goes to NAME.json.")],
    features: Annotated[
        str,
        typer.Option(
            help="Feature set: scale-free; state (at any moment of a training, so that the scorer can guide --steps); "
            "or paper (as published)."
        ),
    ] = "scale-free",
    network: Annotated[str, typer.Option(help="linear, mlp (small and fast), or cnn (as published).")] = "mlp",
    loss: Annotated[
        str,
        typer.Option(
            help="What is minimised: regression (of the survival, as published), classification (survival of a round) "
            "or ranking (of pairs; R2 is then without meaning)."
        ),
    ] = "regression",
    holdout: Annotated[
        str, typer.Option(help="What is held out to measure on: run, layer, or auto (runs if there are several).")
    ] = "auto",
    holdout_fraction: Annotated[float, typer.Option(help="Share of the runs or layers that is held out.")] = 0.25,
    refit: Annotated[bool, typer.Option(help="Once measured, fit again on everything.")] = True,
    epochs: Annotated[int, typer.Option(help="Passes over the weights.", rich_help_panel=TRAINING)] = 10,
    batch_size: Annotated[int, typer.Option(help="Weights per step.", rich_help_panel=TRAINING)] = 2048,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.", rich_help_panel=TRAINING)] = 1e-3,
    max_weights: Annotated[
        int, typer.Option(help="Fit on at most this many weights, drawn at random.", rich_help_panel=TRAINING)
    ] = 2_000_000,
    seed: Annotated[
        int, typer.Option(help="Fixes the split, the initial scorer and the order of weights.", rich_help_panel=RUN)
    ] = 0,
    force: ForceOption = False,
) -> None:
    """Fit a scorer that predicts a weight's survival from its initial features.

    Prints, on held-out runs or layers, how well it predicts (R2, Spearman, overlap of its top weights with the true
    survivors) beside magnitude and SNIP as predictors.
    """
    config = FitConfig(
        features=features,
        network=network,
        loss=loss,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        holdout=holdout,
        holdout_fraction=holdout_fraction,
        refit=refit,
        max_weights=max_weights,
        seed=seed,
    )
    if out.suffix != ".safetensors":
        raise AutoSparseError(f"--out {out} must end in .safetensors; the card goes beside it as .json")
    with exclusive(out):
        require_absent(out, force)
        require_absent(card_path(out), force)
        runs = [read_run(path, name) for path in files for name in list_runs(path)]
        with tqdm(total=None, desc="fit", unit="epoch", leave=False, disable=None) as bar:

            def progress(epoch: int, total: int, loss: float) -> None:
                bar.set_postfix_str(f"{epoch}/{total}, loss {loss:.5f}")
                bar.update()

            fitted = fit_scorer(runs, config, progress)
        save_scorer(out, fitted.scorer, fitted.card)
    held = fitted.card["held_out"]
    console.print(
        _figures(fitted.figures, f"held out: {len(held['groups'])} {held['kind']}(s), {held['weights']:,} weights")
    )
    console.print(f"wrote {out} and {card_path(out).name}", highlight=False, soft_wrap=True)


def _figures(figures: dict[str, Prediction], title: str) -> Table:
    overlaps = list(next(iter(figures.values())).overlap)
    table = Table(
        "predictor", "R2", "Spearman", *(f"top {name}" for name in overlaps), title=title, title_justify="left"
    )
    for name, figure in figures.items():
        shares = (f"{figure.overlap[key]:.3f}" for key in overlaps)
        table.add_row(name, f"{figure.r2:.3f}", f"{figure.spearman:.3f}", *shares)
    return table
