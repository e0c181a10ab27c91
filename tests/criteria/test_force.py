"""FORCE: the gradient of the pruned network, at the dense weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.criteria import score
from autosparse.layers import prunable
from autosparse.masks import Masks

F64 = torch.float64


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum(dim=1).mean()


def test_a_removed_weight_scores_by_its_dense_value_by_hand() -> None:
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -1.0, 3.0]]))
    dense = {name: weight.detach().clone() for name, weight in prunable(model).items()}
    masks = Masks({"weight": torch.tensor([[True, True, False]])})
    masks.apply(model)
    # The pruned network gives 2·1 - 1·2 + 0·5 = 0 for x = (1, 2, 5), the target is 4: ∇L = -4 x = (-4, -8, -20).
    # |w ⊙ ∇L| = (8, 8, 60): the removed weight returns first. SNIP, at the weights as they are, gives it 0.
    x, y = torch.tensor([[1.0, 2.0, 5.0]], dtype=F64), torch.tensor([[4.0]], dtype=F64)
    given = {"batches": [(x, y)], "loss_fn": half_squared_error, "dense": dense, "masks": masks}
    assert score("force", model, **given)["weight"].tolist() == [[8, 8, 60]]  # type: ignore[arg-type]
    assert score("snip", model, **given)["weight"].tolist() == [[8, 8, 0]]  # type: ignore[arg-type]


def test_with_nothing_removed_it_is_snip() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, generator=generator, dtype=F64), torch.randint(0, 3, (6,), generator=generator)
    force, snip = (score(name, model, batches=[(x, y)], loss_fn=F.cross_entropy) for name in ("force", "snip"))
    assert all(torch.equal(force[name], snip[name]) for name in snip)
