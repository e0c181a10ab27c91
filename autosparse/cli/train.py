"""``autosparse train``: what a pruning was worth."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from autosparse.cli.options import (
    IMAGES,
    RUN,
    TRAINING,
    BudgetOption,
    DataDirOption,
    DeviceOption,
    ForceOption,
    GranularityOption,
    KeepConnectedOption,
    MethodArgOption,
    MicroBatchOption,
    MinLayerDensityOption,
    ModelArgOption,
    SanityOption,
    ScoreImagesOption,
    ScorerOption,
    SparsityOption,
    SplitSeedOption,
    closing_bars,
    console,
    help_text,
    load_images,
    prune_settings,
    resolve_device,
)
from autosparse.errors import AutoSparseError
from autosparse.experiment import Network, read_pruning, train_to_folder
from autosparse.models import parse_model_args
from autosparse.pruning import SCORE_BATCH
from autosparse.training import TrainConfig


def register(app: typer.Typer) -> None:
    app.command("train", help=help_text(train_command))(train_command)


def train_command(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    masks: Annotated[Path | None, typer.Option(help="Folder of 'autosparse prune': train that pruned network.")] = None,
    dense: Annotated[bool, typer.Option("--dense", help="Train the dense network instead.")] = False,
    method: Annotated[
        str | None,
        typer.Option(help="Prune by this method, whenever it prunes: before, while or after training, or in rounds."),
    ] = None,
    sparsity: SparsityOption = None,
    method_arg: MethodArgOption = None,
    scorer: ScorerOption = None,
    budget: BudgetOption = None,
    granularity: GranularityOption = "weights",
    min_layer_density: MinLayerDensityOption = 0.0,
    keep_connected: KeepConnectedOption = False,
    sanity: SanityOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="Network, as for prune.", show_default="the one the masks were made for, or vgg16"),
    ] = None,
    model_arg: ModelArgOption = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.", rich_help_panel=TRAINING)] = 10,
    batch_size: Annotated[
        int, typer.Option(help="Images per step, over all processes together.", rich_help_panel=TRAINING)
    ] = 128,
    lr: Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=TRAINING)] = 0.1,
    schedule: Annotated[
        str, typer.Option(help="Of the learning rate: one-cycle, cosine or constant.", rich_help_panel=TRAINING)
    ] = "one-cycle",
    momentum: Annotated[float, typer.Option(help="Nesterov momentum.", rich_help_panel=TRAINING)] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.", rich_help_panel=TRAINING)] = 5e-4,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, or auto (bf16 where the hardware gains from it).", rich_help_panel=TRAINING)
    ] = "auto",
    augment: Annotated[
        bool, typer.Option(help="Random crops and flips (no flips for digits).", rich_help_panel=TRAINING)
    ] = True,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Images, as for prune.",
            show_default="those the masks were made with, or digits",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Pixels a side.", show_default="as for the masks, or the set's own", rich_help_panel=IMAGES),
    ] = None,
    score_images: ScoreImagesOption = 1280,
    split_seed: SplitSeedOption = 0,
    data_dir: DataDirOption = Path("data"),
    seed: Annotated[
        int,
        typer.Option(
            help="Fixes data order and augmentation; without --masks also the initial weights.", rich_help_panel=RUN
        ),
    ] = 0,
    device: DeviceOption = "auto",
    micro_batch: MicroBatchOption = SCORE_BATCH,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished training (or start one).", rich_help_panel=RUN)
    ] = False,
    force: ForceOption = False,
) -> None:
    """Train a pruned network, its removed weights held at zero, or a dense one for comparison.

    The network has been pruned before (--masks), or is pruned here by any method (--method), such as those that prune
    while the network trains.

    Writes log.jsonl, model.safetensors, masks.safetensors, curve.png and summary.json with the test accuracy of the
    last epoch.
    Until then its state and log are in OUT.work: a killed or interrupted training goes on with --resume and ends
    bit-equal.
    """
    if (masks is not None) + dense + (method is not None) != 1:
        raise AutoSparseError("give either --masks DIR (of 'autosparse prune'), --method NAME or --dense")
    settings = None
    if method is not None:
        settings = prune_settings(
            method,
            sparsity,
            method_arg,
            granularity,
            at_init=False,
            budget=budget,
            min_layer_density=min_layer_density,
            keep_connected=keep_connected,
            sanity=sanity,
            scorer=scorer,
            score_images=score_images,
            micro_batch=micro_batch,
        )
    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
        precision=precision,
        augment=augment,
        seed=seed,
    )
    where = resolve_device(device)
    arguments = parse_model_args(model_arg or [])
    initial_seed = seed
    if masks is not None:
        made = read_pruning(masks)
        if model is None:
            model, arguments = made["network"]["model"], {**made["network"]["model_args"], **arguments}
        dataset = dataset or made["dataset"]
        image_size = image_size or made["data"]["image_size"]
        initial_seed = made["network"]["seed"]
    model, dataset = model or "vgg16", dataset or "digits"
    data = load_images(dataset, data_dir, image_size, split_seed, where)
    network = Network(model, arguments, data.num_classes, data.channels, initial_seed)
    with closing_bars() as bars:
        result = train_to_folder(
            network,
            data,
            config,
            out,
            dataset=dataset,
            pruning=masks,
            settings=settings,
            device=where,
            resume=resume,
            force=force,
            callbacks=bars,
        )
    if os.environ.get("RANK", "0") != "0":  # torchrun: the first process speaks for all
        return
    validation = result.summary["val_accuracy"]
    kept = result.summary["pruned"]
    pruned = f", {kept['kept']:,} of {kept['total']:,} weights ({kept['density']:.4%}) kept" if kept else ""
    console.print(
        f"{model}{pruned}: test accuracy {result.test_accuracy:.2%} after {epochs} epochs"
        + ("" if validation is None else f" (validation {validation:.2%})")
        + f", {result.summary['seconds']:.0f} s\nwrote {out}",
        highlight=False,
        soft_wrap=True,
    )
