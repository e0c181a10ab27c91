"""``autosparse shrink``: a smaller network at initialisation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from tqdm import tqdm

from autosparse.channels.request import LATENCY_BATCH
from autosparse.channels.widths import ROUND_TO
from autosparse.cli.options import (
    RUN,
    ChannelScorerOption,
    ChannelsOption,
    DataDirOption,
    DatasetOption,
    DeviceOption,
    FlopsOption,
    ForceOption,
    ImageSizeOption,
    KeepOption,
    LatencyBatchOption,
    LatencyByOption,
    LatencyOption,
    MethodArgOption,
    MicroBatchOption,
    ModelArgOption,
    ModelOption,
    ParamsOption,
    RoundToOption,
    ScoreImagesOption,
    SplitSeedOption,
    SpreadOption,
    console,
    help_text,
    network_on_images,
    next_training,
    resolve_device,
    shrink_settings,
)
from autosparse.experiment import shrink_to_folder
from autosparse.files import require_absent
from autosparse.pruning import SCORE_BATCH
from autosparse.shrinking import ShrinkSummary


def register(app: typer.Typer) -> None:
    app.command("shrink", help=help_text(shrink_command))(shrink_command)


def shrink_command(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    model: ModelOption = "resnet20",
    model_arg: ModelArgOption = None,
    flops: FlopsOption = None,
    params: ParamsOption = None,
    channels: ChannelsOption = None,
    latency: LatencyOption = None,
    latency_batch: LatencyBatchOption = LATENCY_BATCH,
    latency_by: LatencyByOption = "flops",
    method: Annotated[
        str, typer.Option(help="A method that removes channels at initialisation ('autosparse list methods').")
    ] = "precrop",
    method_arg: MethodArgOption = None,
    spread: SpreadOption = None,
    keep: KeepOption = None,
    round_to: RoundToOption = ROUND_TO,
    scorer: ChannelScorerOption = None,
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
    """Remove channels from a network at initialisation: what is left is smaller, and really faster.

    At least one of --flops, --params, --channels and --latency says how much is kept at most. Channels that additions,
    depthwise convolutions or concatenations tie together go together; the classifier and the images stay.

    Writes model.safetensors and manifest.json, which autosparse.load(DIR) turns into a plain network, summary.json
    and widths.png.
    """
    settings = shrink_settings(
        method,
        method_arg,
        at_init=True,
        channels=channels,
        params=params,
        flops=flops,
        latency=latency,
        latency_batch=latency_batch,
        latency_by=latency_by,
        spread=spread,
        keep=tuple(keep or ()),
        round_to=round_to,
        scorer=scorer,
        score_images=score_images,
        micro_batch=micro_batch,
    )
    require_absent(out, force)
    where = resolve_device(device)
    network, data = network_on_images(model, model_arg, seed, dataset, data_dir, image_size, split_seed, where)
    with tqdm(desc="latency", unit="network", leave=False, disable=None if latency else True) as bar:

        def progress(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        summary = shrink_to_folder(
            network, data, settings, out, dataset=dataset, device=where, force=force, progress=progress
        ).summary
    console.print(_group_table(summary))
    in_time = f", {summary.reached['latency']:.1%} of the latency" if "latency" in summary.reached else ""
    scored = f" (scorer {summary.scorer})" if summary.scorer else ""
    console.print(
        f"{model}: {_change('parameters', summary.params)}, {_change('FLOPs', summary.flops)}{in_time} by "
        f"{summary.method}{scored}, in {summary.seconds:.1f} s\n"
        + (f"note: {summary.note}\n" if summary.note else "")
        + f"wrote {out}\nnext: {next_training(out, model)}",
        highlight=False,
        soft_wrap=True,
    )


def _change(what: str, counts: tuple[int, int]) -> str:
    before, after = counts
    return f"{after:,} of {before:,} {what} ({after / before:.1%})"


def _group_table(summary: ShrinkSummary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("channels of")
    for title in ("before", "after", "share"):
        table.add_column(title, justify="right")
    for group in summary.groups:
        table.add_row(group.name, f"{group.before:,}", f"{group.after:,}", f"{group.after / group.before:.0%}")
    return table
