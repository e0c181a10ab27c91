"""CroP: numbers by hand, and the Hessian by finite differences of the gradient."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.criteria import score
from autosparse.errors import AutoSparseError
from autosparse.layers import prunable
from autosparse.masks import Masks

F64 = torch.float64


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum(dim=1).mean()


def smooth_net() -> nn.Sequential:
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)]
    model = nn.Sequential(*layers).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
        model.get_buffer("1.running_mean").normal_(generator=generator)
        model.get_buffer("1.running_var").fill_(4)
    return model


def points(count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, generator=generator, dtype=F64), torch.randint(0, 3, (count,), generator=generator)


def gradient(model: nn.Module, batch: tuple[Tensor, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = prunable(model)
    found = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(weights.values()))
    return {name: g * masks[name] for name, g in zip(weights, found, strict=True)}


def shifted(model: nn.Module, v: dict[str, Tensor], by: float) -> nn.Module:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in prunable(twin).items():
            weight.add_(v[name], alpha=by)
    return twin


def test_one_quadratic_by_hand() -> None:
    # X = ((1, 2), (3, 0)), w = (1, 1), errors X w - y = (2, -1): ∇L = Xᵀ (2, -1) / 2 = (-0.5, 2),
    # H = Xᵀ X / 2 = ((5, 1), (1, 2)), H ∇L = (-0.5, 3.5). The sign goes, and there is no temperature.
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1)
    batches = [(torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=F64), torch.tensor([[1.0], [4.0]], dtype=F64))]
    assert score("crop", model, batches=batches, loss_fn=half_squared_error)["weight"].tolist() == [[0.5, 3.5]]


@pytest.mark.parametrize("batch_statistics", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_curvature_is_the_change_of_the_gradient_along_itself(batch_statistics: bool, masked: bool) -> None:
    model, batch, step = smooth_net(), points(), 1e-5
    generator = torch.Generator().manual_seed(2)
    masks = {
        name: (torch.rand(w.shape, generator=generator) < 0.5) | (not masked) for name, w in prunable(model).items()
    }
    options = {} if batch_statistics is False else {"batch_statistics": True}  # off is the default
    found = score("crop", model, batches=[batch], loss_fn=F.cross_entropy, masks=Masks(masks), options=options)
    reference = copy.deepcopy(model).train(batch_statistics)
    everything = {name: torch.ones_like(mask) for name, mask in masks.items()}
    v = gradient(reference, batch, masks)
    after, before = (gradient(shifted(reference, v, sign * step), batch, everything) for sign in (1, -1))
    for name, weight in prunable(reference).items():
        expected = (weight * (after[name] - before[name]) / (2 * step)).abs()
        assert expected.max() > 1e-4
        torch.testing.assert_close(found[name], expected.detach(), rtol=1e-6, atol=1e-9)


def test_it_is_the_size_of_grasp_without_temperature() -> None:
    model, batch = smooth_net(), points()
    signed = score(
        "grasp",
        model,
        batches=[batch],
        loss_fn=F.cross_entropy,
        options={"temperature": 1.0, "batch_statistics": False},
    )
    found = score("crop", model, batches=[batch], loss_fn=F.cross_entropy)
    assert all(torch.equal(found[name], value.abs()) for name, value in signed.items())
    assert any(bool((value < 0).any()) for value in signed.values())


def test_a_gradient_that_does_not_depend_on_the_weights_has_no_curvature() -> None:
    model = nn.Linear(3, 2).double()
    found = score("crop", model, batches=[points()], loss_fn=lambda output, y: output.mean())
    assert not found["weight"].any()


def test_a_derivative_that_overflows_is_refused_with_what_to_do() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1)
    # L = (w x)² / 2 = 5e19 and ∇L = x² = 1e20 are finite in float32; H ∇L = x² ∇L = 1e40 is not.
    batches = [(torch.tensor([[1e10]]), torch.tensor([[0.0]]))]
    with pytest.raises(AutoSparseError, match=r"crop: a derivative of the loss is not finite: .* batch_statistics"):
        score("crop", model, batches=batches, loss_fn=half_squared_error)
