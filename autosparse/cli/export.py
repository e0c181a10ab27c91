"""``autosparse export``: networks for other runtimes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from autosparse.cli.options import ForceOption, console, help_text
from autosparse.errors import AutoSparseError, OutputExistsError
from autosparse.experiment.stored import open_network
from autosparse.exporting import CHECKED_BATCHES, Exported, export_onnx, export_program
from autosparse.files import exclusive

FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of 'autosparse shrink', 'train' or 'prune'.")
]
OwnModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="PACKAGE.MODULE:FACTORY",
        help="The network that DIR was made from, if that is code of your own: a file alone does not choose what is "
        "run.",
    ),
]
_Exporter = Callable[[nn.Module, Tensor, Path], Exported]


def register(app: typer.Typer) -> None:
    app.command("export", help=help_text(export_command))(export_command)


def export_command(
    folder: FolderArgument,
    onnx: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write ONNX; needs the extra 'onnx' of the package.")
    ] = None,
    program: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a torch.export program (.pt2).")] = None,
    model: OwnModelOption = None,
    force: ForceOption = False,
) -> None:
    """Export the network of a folder, for any number of images at a time.

    Every file is run and compared with the network before it stays. Masked weights are zeros in it: only a shrunk
    network is a smaller file.
    """
    wanted: list[tuple[Path, _Exporter]] = []
    if onnx is not None:
        wanted.append((onnx, export_onnx))
    if program is not None:
        wanted.append((program, export_program))
    if not wanted:
        raise AutoSparseError("nothing to write: give --onnx FILE, --program FILE or both")
    if onnx is not None and program is not None and onnx.absolute() == program.absolute():
        raise AutoSparseError(f"--onnx and --program both say {onnx}: give two files")
    for path, _ in wanted:
        if path.exists() and not force:
            raise OutputExistsError(f"{path} exists: choose another file, or give --force to overwrite it")
    stored = open_network(folder, model)
    dtype = next((p.dtype for p in stored.model.parameters() if p.is_floating_point()), torch.float32)
    example = torch.zeros(1, *stored.image_shape, dtype=dtype)
    for path, export in wanted:
        with exclusive(path):
            found = export(stored.model, example, path)
        console.print(
            f"{stored.name}: wrote {path}, {found.bytes / 1e6:,.2f} MB; run at batch sizes "
            f"{' and '.join(map(str, CHECKED_BATCHES))}, its outputs differ by at most {found.difference:.1g} of the "
            "largest one",
            highlight=False,
            soft_wrap=True,
        )
