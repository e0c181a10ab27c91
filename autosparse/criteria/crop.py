from collections.abc import Mapping

from torch import Tensor, nn

from autosparse.criteria.base import Scores, criterion
from autosparse.criteria.gradients import Batches, LossFn
from autosparse.criteria.hessian import MeanLoss, check_second_derivatives, curvature_along_gradient
from autosparse.layers import prunable


@criterion("crop", paper="Rachwan et al. 2022, arXiv 2206.10451 (EarlyCroP)", check=check_second_derivatives)
def crop(
    model: nn.Module,
    batches: Batches,
    loss_fn: LossFn,
    masks: Mapping[str, Tensor],
    *,
    batch_statistics: bool = False,
) -> Scores:
    """Conservative gradient flow |w ⊙ (H ∇L)|: how much removing a weight changes the gradient flow, up or down.

    GraSP keeps what raises the flow; this keeps what changes it. Gradient and Hessian are means over all images, where
    the authors add up their batches: a common factor, which no selection sees.

    Args:
        batch_statistics: batch norm normalises by the batch. By default it uses its running statistics, as the
            authors' code does. These are what training measured when the pruning waits for it (EarlyCroP), but 0 and 1
            at initialisation. Batch norm then does not normalise: the outputs of a deep network saturate the softmax,
            which leaves many scores at zero, or overflow.
    """
    weights = {name: weight.detach() for name, weight in prunable(model).items()}
    advice = "check the data and the initialisation of the network"
    if not batch_statistics:
        advice += ", or set its option batch_statistics if batch norm has not measured its running statistics yet"
    loss = MeanLoss(model, list(batches), loss_fn, "crop", batch_statistics, advice)
    curvature = curvature_along_gradient(loss, weights, masks)
    return {name: (weight * curvature[name]).abs() for name, weight in weights.items()}
