"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from autosparse.arguments import parse_arguments
from autosparse.data import ImageData, load_data
from autosparse.errors import AutoSparseError
from autosparse.experiment import Network, PruneSettings, ShrinkSettings
from autosparse.models import parse_model_args
from autosparse.models.rebuilding import is_own_code
from autosparse.scorer.store import DEFAULT_SCORERS, load_scorer
from autosparse.training import Callback, ProgressBar

console = Console()

_SPARSITY = 0.98

# Panels of the help, in the order of their first option.
CHANNELS, IMAGES, TRAINING, RUN = "Channels", "Images", "Training", "Where and how to run"

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
MicroBatchOption = Annotated[
    int,
    typer.Option(min=1, help="Images of one backward pass when scoring: fewer need less memory.", rich_help_panel=RUN),
]
SparsityOption = Annotated[
    float | None,
    typer.Option(help="Fraction of the weights that is removed, from 0 to below 1.", show_default=str(_SPARSITY)),
]
MethodArgOption = Annotated[
    list[str] | None,
    typer.Option("--method-arg", metavar="KEY=VALUE", help="Option of the method, such as rounds=50. Repeatable."),
]
_SCORER_HELP = "For {}: a pretrained scorer (see 'autosparse list scorers') or a .safetensors file."
ScorerOption = Annotated[
    str | None,
    typer.Option(
        help=_SCORER_HELP.format("autos"),
        show_default="{weights}, or {steps} with --steps".format_map(DEFAULT_SCORERS),
    ),
]
ChannelScorerOption = Annotated[
    str | None,
    typer.Option("--scorer", help=_SCORER_HELP.format("autos-s"), show_default=DEFAULT_SCORERS["channels"]),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        help="global (one threshold for the network), uniform, erk or synexp (fixed layer densities), or like:METHOD "
        "(the layer densities of another method).",
        show_default="the method's own",
    ),
]
GranularityOption = Annotated[
    str, typer.Option(help="weights, or N:M such as 2:4 (N of every M input channels are kept).")
]
MinLayerDensityOption = Annotated[float, typer.Option(help="Every layer keeps at least this fraction.")]
KeepConnectedOption = Annotated[
    bool, typer.Option("--keep-connected", help="Every layer keeps a weight on a path from input to output.")
]
OnPathsOption = Annotated[
    bool | None,
    typer.Option(
        "--on-paths/--no-on-paths",
        help="Keep only weights on a path from input to output, the next best for the others.",
        show_default="on for autos",
    ),
]
SanityOption = Annotated[
    str | None,
    typer.Option(
        help="Sanity check: shuffle (the mask within layers), shuffle-taps, -inputs or -outputs (within kernels or "
        "channels), rewire (channels keep their counts), reinit (new initial weights) or invert (the scores)."
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto (the first accelerator).", rich_help_panel=RUN)
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.", rich_help_panel=RUN)]


# Removing channels.
ChannelsOption = Annotated[
    float | None, typer.Option(help="Keep at most this share of the channels.", rich_help_panel=CHANNELS)
]
ParamsOption = Annotated[
    float | None, typer.Option(help="Keep at most this share of the parameters.", rich_help_panel=CHANNELS)
]
FlopsOption = Annotated[
    float | None, typer.Option(help="Keep at most this share of the FLOPs.", rich_help_panel=CHANNELS)
]
LatencyOption = Annotated[
    float | None,
    typer.Option(
        help="Keep at most this share of the measured latency of inference, on this machine.", rich_help_panel=CHANNELS
    ),
]
LatencyBatchOption = Annotated[
    int, typer.Option(help="Images at a time when latency is measured.", rich_help_panel=CHANNELS)
]
LatencyByOption = Annotated[
    str,
    typer.Option(help="Latency is searched along the shares of flops, params or channels.", rich_help_panel=CHANNELS),
]
SpreadOption = Annotated[
    str | None,
    typer.Option(
        help="How the budget is spread over the layers: global (one threshold on the scores), uniform (the same share "
        "of each) or synexp (PreCrop's widths).",
        show_default="the method's own",
        rich_help_panel=CHANNELS,
    ),
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(
        "--keep", metavar="MODULE", help="Leave this module's channels alone. Repeatable.", rich_help_panel=CHANNELS
    ),
]
RoundToOption = Annotated[
    int,
    typer.Option(
        help="Channel counts are multiples of this (in narrow layers of a smaller power of two).",
        rich_help_panel=CHANNELS,
    ),
]


def help_text(command: Callable[..., None]) -> str:
    """The docstring with every paragraph on one line: the help wraps it to the terminal's width."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def prune_settings(
    method: str,
    sparsity: float | None,
    method_arg: list[str] | None,
    granularity: str,
    *,
    at_init: bool,
    **given: Any,
) -> PruneSettings:
    """The settings that options ask for, checked before anything costly is done.

    Args:
        at_init: refuse methods that prune later.
        given: further fields of :class:`~autosparse.experiment.PruneSettings`.
    """
    settings = PruneSettings(
        sparsity=_SPARSITY if sparsity is None and granularity == "weights" else sparsity,
        method=method,
        options=parse_arguments(method_arg or [], "method", "rounds=50"),
        granularity=granularity,
        **given,
    )
    settings.check(at_init=at_init)
    if settings.scorer is not None:
        load_scorer(settings.scorer)
    return settings


def shrink_settings(method: str, method_arg: list[str] | None, *, at_init: bool, **given: Any) -> ShrinkSettings:
    """As :func:`prune_settings`, for methods that remove channels."""
    options = parse_arguments(method_arg or [], "method", "rounds=5")
    settings = ShrinkSettings(method=method, options=options, **given)
    settings.check(at_init=at_init)
    if settings.scorer is not None:
        load_scorer(settings.scorer)
    return settings


def next_training(masks: Path, model: str) -> str:
    """The command that trains what was just written to the folder ``masks``."""
    own = f" --model {model}" if is_own_code(model) else ""
    return f"autosparse train --masks {masks}{own} --epochs 10 --out {masks}-trained"


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


def network_on_images(
    model: str,
    model_arg: list[str] | None,
    seed: int,
    dataset: str,
    data_dir: Path,
    image_size: int | None,
    split_seed: int,
    device: torch.device,
) -> tuple[Network, ImageData]:
    """A network for the classes and channels of a data set, and the data; what is wrong with the network is told
    before images are decoded."""
    arguments = parse_model_args(model_arg or [])
    Network(model, arguments).build()
    data = load_images(dataset, data_dir, image_size, split_seed, device)
    return Network(model, arguments, data.num_classes, data.channels, seed), data


@contextmanager
def closing_bars() -> Iterator[Callable[[str], list[Callback]]]:
    """From what is trained to a progress bar; all are closed at the end, lest an error stand behind half a bar."""
    bars: list[ProgressBar] = []

    def begin(what: str) -> list[Callback]:
        bars.append(ProgressBar(what, leave=False))
        return [bars[-1]]

    try:
        yield begin
    finally:
        for bar in bars:
            bar.close()
