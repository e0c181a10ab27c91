from collections.abc import Mapping

from torch import Tensor, nn

from autosparse.criteria.base import Scores, criterion
from autosparse.criteria.gradients import Batches, LossFn
from autosparse.criteria.hessian import MeanLoss, check_second_derivatives, curvature_along_gradient
from autosparse.errors import AutoSparseError
from autosparse.layers import prunable


@criterion("grasp", paper="Wang et al. 2020, arXiv 2002.07376", check=check_second_derivatives)
def grasp(
    model: nn.Module,
    batches: Batches,
    loss_fn: LossFn,
    masks: Mapping[str, Tensor],
    *,
    temperature: float = 200.0,
    batch_statistics: bool = True,
) -> Scores:
    """Gradient signal preservation w ⊙ (H ∇L), signed: what a weight contributes to the gradient flow.

    To first order, removing the weight w changes the flow ‖∇L‖² by -2 w (H ∇L). The weights whose removal lowers it
    most score highest and are kept; the paper's S = -w ⊙ (H ∇L), of which the largest are removed, is the same order.

    The authors score on as many images of every class (10 or 25), which is up to whoever makes the batches. They also
    re-initialise linear layers in the copy that they score, which gives those weights the scores of other weights;
    here every weight is scored at its own value.

    Args:
        temperature: outputs are divided by it before the loss, which flattens a softmax.
        batch_statistics: batch norm normalises by the batch, as the authors' code does; otherwise by its running
            statistics, which an untrained network has not measured yet.
    """
    if not temperature > 0:
        raise AutoSparseError(f"option temperature of grasp is {temperature}: give a positive number such as 200")

    def tempered(output: Tensor, labels: Tensor) -> Tensor:
        return loss_fn(output / temperature, labels)

    weights = {name: weight.detach() for name, weight in prunable(model).items()}
    loss = MeanLoss(model, list(batches), tempered, "grasp", batch_statistics)
    curvature = curvature_along_gradient(loss, weights, masks)
    return {name: weight * curvature[name] for name, weight in weights.items()}
