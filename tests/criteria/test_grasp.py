"""GraSP: numbers by hand, and the gradient flow that its scores predict."""

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
Batch = tuple[Tensor, Tensor]


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum(dim=1).mean()


def linear(*weights: float) -> nn.Module:
    model = nn.Linear(len(weights), 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    return model


def matrix(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=F64)


class SmoothNet(nn.Module):
    """A convolution, batch norm and a classifier between smooth functions; finite differences meet no kink."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Linear(8, 3)
        self.double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)
            self.norm.running_mean.normal_(generator=generator)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.conv(x))).flatten(1))


def images(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(count, 1, 3, 3, generator=generator, dtype=F64),
        torch.randint(0, 3, (count,), generator=generator),
    )


def flow(model: nn.Module, batch: Batch, temperature: float, kept: dict[str, Tensor] | None = None) -> float:
    """The squared norm of the gradient, by torch alone."""
    weights = prunable(model)
    gradients = torch.autograd.grad(F.cross_entropy(model(batch[0]) / temperature, batch[1]), list(weights.values()))
    total = 0.0
    for name, g in zip(weights, gradients, strict=True):
        total += float((g if kept is None else g * kept[name]).square().sum())
    return total


def test_one_quadratic_by_hand() -> None:
    # L = (w·x - y)² / 2 with w·x = 3 - 2 = 1 and y = -1: ∇L = 2 x = (6, 2), H = x xᵀ, H ∇L = (xᵀ ∇L) x = 20 x =
    # (60, 20), and w ⊙ H ∇L = (60, -40): the second weight holds the flow back and goes first.
    model, batches = linear(1, -2), [(matrix((3, 1)), matrix((-1,)))]
    found = score("grasp", model, batches=batches, loss_fn=half_squared_error, options={"temperature": 1.0})
    assert found["weight"].tolist() == [[60, -40]]


def test_the_temperature_divides_the_output_by_hand() -> None:
    # L = (w·x / 2 - y)² / 2: the error is 0.5 + 1, ∇L = 1.5 x / 2 = (2.25, 0.75), H = x xᵀ / 4,
    # H ∇L = 7.5 x / 4 = (5.625, 1.875).
    model, batches = linear(1, -2), [(matrix((3, 1)), matrix((-1,)))]
    found = score("grasp", model, batches=batches, loss_fn=half_squared_error, options={"temperature": 2.0})
    assert found["weight"].tolist() == [[5.625, -3.75]]


def test_a_mean_of_quadratics_by_hand() -> None:
    # X = ((1, 2), (3, 0)), w = (1, 1), errors X w - y = (3 - 1, 3 - 4) = (2, -1).
    # ∇L = Xᵀ (2, -1) / 2 = (2 - 3, 4) / 2 = (-0.5, 2), H = Xᵀ X / 2 = ((10, 2), (2, 4)) / 2 = ((5, 1), (1, 2)).
    # H ∇L = (-2.5 + 2, -0.5 + 4) = (-0.5, 3.5).
    model, batches = linear(1, 1), [(matrix((1, 2), (3, 0)), matrix((1,), (4,)))]
    found = score("grasp", model, batches=batches, loss_fn=half_squared_error, options={"temperature": 1.0})
    assert found["weight"].tolist() == [[-0.5, 3.5]]


def test_two_layers_by_hand() -> None:
    # L = (w2 w1 x - y)² / 2 at w1 = 2, w2 = 3, x = 1, y = 4: the error is 2, ∇L = 2 (w2, w1) = (6, 4),
    # H = ((w2², 2 w1 w2 - y), (2 w1 w2 - y, w1²)) = ((9, 8), (8, 4)), H ∇L = (54 + 32, 48 + 16) = (86, 64).
    model = nn.Sequential(linear(2), linear(3))
    options = {"temperature": 1.0}
    batches = [(matrix((1,)), matrix((4,)))]
    found = score("grasp", model, batches=batches, loss_fn=half_squared_error, options=options)
    assert found["0.weight"].item() == 172
    assert found["1.weight"].item() == 192


def test_a_removed_weights_gradient_is_no_part_of_the_flow_by_hand() -> None:
    # As above with w1 removed: ∇L = -4 (w2, w1) = (-12, 0) at w1 = 0, where the error is -4. Its gradient does not
    # count, so M ∇L = (0, 0) and nothing scores, although H ∇L would be ((9, -4), (-4, 0)) (-12, 0) = (-108, 48).
    model = nn.Sequential(linear(0), linear(3))
    masks = Masks({"0.weight": torch.tensor([[False]]), "1.weight": torch.tensor([[True]])})
    batches = [(matrix((1,)), matrix((4,)))]
    given = {"batches": batches, "loss_fn": half_squared_error, "options": {"temperature": 1.0}}
    assert score("grasp", model, **given)["1.weight"].item() == 144  # type: ignore[arg-type]
    assert score("grasp", model, masks=masks, **given)["1.weight"].item() == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_score_is_what_a_weight_contributes_to_the_gradient_flow(batch_statistics: bool, masked: bool) -> None:
    """d flow / d log w = 2 w ⊙ H ∇L, by central differences over every weight."""
    model, batch, step = SmoothNet(), images(), 1e-5
    kept = {
        name: torch.rand(w.shape, generator=torch.Generator().manual_seed(2)) < 0.5
        for name, w in prunable(model).items()
    }
    masks = Masks(kept) if masked else None
    options = {"temperature": 3.0, "batch_statistics": batch_statistics}
    found = score("grasp", model, batches=[batch], loss_fn=F.cross_entropy, masks=masks, options=options)
    twin = copy.deepcopy(model).train(batch_statistics)
    for name, weight in prunable(twin).items():
        flat = weight.detach().view(-1)
        for index in range(flat.numel()):
            value, flows = flat[index].item(), []
            for sign in (1, -1):
                flat[index] = value * (1 + sign * step)
                flows.append(flow(twin, batch, 3.0, kept if masked else None))
            flat[index] = value
            expected = (flows[0] - flows[1]) / (2 * step) / 2
            assert found[name].view(-1)[index].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_dropout_is_off() -> None:
    model, batch = SmoothNet(), images()
    expected = score("grasp", model, batches=[batch], loss_fn=F.cross_entropy)
    dropped = nn.Sequential(nn.Dropout(0.9), model).train()
    found = score("grasp", dropped, batches=[batch], loss_fn=F.cross_entropy)
    assert all(torch.equal(found[f"1.{name}"], value) for name, value in expected.items())


def test_a_temperature_that_divides_by_nothing_is_refused() -> None:
    with pytest.raises(AutoSparseError, match=r"temperature of grasp is 0\.0: give a positive number"):
        score("grasp", SmoothNet(), batches=[images()], loss_fn=F.cross_entropy, options={"temperature": 0.0})
