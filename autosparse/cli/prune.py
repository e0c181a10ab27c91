"""``autosparse prune``: masks at initialisation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from tqdm import tqdm

from autosparse.cli.options import (
    RUN,
    BudgetOption,
    DataDirOption,
    DatasetOption,
    DeviceOption,
    ForceOption,
    GranularityOption,
    ImageSizeOption,
    KeepConnectedOption,
    MethodArgOption,
    MicroBatchOption,
    MinLayerDensityOption,
    ModelArgOption,
    ModelOption,
    OnPathsOption,
    SanityOption,
    ScoreImagesOption,
    ScorerOption,
    SparsityOption,
    SplitSeedOption,
    console,
    help_text,
    network_on_images,
    next_training,
    prune_settings,
    resolve_device,
)
from autosparse.cost import counted_images
from autosparse.experiment import prune_to_folder
from autosparse.files import require_absent
from autosparse.pruning import SCORE_BATCH, PruneSummary


def register(app: typer.Typer) -> None:
    app.command("prune", help=help_text(prune_command))(prune_command)


def prune_command(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    model: ModelOption = "vgg16",
    model_arg: ModelArgOption = None,
    sparsity: SparsityOption = None,
    method: Annotated[
        str,
        typer.Option(
            help="A method that prunes at initialisation ('autosparse list methods'), or your package.module:function."
        ),
    ] = "autos",
    method_arg: MethodArgOption = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Batches to train a copy on before the mask is final, for methods that do so: more buy a better mask; "
            "give some hundreds, fewer are often worth no more than none.",
            show_default="the method's own",
        ),
    ] = None,
    scorer: ScorerOption = None,
    budget: BudgetOption = None,
    granularity: GranularityOption = "weights",
    min_layer_density: MinLayerDensityOption = 0.0,
    keep_connected: KeepConnectedOption = False,
    on_paths: OnPathsOption = None,
    sanity: SanityOption = None,
    dataset: DatasetOption = "digits",
    score_images: ScoreImagesOption = 1280,
    micro_batch: MicroBatchOption = SCORE_BATCH,
    image_size: ImageSizeOption = None,
    split_seed: SplitSeedOption = 0,
    data_dir: DataDirOption = Path("data"),
    seed: Annotated[
        int, typer.Option(help="Fixes the initial weights and the images to score with.", rich_help_panel=RUN)
    ] = 0,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Prune a network at initialisation, in one shot.

    Writes masks.safetensors, init.safetensors (the initial state), summary.json and layers.png.
    Exactly round((1 - sparsity) * N) of the N weights of convolutions and linear layers are kept.
    """
    settings = prune_settings(
        method,
        sparsity,
        [*(method_arg or []), *([] if steps is None else [f"steps={steps}"])],
        granularity,
        at_init=True,
        budget=budget,
        min_layer_density=min_layer_density,
        keep_connected=keep_connected,
        on_paths=on_paths,
        sanity=sanity,
        scorer=scorer,
        score_images=score_images,
        micro_batch=micro_batch,
    )
    require_absent(out, force)
    where = resolve_device(device)
    network, data = network_on_images(model, model_arg, seed, dataset, data_dir, image_size, split_seed, where)
    with tqdm(desc="pruning", unit=" images", leave=False, disable=None) as bar, counted_images(bar.update):
        summary = prune_to_folder(network, data, settings, out, dataset=dataset, device=where, force=force).summary
    console.print(_layer_table(summary))
    by = f"{summary.method} (scorer {summary.scorer})" if summary.scorer else summary.method
    console.print(
        f"{model}: kept {summary.kept:,} of {summary.total:,} weights ({_densities(summary)}) by {by}, "
        + ("" if summary.granularity != "weights" else f"{summary.budget} budget, ")
        + (f"sanity check {summary.sanity}, " if summary.sanity else "")
        + f"in {summary.seconds:.1f} s"
        + (f", from {summary.images:,} images" if summary.images else "")
        + f"\nwrote {out}\n"
        f"next: {next_training(out, model)}",
        highlight=False,
        soft_wrap=True,
    )


def _densities(summary: PruneSummary) -> str:
    """The density, and what it is without weights that do nothing where that is another number."""
    if summary.effective_density in (None, summary.density):
        return f"{summary.density:.4%}"
    return f"{summary.density:.4%}, {summary.effective_density:.4%} on paths from input to output"


def _layer_table(summary: PruneSummary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer")
    table.add_column("shape")
    for title in ("weights", "kept", "density"):
        table.add_column(title, justify="right")
    for layer in summary.layers:
        style = "red" if layer.kept == 0 else None
        shape = "x".join(map(str, layer.shape))
        table.add_row(layer.name, shape, f"{layer.weights:,}", f"{layer.kept:,}", f"{layer.density:.3%}", style=style)
    return table
