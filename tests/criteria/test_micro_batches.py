"""Criteria of backward passes: however images are grouped, the scores are those of all of them and cost one piece."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from autosparse.criteria import score
from autosparse.criteria.hessian import MeanLoss
from autosparse.errors import AutoSparseError
from autosparse.layers import prunable

F64 = torch.float64
NAMES = ("snip", "force", "grasp", "crop", "prospr", "sbp-sr")
HESSIAN = ("grasp", "crop", "prospr")
Batch = tuple[Tensor, Tensor]


def net(dtype: torch.dtype = F64) -> nn.Sequential:
    """Convolutions, a pooling and a classifier with biases, without batch norm."""
    layers = [
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ]
    model = nn.Sequential(*layers).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.to(dtype)


def pieces(*sizes: int, dtype: torch.dtype = F64) -> list[Batch]:
    """The same images for every grouping of the same total."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(sizes), 1, 8, 8, generator=generator, dtype=F64).to(dtype)
    y = torch.randint(0, 3, (sum(sizes),), generator=generator)
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.any()
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol * float(value.abs().max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", [(5, 4, 3), (1, 11), (1,) * 12], ids=str)
def test_scores_do_not_depend_on_how_images_are_grouped(name: str, sizes: tuple[int, ...]) -> None:
    whole, split = (
        score(name, net(), batches=batches, loss_fn=F.cross_entropy) for batches in (pieces(12), pieces(*sizes))
    )
    assert_same(split, whole, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_no_criterion_changes_the_model(name: str) -> None:
    model = nn.Sequential(net(), nn.BatchNorm1d(3), nn.Dropout(0.5)).double().train()
    next(iter(prunable(model).values())).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    storage = {key: value.data_ptr() for key, value in model.state_dict().items()}
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    score(name, model, batches=pieces(5, 4, 3), loss_fn=F.cross_entropy)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == storage
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


class SavedBytes:
    """Counts the bytes that autograd holds for backward passes; ``peak`` is the most at one time."""

    def __init__(self) -> None:
        self.alive = self.peak = 0

    def watching(self) -> torch.autograd.graph.saved_tensors_hooks:
        meter = self

        class Saved:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor = tensor
                self.bytes = tensor.numel() * tensor.element_size()
                meter.alive += self.bytes
                meter.peak = max(meter.peak, meter.alive)

            def __del__(self) -> None:
                meter.alive -= self.bytes

        return torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor)


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_of_one_piece_is_alive_at_a_time(name: str) -> None:
    """Images in 12 pieces need the memory of one of them; ProsPr's parts are pieces of their own."""

    def peak(batches: list[Batch]) -> int:
        meter = SavedBytes()
        with meter.watching():
            score(name, net(), batches=batches, loss_fn=F.cross_entropy)
        assert meter.alive == 0
        return meter.peak

    one = peak(pieces(2)) if name != "prospr" else peak(pieces(2, 2, 2, 2))
    assert peak(pieces(*[2] * 12)) == one > 0
    assert peak(pieces(24)) > 2 * one


def smooth() -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """A network of all kinds of parameters, their values, and a direction to move them in."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mixed = nn.Linear(8, 8), nn.Linear(8, 24)
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.norm(F.gelu(self.embed(x.squeeze(1))))
            q, k, v = self.mixed(tokens).unsqueeze(1).chunk(3, dim=-1)
            return self.head(F.scaled_dot_product_attention(q, k, v).mean(dim=(1, 2)))

    model, generator = Attention().double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    theta = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    v = {name: torch.randn(value.shape, generator=generator, dtype=F64) for name, value in theta.items()}
    return model, theta, v


def test_the_hessian_of_all_parameters_is_the_change_of_the_gradient_also_through_fused_attention() -> None:
    model, theta, v = smooth()
    loss, step = MeanLoss(model, pieces(4, 3), F.cross_entropy, "test"), 1e-5
    found = loss.hessian_vector(theta, v)
    after, before = (
        loss.gradient({name: value + sign * step * v[name] for name, value in theta.items()}) for sign in (1, -1)
    )
    for name, value in found.items():
        expected = (after[name] - before[name]) / (2 * step)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


def test_the_hessian_is_symmetric_and_linear() -> None:
    model, theta, v = smooth()
    loss = MeanLoss(model, pieces(5, 2), F.cross_entropy, "test")
    w = {name: torch.sin(3 * value) for name, value in v.items()}
    hv, hw, both = (loss.hessian_vector(theta, d) for d in (v, w, {name: 2 * v[name] - 3 * w[name] for name in v}))
    assert float(sum((w[k] * hv[k]).sum() for k in v)) == pytest.approx(float(sum((v[k] * hw[k]).sum() for k in v)))
    for name in v:
        torch.testing.assert_close(both[name], 2 * hv[name] - 3 * hw[name])


def test_an_unused_parameter_has_zero_derivatives() -> None:
    model = nn.Sequential(net())
    model.register_module("idle", nn.Identity())
    idle = nn.Linear(2, 2).double()
    model[1].add_module("layer", idle)
    scores = score("crop", model, batches=pieces(4), loss_fn=F.cross_entropy)
    assert not scores["idle.layer.weight"].any()
    assert scores["0.0.weight"].any()


@pytest.mark.parametrize("name", HESSIAN)
def test_no_batch_is_refused(name: str) -> None:
    with pytest.raises(AutoSparseError, match=r"no batch of images was given|needs 4 images or more"):
        score(name, net(), batches=[], loss_fn=F.cross_entropy)


@pytest.mark.parametrize("name", ["grasp", "crop", "sbp-sr", "prospr"])
def test_a_loss_that_is_not_finite_is_refused_with_the_criterion_and_the_images(name: str) -> None:
    batches = pieces(*[3] * 4)
    batches[1][0].fill_(math.nan)
    where = (
        r"prospr, step 2 of 3: the loss is nan on images 0\.\.2"
        if name == "prospr"
        else (rf"{name}: the loss is nan on images 3\.\.5: check the data")
    )
    with pytest.raises(AutoSparseError, match=where):
        score(name, net(), batches=batches, loss_fn=F.cross_entropy)


class Once(torch.autograd.Function):
    """The identity, with a derivative that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", HESSIAN)
@pytest.mark.parametrize("function", [Once.apply, F.hardsigmoid], ids=["once", "hardsigmoid"])
def test_an_operation_without_second_derivatives_is_named(name: str, function: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(net(), Applied(function), nn.Linear(3, 3).double())
    with pytest.raises(
        AutoSparseError, match=rf"^{name}.* needs second derivatives, and Sequential has .* snip$"
    ) as found:
        score(name, model, batches=pieces(8), loss_fn=F.cross_entropy)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_agrees_with_double(name: str) -> None:
    exact = score(name, net(), batches=pieces(5, 4, 3), loss_fn=F.cross_entropy)
    dtype = torch.float32
    found = score(name, net(dtype), batches=pieces(5, 4, 3, dtype=dtype), loss_fn=F.cross_entropy)
    assert all(value.dtype is dtype for value in found.values())
    assert_same({key: value.double() for key, value in found.items()}, exact, rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_the_same_scores(name: str) -> None:
    expected = score(name, net(), batches=pieces(5, 4, 3), loss_fn=F.cross_entropy)
    found = score(name, net().cuda(), batches=pieces(5, 4, 3), loss_fn=F.cross_entropy)
    assert all(value.is_cuda for value in found.values())
    assert_same({key: value.cpu() for key, value in found.items()}, expected, rtol=1e-9)
