"""``autosparse measure``: what a network costs, beside another one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from torch import nn
from tqdm import tqdm

from autosparse.cli.export import FolderArgument, OwnModelOption
from autosparse.cli.options import RUN, DeviceOption, console, help_text, resolve_device
from autosparse.errors import AutoSparseError
from autosparse.experiment import Network
from autosparse.experiment.stored import StoredNetwork, open_network
from autosparse.measuring import Measurement, Spread, measure
from autosparse.provenance import provenance


def register(app: typer.Typer) -> None:
    app.command("measure", help=help_text(measure_command))(measure_command)


def measure_command(
    folder: FolderArgument,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|NAME",
            help="Compare with the network of another folder, or with a network by name.",
            show_default="the network that DIR was shrunk from",
        ),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Compare with nothing.")] = False,
    batch_sizes: Annotated[
        str, typer.Option(metavar="N,N,...", help="Images at a time; the training step takes the most.")
    ] = "1,128",
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels a side.", show_default="as DIR was made for")
    ] = None,
    model: OwnModelOption = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="For each figure that is timed.", rich_help_panel=RUN)] = 3.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the CPU.", show_default="torch's own choice", rich_help_panel=RUN)
    ] = None,
    device: DeviceOption = "auto",
    summary: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Measure the network of a folder: parameters, FLOPs, bytes on disk, latency, a training step and peak memory.

    Two networks are timed in turn, so that what else the machine does meets both alike. Times are medians with the
    10th and 90th percentile.
    """
    sizes = _batch_sizes(batch_sizes)
    if alone and against is not None:
        raise AutoSparseError("--alone and --against exclude each other: give one of them")
    where = resolve_device(device)
    stored = open_network(folder, model)
    channels, *shape = stored.image_shape
    image_shape = (channels, *((image_size, image_size) if image_size else shape))
    networks: dict[str, nn.Module] = {stored.name: stored.model}
    other = None if alone else _other(stored, against, model)
    if other is not None:
        networks[other[0] if other[0] != stored.name else f"{other[0]} ({against})"] = other[1]
    with tqdm(total=len(sizes) + 1 + len(networks), desc="measure", leave=False, disable=None) as bar:

        def progress(what: str) -> None:
            bar.set_postfix_str(what)
            bar.update()

        found = measure(
            networks, image_shape, batch_sizes=sizes, device=where, threads=threads, seconds=seconds, progress=progress
        )
    if summary:
        typer.echo(json.dumps({**found.as_dict(), "provenance": provenance()}, indent=2))
        return
    console.print(_table(found))
    console.print(_caption(found), highlight=False, style="dim")


def _batch_sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise AutoSparseError(f"--batch-sizes is '{text}': give whole numbers such as 1,128") from None
    if min(sizes) < 1:
        raise AutoSparseError(f"--batch-sizes is '{text}': give numbers of at least 1")
    return sizes


def _other(stored: StoredNetwork, against: str | None, own: str | None) -> tuple[str, nn.Module] | None:
    """The network to compare with, and its name; ``None`` for none."""
    if against is None:
        return None if stored.dense is None or stored.network is None else (stored.network["model"], stored.dense)
    if Path(against).is_dir():
        other = open_network(Path(against), own)
        return other.name, other.model
    classes = 10 if stored.network is None else stored.network["num_classes"]
    return against, Network(against, {}, classes, stored.image_shape[0]).build()


def _table(found: Measurement) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for name in found.costs:
        table.add_column(name, justify="right")
    if found.speedup is not None:
        table.add_column("ratio", justify="right")
    for row in _rows(found):
        table.add_row(*row)
    return table


def _rows(found: Measurement) -> Iterator[list[str]]:
    costs = list(found.costs.values())

    def counted(title: str, values: Sequence[int | None], text: Callable[[int], str]) -> list[str]:
        cells = ["–" if value is None else text(value) for value in values]
        if found.speedup is not None:
            this, other = values
            cells.append(f"{other / this:.2f}x" if this and other else "–")
        return [title, *cells]

    def timed(title: str, spreads: Sequence[Spread], ratio: Spread | None) -> list[str]:
        cells = [_milliseconds(spread) for spread in spreads]
        return [title, *cells] + ([] if ratio is None else [f"{ratio.median:.2f}x ({ratio.low:.2f}–{ratio.high:.2f})"])

    yield counted("parameters", [cost.params for cost in costs], "{:,}".format)
    yield counted("of these not zero", [cost.nonzeros for cost in costs], "{:,}".format)
    yield counted("FLOPs of one image", [cost.flops for cost in costs], lambda value: f"{value / 1e6:,.2f} M")
    yield counted("on disk", [cost.disk for cost in costs], _megabytes)
    ratios = found.speedup.latency if found.speedup is not None else {}
    for batch in found.batch_sizes:
        yield timed(f"latency, batch {batch}", [cost.latency[batch] for cost in costs], ratios.get(batch))
        yield counted("  peak memory", [cost.inference_peak[batch] for cost in costs], _megabytes)
    step = found.speedup.step if found.speedup is not None else None
    yield timed(f"training step, batch {max(found.batch_sizes)}", [cost.step for cost in costs], step)
    yield counted("  peak memory", [cost.step_peak for cost in costs], _megabytes)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"


def _milliseconds(spread: Spread) -> str:
    median, low, high = (1000 * value for value in (spread.median, spread.low, spread.high))
    digits = 3 if median < 1 else max(0, 3 - len(str(int(median))))
    return f"{median:,.{digits}f} ms ({low:,.{digits}f}–{high:,.{digits}f})"


def _caption(found: Measurement) -> str:
    first = next(iter(found.costs.values()))
    counts = [spread.count for spread in (*first.latency.values(), first.step)]
    threads = f"{found.threads} thread{'' if found.threads == 1 else 's'}"
    times = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return (
        f"images {'x'.join(map(str, found.image_shape))} on {found.device} ({found.processor}), {threads}; medians of "
        f"{times} repetitions (10th to 90th percentile)"
        + (", networks in turn; ratio: the other network over this one" if found.speedup is not None else "")
    )
