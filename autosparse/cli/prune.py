"""``autosparse prune``: masks at initialisation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from autosparse.cli.options import (
    RUN,
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
from autosparse.experiment import Network, PruneSettings, prune_to_folder
from autosparse.files import require_absent
from autosparse.models import parse_model_args
from autosparse.pruning import PruneSummary, check_request
from autosparse.scorer.store import DEFAULT_SCORER, load_scorer


def register(app: typer.Typer) -> None:
    app.command("prune", help=help_text(prune_command))(prune_command)


def prune_command(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    model: ModelOption = "vgg16",
    model_arg: ModelArgOption = None,
    sparsity: Annotated[float, typer.Option(help="Fraction of the weights that is removed, from 0 to below 1.")] = 0.98,
    method: Annotated[
        str, typer.Option(help="autos, snip, magnitude or random; see 'autosparse list methods'.")
    ] = "autos",
    scorer: Annotated[
        str | None,
        typer.Option(
            help="For autos: a pretrained scorer (see 'autosparse list scorers') or a .safetensors file.",
            show_default=DEFAULT_SCORER,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="global (one threshold for the network), uniform or erk (fixed layer densities).",
            show_default="the method's own",
        ),
    ] = None,
    min_layer_density: Annotated[float, typer.Option(help="Every layer keeps at least this fraction.")] = 0.0,
    keep_connected: Annotated[
        bool, typer.Option("--keep-connected", help="Every layer keeps a weight on a path from input to output.")
    ] = False,
    dataset: DatasetOption = "digits",
    score_images: ScoreImagesOption = 1280,
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
    settings = PruneSettings(sparsity, method, scorer, budget, min_layer_density, keep_connected, score_images)
    check_request(method, budget, sparsity, min_layer_density)
    if scorer is not None:
        load_scorer(scorer)
    require_absent(out, force)
    where = resolve_device(device)
    arguments = parse_model_args(model_arg or [])
    Network(model, arguments).build()  # a wrong name is told before the images are decoded
    data = load_images(dataset, data_dir, image_size, split_seed, where)
    network = Network(model, arguments, data.num_classes, data.channels, seed)
    pruned = prune_to_folder(network, data, settings, out, dataset=dataset, device=where, force=force)
    summary = pruned.summary
    console.print(_layer_table(summary))
    by = f"{summary.method} (scorer {summary.scorer})" if summary.scorer else summary.method
    console.print(
        f"{model}: kept {summary.kept:,} of {summary.total:,} weights ({summary.density:.4%}) by {by}, "
        f"{summary.budget} budget, in {summary.seconds:.1f} s\nwrote {out}\n"
        f"next: autosparse train --masks {out} --epochs 10 --out {out}-trained",
        highlight=False,
        soft_wrap=True,
    )


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
