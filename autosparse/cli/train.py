"""``autosparse train``: what a pruning was worth."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from autosparse.channels.recipes import CHANNEL_RECIPES
from autosparse.channels.request import LATENCY_BATCH
from autosparse.channels.store import is_shrunk
from autosparse.channels.widths import ROUND_TO
from autosparse.cli.options import (
    CHANNELS,
    IMAGES,
    RUN,
    TRAINING,
    BudgetOption,
    ChannelsOption,
    DataDirOption,
    DeviceOption,
    FlopsOption,
    ForceOption,
    GranularityOption,
    KeepConnectedOption,
    KeepOption,
    LatencyBatchOption,
    LatencyByOption,
    LatencyOption,
    MethodArgOption,
    MicroBatchOption,
    MinLayerDensityOption,
    ModelArgOption,
    OnPathsOption,
    ParamsOption,
    RoundToOption,
    SanityOption,
    ScoreImagesOption,
    ScorerOption,
    SparsityOption,
    SplitSeedOption,
    SpreadOption,
    closing_bars,
    console,
    help_text,
    load_images,
    prune_settings,
    resolve_device,
    shrink_settings,
)
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.experiment import (
    Network,
    PruneSettings,
    ShrinkSettings,
    read_pruning,
    read_shrinking,
    train_to_folder,
)
from autosparse.models import parse_model_args
from autosparse.models.rebuilding import is_own_code
from autosparse.pruning import SCORE_BATCH
from autosparse.training import TrainConfig


def register(app: typer.Typer) -> None:
    app.command("train", help=help_text(train_command))(train_command)


def train_command(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    masks: Annotated[
        Path | None,
        typer.Option(help="Folder of 'autosparse prune' or 'autosparse shrink': train that pruned network."),
    ] = None,
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
    on_paths: OnPathsOption = None,
    sanity: SanityOption = None,
    where: Annotated[
        str | None,
        typer.Option(
            help="What is removed: weights (a mask) or channels (a smaller network).",
            show_default="what the method removes",
            rich_help_panel=CHANNELS,
        ),
    ] = None,
    when: Annotated[
        str | None,
        typer.Option(
            help="When channels are removed: init, epoch, epi, early-bird or gradient-flow.",
            show_default="the method's own",
            rich_help_panel=CHANNELS,
        ),
    ] = None,
    what: Annotated[
        str | None,
        typer.Option(
            help="The criterion that ranks channels, such as taylor.",
            show_default="the method's own",
            rich_help_panel=CHANNELS,
        ),
    ] = None,
    flops: FlopsOption = None,
    params: ParamsOption = None,
    channels: ChannelsOption = None,
    latency: LatencyOption = None,
    latency_batch: LatencyBatchOption = LATENCY_BATCH,
    latency_by: LatencyByOption = "flops",
    spread: SpreadOption = None,
    keep: KeepOption = None,
    round_to: RoundToOption = ROUND_TO,
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
    while the network trains. Methods that remove channels can be put together from their parts: when, what and how
    much (--where channels --when epi --what taylor --flops 0.5).

    Writes log.jsonl, model.safetensors, masks.safetensors (or, where channels were removed, manifest.json and
    widths.png), curve.png and summary.json with the test accuracy of the last epoch.
    Until then its state and log are in OUT.work: a killed or interrupted training goes on with --resume and ends
    bit-equal.
    """
    by_parts = when is not None or what is not None
    if (masks is not None) + dense + (method is not None or by_parts) != 1:
        raise AutoSparseError(
            "give either --masks DIR (of 'autosparse prune' or 'shrink'), --method NAME (--when, --what) or --dense"
        )
    settings: PruneSettings | ShrinkSettings | None = None
    shares = {"flops": flops, "params": params, "channels": channels, "latency": latency}
    by_channels: dict[str, Any] = {"when": when, **shares, "spread": spread}
    by_weights = {"sparsity": sparsity, "budget": budget, "sanity": sanity}
    if method is not None or by_parts:
        scoring = {"scorer": scorer, "score_images": score_images, "micro_batch": micro_batch}
        if _removes_channels(method, where, what is not None):
            _refuse(by_weights, "removes channels")
            settings = shrink_settings(
                method or what or "l2",
                method_arg,
                at_init=False,
                criterion=what,
                keep=tuple(keep or ()),
                round_to=round_to,
                latency_batch=latency_batch,
                latency_by=latency_by,
                **by_channels,
                **scoring,
            )
        else:
            assert method is not None  # _removes_channels
            _refuse(by_channels, "removes single weights")
            settings = prune_settings(
                method,
                sparsity,
                method_arg,
                granularity,
                at_init=False,
                budget=budget,
                min_layer_density=min_layer_density,
                keep_connected=keep_connected,
                on_paths=on_paths,
                sanity=sanity,
                **scoring,
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
    device_ = resolve_device(device)
    arguments = parse_model_args(model_arg or [])
    initial_seed = seed
    if masks is not None:
        made = read_shrinking(masks) if is_shrunk(masks) else read_pruning(masks)
        built = made["network"]["model"]
        if model is None and is_own_code(built):
            raise AutoSparseError(
                f"{masks} was made from {built}, code of your own that is not run because a file says so: add "
                f"--model {built}"
            )
        if model is None or (model == built and is_own_code(built)):
            model, arguments = built, {**made["network"]["model_args"], **arguments}
        dataset = dataset or made["dataset"]
        image_size = image_size or made["data"]["image_size"]
        initial_seed = made["network"]["seed"]
    model, dataset = model or "vgg16", dataset or "digits"
    data = load_images(dataset, data_dir, image_size, split_seed, device_)
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
            device=device_,
            resume=resume,
            force=force,
            callbacks=bars,
        )
    if os.environ.get("RANK", "0") != "0":  # torchrun: the first process speaks for all
        return
    validation = result.summary["val_accuracy"]
    pruned = _what_was_pruned(result.summary["pruned"])
    console.print(
        f"{model}{pruned}: test accuracy {result.test_accuracy:.2%} after {epochs} epochs"
        + ("" if validation is None else f" (validation {validation:.2%})")
        + f", {result.summary['seconds']:.0f} s\nwrote {out}",
        highlight=False,
        soft_wrap=True,
    )


def _removes_channels(method: str | None, where: str | None, by_parts: bool) -> bool:
    """Whether these options ask for channels; AutoSparseError where they contradict each other."""
    if where not in (None, "weights", "channels"):
        raise UnknownNameError("kind of thing to remove", str(where), ["weights", "channels"])
    if where == "channels" or (where is None and method in CHANNEL_RECIPES):
        return True
    if method is None or by_parts:
        raise AutoSparseError(
            "--when and --what put together a method that removes channels: add --where channels, or name a method for "
            "weights with --method alone"
        )
    if method in CHANNEL_RECIPES:
        raise AutoSparseError(f"method '{method}' removes channels: leave out --where {where}")
    return False


def _refuse(options: Mapping[str, Any], what: str) -> None:
    """AutoSparseError naming an option that does not belong to a method that does ``what``."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise AutoSparseError(f"--{given[0]} does not go with a method that {what}: see 'autosparse train --help'")


def _what_was_pruned(kept: Mapping[str, Any]) -> str:
    if not kept:
        return ""
    if "channels" not in kept:
        return f", {kept['kept']:,} of {kept['total']:,} weights ({kept['density']:.4%}) kept"
    reached = kept["channels"]["reached"]
    early = f" after epoch {kept['trigger']['pruned_at_epoch']}" if kept["trigger"] else ""
    return f", {reached['params']:.1%} of the parameters and {reached['flops']:.1%} of the FLOPs kept{early}"
