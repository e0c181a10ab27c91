from torch import Tensor, nn

from autosparse.channels.criteria.base import ChannelScores, channel_criterion
from autosparse.channels.criteria.gates import Gates, check_flow
from autosparse.channels.groups import Coupling
from autosparse.criteria.gradients import Batches, LossFn
from autosparse.errors import AutoSparseError


@channel_criterion("grasp", paper="Wang et al. 2020, arXiv 2002.07376, for channels", check=check_flow)
def grasp(
    model: nn.Module,
    coupling: Coupling,
    batches: Batches,
    loss_fn: LossFn,
    *,
    gates: str = "reads",
    temperature: float = 200.0,
) -> ChannelScores:
    """Gradient signal preservation dz/dc, signed: what a channel contributes to the gradient flow.

    z(c) = <ḡ, ∇L(θ; c)> with gates c = 1, the weights θ, and their gradient ḡ as a constant. To first order, removing
    the channel changes the flow ‖∇L‖² by -2 dz/dc, so that the channels whose removal lowers it most are kept. For a
    single weight the paper scores θ (H ḡ) alone; a channel's own weights leave the flow with it, which adds ḡ².

    Args:
        gates: ``reads`` multiplies what is read of the channel. ``writes`` multiplies what is written to it, in front
            of any norm; batch norm then uses its running statistics, for it undoes such a gate otherwise.
        temperature: outputs are divided by it before the loss, which flattens a softmax.
    """
    if not temperature > 0:
        raise AutoSparseError(f"option temperature of grasp is {temperature}: give a positive number such as 200")

    def tempered(output: Tensor, labels: Tensor) -> Tensor:
        return loss_fn(output / temperature, labels)

    return Gates(model, coupling, gates, "grasp").flow_gradient(batches, tempered)
