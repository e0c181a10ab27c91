from collections.abc import Mapping

from torch import Tensor

from autosparse.criteria.base import Scores, criterion


@criterion("force", paper="de Jorge et al. 2021, arXiv 2006.09081")
def force(dense: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Scores:
    """Foresight connection sensitivity |w ⊙ ∇L(w ⊙ M)|, with w the weights before anything was removed.

    The gradient is that of the pruned network. A removed weight has one too, and its dense value, so that it competes
    with those that are left and may return. With nothing removed yet this is SNIP.
    """
    return {name: (dense[name] * gradient).abs() for name, gradient in gradients.items()}
