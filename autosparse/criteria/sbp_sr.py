from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from autosparse.criteria.base import Scores, criterion
from autosparse.criteria.gradients import Batches, LossFn, untouched
from autosparse.criteria.hessian import MeanLoss
from autosparse.layers import prunable
from autosparse.rescaling import RELU_VARIANCE, StableResiduals, edge_of_chaos_factors


@criterion("sbp-sr", paper="Hayou et al. 2021, arXiv 2002.08797")
def sbp_sr(
    model: nn.Module,
    batches: Batches,
    loss_fn: LossFn,
    example: Tensor,
    masks: Mapping[str, Tensor],
    *,
    variance: float = RELU_VARIANCE,
    stable_residuals: bool = True,
) -> Scores:
    """Connection sensitivity |w ⊙ ∇L| at the edge of chaos, with residual branches scaled by L^(-1/2).

    Confirmed: the score is SNIP's, at an initialisation on the edge of chaos, of a Stable ResNet; networks without
    shortcuts are rescaled after pruning (:func:`autosparse.rescaling.edge_of_chaos`). Chosen here, because it could not
    be verified: the network is brought to the edge by rescaling each layer as it was initialised rather than by a new
    initialisation, so that the scores are of the weights that will be trained; L counts the residual sums; and the
    scaled branches belong to the score alone, the network that is trained has none.

    Batch norm after a layer cancels its scale in the output, and the gradient's scale cancels the weight's in the
    score. In such networks the rescaling acts through the layers that no batch norm follows, mostly the classifier,
    and the difference from SNIP is the scaled branches.

    Args:
        variance: σ_w² of the edge of chaos; 2 is for ReLU. Each layer is rescaled to fan_in · mean(w²) = σ_w².
        stable_residuals: scale the branches of residual sums (:class:`autosparse.rescaling.StableResiduals`, which says
            how they are found). Networks without any are not changed by it.
    """
    factors = edge_of_chaos_factors(model, masks, variance=variance)
    weights = {name: weight.detach() * factors[name] for name, weight in prunable(model).items()}
    branches = _residual_sums(model, example) if stable_residuals else 0
    with StableResiduals(branches**-0.5) if branches else nullcontext():
        gradients = MeanLoss(model, list(batches), loss_fn, "sbp-sr").gradient(weights)
    return {name: (weight * gradients[name]).abs() for name, weight in weights.items()}


def _residual_sums(model: nn.Module, example: Tensor) -> int:
    with untouched(model), torch.no_grad(), StableResiduals(1.0) as residuals:
        model.eval()
        model(example)
    return residuals.found
