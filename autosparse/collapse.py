"""What can go wrong with masks, in words: emptied layers, no path from input to output, outputs that do not vary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from autosparse.connectivity import connecting_weights, in_float64, is_connected, responds
from autosparse.layers import prunable
from autosparse.masks import Masks
from autosparse.paths import on_paths


class CollapseWarning(UserWarning):
    """A pruned network that has lost a layer, or whose output no longer depends on its input."""


def _beside(model: nn.Module, x: Tensor) -> Tensor:
    return x.to(next(iter(prunable(model).values())).device)


def path_of(model: nn.Module, masks: Masks, scores: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Weights that lead from input to output, as :func:`~autosparse.connectivity.connecting_weights` finds them.

    Raises:
        AutoSparseError: the model cannot be evaluated in float64.
    """
    with in_float64(f"keep {type(model).__name__} connected", "use min_layer_density instead"):
        return connecting_weights(model, masks, scores, _beside(model, x))


def effective_density(model: nn.Module, masks: Masks, batches: Sequence[tuple[Tensor, Tensor]] | None) -> float | None:
    """The share of the weights that are kept and lie on a path of kept ones from input to output.

    ``None`` without a batch, or where the model cannot be evaluated in float64.
    """
    try:
        return on_paths(model, masks, _beside(model, batches[0][0])).density if batches else None
    except (RuntimeError, TypeError):  # TypeError: a device without float64
        return None


def problems_of(
    model: nn.Module, masks: Masks, batches: Sequence[tuple[Tensor, Tensor]] | None
) -> tuple[bool | None, list[str]]:
    """Whether the pruned network is connected (``None``: not known), and its warnings."""
    empty = [name for name, mask in masks.items() if not bool(mask.any())]
    advice = "prevent it with --keep-connected or --min-layer-density (keep_connected=, min_layer_density= in Python)"
    problems = []
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        problems.append(f"{len(empty)} of {len(masks)} layers have no weight left: {shown}; {advice}")
    if not batches:
        return None, problems
    try:
        connected = is_connected(model, masks, _beside(model, batches[0][0]))
    except (RuntimeError, TypeError) as error:  # TypeError: a device without float64
        problems.append(f"could not check that the output depends on the input: {str(error).partition(chr(10))[0]}")
        return None, problems
    if not connected:
        problems.append(f"the output no longer depends on the input: no path of kept weights is left; {advice}")
    elif not responds(model, masks, _beside(model, batches[0][0])):
        problems.append(
            "the untrained output is the same for all images: the paths that are left are blocked by ReLUs, so "
            "training has nothing to start from; use --min-layer-density (min_layer_density= in Python)"
        )
    return connected, problems
