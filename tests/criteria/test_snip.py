"""SNIP: numbers by hand, and its invariance under batch norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.criteria import score
from autosparse.layers import prunable

F64 = torch.float64


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum(dim=1).mean()


def test_two_layers_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    first, second = model.get_parameter("0.weight"), model.get_parameter("2.weight")
    with torch.no_grad():
        first.copy_(torch.tensor([[1.0, -2.0], [3.0, 1.0]]))
        second.copy_(torch.tensor([[2.0, -1.0]]))
    # Image (3, 1): hidden (1, 10), output 2 - 10 = -8, target -6, so dL/doutput = -2,
    # dL/dW2 = -2 (1, 10) = (-2, -20), dL/dhidden = -2 (2, -1) = (-4, 2), dL/dW1 = (-4, 2)ᵀ (3, 1) =
    # ((-12, -4), (6, 2)).
    # Image (-1, 1): hidden (-3, -2) is rectified to 0, the output 0 is the target: no gradient. The mean halves all.
    x = torch.tensor([[3.0, 1.0], [-1.0, 1.0]], dtype=F64)
    y = torch.tensor([[-6.0], [0.0]], dtype=F64)
    found = score("snip", model, batches=[(x, y)], loss_fn=half_squared_error)
    assert found["0.weight"].tolist() == [[6, 4], [9, 1]]
    assert found["2.weight"].tolist() == [[2, 10]]


def test_a_layers_scale_does_not_matter_where_batch_norm_follows() -> None:
    generator = torch.Generator().manual_seed(0)
    # The invariance is exact as far as eps does not pad the variance.
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, eps=1e-14), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)]
    model = nn.Sequential(*layers).double()
    x = torch.randn(8, 2, 4, 4, generator=generator, dtype=F64)
    y = torch.randint(0, 4, (8,), generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    before = score("snip", model, batches=[(x, y)], loss_fn=F.cross_entropy)
    with torch.no_grad():
        prunable(model)["0.weight"].mul_(7)
    after = score("snip", model, batches=[(x, y)], loss_fn=F.cross_entropy)
    assert before["0.weight"].max() > 1e-3
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-10, atol=1e-14)


def test_the_scale_of_a_layer_without_batch_norm_matters() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x, y = torch.eye(3, dtype=F64), torch.tensor([0, 1, 1])
    before = score("snip", model, batches=[(x, y)], loss_fn=F.cross_entropy)
    with torch.no_grad():
        prunable(model)["0.weight"].mul_(7)
    after = score("snip", model, batches=[(x, y)], loss_fn=F.cross_entropy)
    assert not torch.allclose(after["2.weight"], before["2.weight"], rtol=0.01)
