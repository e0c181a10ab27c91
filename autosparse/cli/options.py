"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from autosparse.data import ImageData, load_data
from autosparse.errors import AutoSparseError

console = Console()

# Panels of the help, in the order of their first option.
IMAGES, TRAINING, RUN = "Images", "Training", "Where and how to run"

ModelOption = Annotated[
    str,
    typer.Option(
        help="Network: a name from 'autosparse list models', torchvision:NAME, timm:NAME or package.module:factory."
    ),
]
ModelArgOption = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="KEY=VALUE", help="Argument for the network, such as width=0.5. Repeatable."),
]
DatasetOption = Annotated[
    str,
    typer.Option(
        help="digits (embedded), fashion-mnist, cifar10, cifar100, or imagefolder:PATH "
        "(a folder or .tar.gz with train/CLASS/* and test/CLASS/* or val/CLASS/*).",
        rich_help_panel=IMAGES,
    ),
]
DataDirOption = Annotated[
    Path, typer.Option(help="Where data sets are downloaded and decoded images are cached.", rich_help_panel=IMAGES)
]
ImageSizeOption = Annotated[
    int | None, typer.Option(help="Pixels a side.", show_default="the set's own", rich_help_panel=IMAGES)
]
SplitSeedOption = Annotated[
    int, typer.Option(help="Chooses which training images are set aside for validation.", rich_help_panel=IMAGES)
]
ScoreImagesOption = Annotated[
    int,
    typer.Option(min=1, help="Training images over which initial gradients are averaged.", rich_help_panel=IMAGES),
]
DeviceOption = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto (the first accelerator).", rich_help_panel=RUN)
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.", rich_help_panel=RUN)]


def help_text(command: Callable[..., None]) -> str:
    """The docstring with every paragraph on one line: the help wraps it to the terminal's width."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def resolve_device(text: str) -> torch.device:
    """The device called ``text``; ``auto`` is an accelerator (under torchrun this process's own), otherwise the CPU."""
    if text == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        reason = str(error).partition("\n")[0]
        raise AutoSparseError(f"device '{text}' is not usable here ({reason}): try --device auto") from None
    return device


def load_images(
    dataset: str, data_dir: Path, image_size: int | None, split_seed: int, device: torch.device
) -> ImageData:
    return load_data(dataset, data_dir=data_dir, image_size=image_size, seed=split_seed, device=device)
