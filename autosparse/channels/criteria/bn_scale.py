import numpy as np
from torch import Tensor, nn

from autosparse.channels.criteria.base import ChannelScores, channel_criterion
from autosparse.channels.criteria.slices import batch_norms, float64, slices, weight_of
from autosparse.channels.groups import Coupling
from autosparse.errors import AutoSparseError


def _has_batch_norm(model: nn.Module, x: Tensor) -> None:
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise _no_batch_norm(model)


def _no_batch_norm(model: nn.Module) -> AutoSparseError:
    return AutoSparseError(
        f"bn-scale reads the scales of batch norm, and no removable channel of {type(model).__name__} has one: use "
        "another criterion such as l1"
    )


@channel_criterion("bn-scale", paper="Liu et al. 2017, arXiv 1708.06519 (network slimming)", check=_has_batch_norm)
def bn_scale(model: nn.Module, coupling: Coupling) -> ChannelScores:
    """The scale |γ| of the channel's batch norm, a mean over its norms if it passes several.

    Scores are not normalised: a global threshold compares them across groups. At initialisation all γ are equal and
    say nothing.

    A group without batch norm has no γ, and the paper removes nothing from it: its channels score as high as the
    highest γ, so that they go last.

    Raises:
        AutoSparseError: no group has a batch norm.
    """
    scores = {}
    for group in coupling:
        members = batch_norms(model, group)
        scales = [slices(model, member, weight_of(model, member).abs()) for member in members]
        if scales:
            scores[group.name] = np.mean([float64(gamma.double().mean(1)) for gamma in scales], axis=0)
    if not scores:
        raise _no_batch_norm(model)
    highest = max(float(values.max()) for values in scores.values())
    return {group.name: scores.get(group.name, np.full(group.width, highest)) for group in coupling}
