"""``autosparse generate``: an IRP dataset."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

import typer

from autosparse.cli.options import (
    RUN,
    TRAINING,
    DataDirOption,
    DatasetOption,
    DeviceOption,
    ForceOption,
    ImageSizeOption,
    ModelArgOption,
    ModelOption,
    ScoreImagesOption,
    SplitSeedOption,
    console,
    help_text,
    load_images,
    resolve_device,
)
from autosparse.models import parse_model_args
from autosparse.training import ProgressBar, TrainConfig


def register(app: typer.Typer) -> None:
    app.command("generate", help=help_text(generate_command))(generate_command)


def generate_command(
    out: Annotated[Path, typer.Option(help="HDF5 file to write.")],
    model: ModelOption = "resnet20",
    model_arg: ModelArgOption = None,
    rounds: Annotated[int, typer.Option(help="How often the network is trained and pruned.")] = 16,
    final_density: Annotated[float, typer.Option(help="Fraction of the weights that survives the last round.")] = 0.01,
    schedule: Annotated[
        str, typer.Option(help="fraction: every round keeps the same fraction; count: every round removes as many.")
    ] = "fraction",
    criterion: Annotated[str, typer.Option(help="Score of a trained weight: magnitude or snip.")] = "magnitude",
    scope: Annotated[
        str, typer.Option(help="global: one threshold; layer: the same density in every layer.")
    ] = "global",
    rewind_steps: Annotated[
        int, typer.Option(help="Rewind to the state after this many steps of dense training; 0 is the initial state.")
    ] = 0,
    name: Annotated[
        str | None, typer.Option(help="Name of the run in the file.", show_default="MODEL_DATASET_seedN")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Epochs per round.", rich_help_panel=TRAINING)] = 1,
    batch_size: Annotated[int, typer.Option(help="Images per step.", rich_help_panel=TRAINING)] = 256,
    lr: Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=TRAINING)] = 0.2,
    lr_schedule: Annotated[str, typer.Option(help="one-cycle, cosine or constant.", rich_help_panel=TRAINING)] = (
        "one-cycle"
    ),
    weight_decay: Annotated[float, typer.Option(help="Weight decay.", rich_help_panel=TRAINING)] = 5e-4,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, or auto (bf16 where the hardware gains from it).", rich_help_panel=TRAINING)
    ] = "auto",
    dataset: DatasetOption = "digits",
    score_images: ScoreImagesOption = 1280,
    image_size: ImageSizeOption = None,
    split_seed: SplitSeedOption = 0,
    data_dir: DataDirOption = Path("data"),
    seed: Annotated[
        int, typer.Option(help="Fixes initial weights, data order and augmentation.", rich_help_panel=RUN)
    ] = 0,
    device: DeviceOption = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished run (or start one).", rich_help_panel=RUN)
    ] = False,
    append: Annotated[bool, typer.Option("--append", help="Add the run to an existing file.", rich_help_panel=RUN)] = (
        False
    ),
    force: ForceOption = False,
) -> None:
    """Run iterative rewind pruning on one network and record which weights survive.

    Every round applies the mask, rewinds everything else to the initial state, trains, scores and prunes. The state
    is on disk after every epoch: a killed or interrupted run goes on with --resume and ends with the same data.
    """
    from data_gen import IRPConfig, generate

    config = IRPConfig(
        model=model,
        model_args=parse_model_args(model_arg or []),
        rounds=rounds,
        final_density=final_density,
        schedule=schedule,
        criterion=criterion,
        scope=scope,
        rewind_steps=rewind_steps,
        gradient_images=score_images,
        train=TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            schedule=lr_schedule,
            weight_decay=weight_decay,
            precision=precision,
        ),
        seed=seed,
    )
    where = resolve_device(device)
    data = load_images(dataset, data_dir, image_size, split_seed, where)

    def report(rows: list[dict[str, Any]]) -> None:
        row = rows[-1]
        console.print(
            f"round {row['round'] + 1:>{len(str(rounds))}}/{rounds}  density {row['density']:>8.3%}  "
            f"loss {row['train_loss']:.4f}  validation {row['val_accuracy']:.2%}  {row['seconds']:.0f} s",
            highlight=False,
            soft_wrap=True,
        )

    with ExitStack() as bars:  # a failure must not leave its message behind half a bar
        run = generate(
            config,
            data,
            out,
            name=name,
            device=where,
            resume=resume,
            append=append,
            force=force,
            callbacks=lambda index: [bars.enter_context(closing(ProgressBar(f"round {index + 1}/{rounds}", False)))],
            on_round=report,
        )
    ticket = int((run.rounds_survived == run.num_rounds).sum())
    console.print(
        f"wrote run '{run.name}' to {out}: {len(run.rounds_survived):,} weights, {ticket:,} of them survived all "
        f"{rounds} rounds\nnext: autosparse train-scorer {out} --out scorer.safetensors",
        highlight=False,
        soft_wrap=True,
    )
