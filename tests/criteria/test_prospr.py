"""ProsPr: the adjoint against the unrolled graph, finite differences, torch's own SGD, and numbers by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from autosparse.criteria import score
from autosparse.errors import AutoSparseError
from autosparse.layers import prunable

F64 = torch.float64
Batch = tuple[Tensor, Tensor]


def small_net() -> nn.Sequential:
    """8 + 4 + 12 + 3 parameters, four of which are batch norm's."""
    layers = [nn.Conv1d(1, 2, 3, bias=False), nn.BatchNorm1d(2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)]
    model = nn.Sequential(*layers).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def parts_of(count: int, parts: int, seed: int = 1) -> list[Batch]:
    """``parts`` batches of ``count`` images."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(parts, count, 1, 4, generator=generator, dtype=F64)
    y = torch.randint(0, 3, (parts, count), generator=generator)
    return list(zip(x, y, strict=True))


def final_loss(
    model: nn.Module,
    masks: dict[str, Tensor],
    batches: Sequence[Batch],
    *,
    lr: float,
    momentum: float,
    frozen: Sequence[str] = (),
    detach_first: bool = False,
) -> Tensor:
    """L_K as one graph in ``masks``: an unroll that holds everything."""
    model = copy.deepcopy(model).train()
    theta = {
        name: p.detach() * masks[name] if name in masks else p.detach().clone() for name, p in model.named_parameters()
    }
    theta = {name: value if value.requires_grad else value.requires_grad_(True) for name, value in theta.items()}
    buffers: dict[str, Tensor] = {}
    for step, (x, y) in enumerate(batches[:-1]):
        moving = [name for name in theta if name not in frozen]
        loss = F.cross_entropy(functional_call(model, theta, (x,)), y)
        gradients = torch.autograd.grad(loss, [theta[name] for name in moving], create_graph=True)
        for name, gradient in zip(moving, gradients, strict=True):
            taken = gradient.detach() if detach_first and step == 0 else gradient
            buffers[name] = taken if step == 0 else momentum * buffers[name] + taken
            theta = {**theta, name: theta[name] - lr * buffers[name]}
    return F.cross_entropy(functional_call(model, theta, (batches[-1][0],)), batches[-1][1])


def ones(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones_like(weight, requires_grad=True) for name, weight in prunable(model).items()}


def check_close(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert value.max() > 1e-3
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol * float(value.max()))


def test_one_step_on_a_quadratic_by_hand() -> None:
    # L_0 = (2 θ - 2)² / 2 and L_1 = (θ - 5)² / 2 at w = 2: ∇L_0 = 2 (4 - 2) = 4, H_0 = 4. One step of 0.5 leads to
    # θ_1 = 2 - 2 = 0, ∇L_1 = -5. dL_1/dm = w (1 - 0.5 H_0) ∇L_1 = 2 · (-1) · (-5) = 10, and 2 · 5 = 10 to first order.
    # With a step of 0.25, θ_1 = 1: 2 · (1 - 0.25 · 4) · (-4) = 0, and 8 to first order.
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(2)
    x, y = torch.tensor([[2.0], [1.0]], dtype=F64), torch.tensor([[2.0], [5.0]], dtype=F64)

    def found(**options: float) -> float:
        loss_fn = lambda output, target: 0.5 * (output - target).square().mean()  # noqa: E731
        scores = score("prospr", model, batches=[(x, y)], loss_fn=loss_fn, options={"steps": 1, **options})
        return scores["weight"].item()

    assert found() == 10
    assert found(order=1) == 10
    assert found(lr=0.25) == 0
    assert found(lr=0.25, order=1) == 8
    assert found(lr=0.25, detach_first=True) == 8


def test_momentum_on_a_linear_loss_and_a_quadratic_by_hand() -> None:
    # Two steps of lr 1 and momentum 0.5 with L_0 = θ²/2 and L_1 = θ²/2 from w = 1: u = 1, θ = 0; u = 0.5 + 0 = 0.5,
    # θ = -0.5. As a map of θ_0: u_1 = θ_0, θ_1 = 0, u_2 = θ_0 / 2, θ_2 = -θ_0 / 2. L_2 = (θ_2 - 3)²/2 has the gradient
    # -3.5, so |dL_2/dm| = |1 · (-1/2) · (-3.5)| = 1.75; without momentum θ_2 = 0 for any θ_0, and the score is 0.
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1)
    x, y = torch.ones(3, 1, dtype=F64), torch.tensor([[0.0], [0.0], [3.0]], dtype=F64)

    def found(momentum: float) -> float:
        options = {"steps": 2, "lr": 1.0, "momentum": momentum}
        loss_fn = lambda output, target: 0.5 * (output - target).square().mean()  # noqa: E731
        return score("prospr", model, batches=[(x, y)], loss_fn=loss_fn, options=options)["weight"].item()

    assert found(0.5) == 1.75
    assert found(0.0) == 0


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("detach_first", [False, True])
@pytest.mark.parametrize("weights_only", [False, True])
def test_the_adjoint_is_the_unrolled_graphs_gradient(
    steps: int, momentum: float, detach_first: bool, weights_only: bool
) -> None:
    model, batches = small_net(), parts_of(5, steps + 1)
    options = {"steps": steps, "momentum": momentum, "detach_first": detach_first, "weights_only": weights_only}
    found = score("prospr", model, batches=batches, loss_fn=F.cross_entropy, options=options)
    masks = ones(model)
    frozen = [name for name, _ in model.named_parameters() if name not in masks] if weights_only else []
    loss = final_loss(model, masks, batches, lr=0.5, momentum=momentum, frozen=frozen, detach_first=detach_first)
    gradients = torch.autograd.grad(loss, list(masks.values()))
    check_close(found, {name: g.abs() for name, g in zip(masks, gradients, strict=True)}, rtol=1e-10)


def test_the_score_is_the_slope_of_the_final_loss_along_each_mask_entry() -> None:
    model, batches, step = small_net(), parts_of(5, 4), 1e-6
    found = score("prospr", model, batches=batches, loss_fn=F.cross_entropy)
    slopes = {name: torch.zeros_like(value) for name, value in found.items()}
    for name, slope in slopes.items():
        for index in range(slope.numel()):
            losses = []
            for sign in (1, -1):
                masks = {key: torch.ones_like(value) for key, value in found.items()}
                masks[name].view(-1)[index] += sign * step
                losses.append(final_loss(model, masks, batches, lr=0.5, momentum=0.9).item())
            slope.view(-1)[index] = abs(losses[0] - losses[1]) / (2 * step)
    check_close(found, slopes, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_is_the_gradient_where_torchs_sgd_arrives(steps: int) -> None:
    model, batches = small_net(), parts_of(5, steps + 1)
    found = score("prospr", model, batches=batches, loss_fn=F.cross_entropy, options={"steps": steps, "order": 1})
    trained = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.5, momentum=0.9)
    for x, y in batches[:-1]:
        optimizer.zero_grad()
        F.cross_entropy(trained(x), y).backward()
        optimizer.step()
    final = F.cross_entropy(trained(batches[-1][0]), batches[-1][1])
    gradients = torch.autograd.grad(final, list(prunable(trained).values()))
    expected = {
        name: (weight.detach() * g).abs() for (name, weight), g in zip(prunable(model).items(), gradients, strict=True)
    }
    check_close(found, expected, rtol=1e-10)


@pytest.mark.parametrize("order", [1, 2])
def test_without_steps_it_is_snip(order: int) -> None:
    model, batches = small_net(), parts_of(6, 1)
    found = score("prospr", model, batches=batches, loss_fn=F.cross_entropy, options={"steps": 0, "order": order})
    check_close(found, score("snip", model, batches=batches, loss_fn=F.cross_entropy), rtol=1e-12)


def test_images_are_divided_in_order_into_a_part_for_each_step_and_one_for_the_loss() -> None:
    """11 images for 3 steps are parts of 2, 3, 3, 3, cut into pieces no larger than the largest batch."""
    model = small_net()
    ((x, y),) = parts_of(11, 1)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batches = list(zip(x.split([1, 2, 2, 2, 2, 2]), y.split([1, 2, 2, 2, 2, 2]), strict=True))
    score("prospr", model, batches=batches, loss_fn=F.cross_entropy, options={"order": 1})
    assert [len(piece) for piece in seen] == [2, 1, 2, 1, 2, 1, 2]
    assert torch.equal(torch.cat(seen), x)


def test_too_few_images_and_options_out_of_range_are_refused() -> None:
    model, batches = small_net(), parts_of(3, 1)
    with pytest.raises(AutoSparseError, match=r"prospr with 3 steps needs 4 images or more, .* it was given 3"):
        score("prospr", model, batches=batches, loss_fn=F.cross_entropy)
    for options in ({"order": 3}, {"steps": -1}):
        with pytest.raises(AutoSparseError, match="give steps of at least 0 and order 1 or 2"):
            score("prospr", model, batches=batches, loss_fn=F.cross_entropy, options=options)


def test_inner_training_that_diverges_names_the_step_and_the_learning_rate() -> None:
    model, batches = nn.Linear(4, 1).double(), parts_of(4, 4)

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return output.pow(4).mean()

    with pytest.raises(AutoSparseError, match=r"prospr, .* the loss .* lower its option lr, now 1e\+100"):
        score("prospr", model, batches=batches, loss_fn=loss_fn, options={"lr": 1e100})
