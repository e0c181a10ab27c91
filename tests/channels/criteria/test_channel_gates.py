"""SNIP, CroP, GraSP and Taylor for channels: numbers by hand, and derivatives by gates that really are there."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from criteria_networks import NETWORKS, RESIDUAL, Batch, blank, coupled, images, linear, randomised
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from autosparse.channels.criteria import score_channels
from autosparse.channels.criteria.gates import Gates
from autosparse.channels.groups import Coupling, Member
from autosparse.errors import AutoSparseError
from autosparse.layers import prunable

F64 = torch.float64
PLACEMENTS = ("reads", "writes")
GATED_NETWORKS = [
    pytest.param(name, marks=pytest.mark.skipif(name == "attention" and not find_spec("timm"), reason="no timm"))
    for name in NETWORKS
]


def half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum(dim=1).mean()


# ---------------------------------------------------------------------------------------------------- real gates


class Gated:
    """A network with a gate on every coupled channel, by hooks."""

    def __init__(self, model: nn.Module, coupling: Coupling, placement: str) -> None:
        self.model = model
        self.gates = {group.name: torch.ones(group.width, dtype=F64, requires_grad=True) for group in coupling}
        side = "in" if placement == "reads" else "out"
        for group in coupling:
            for member in group.members:
                module = model.get_submodule(member.module)
                if member.side == side and getattr(module, "groups", 1) == 1:
                    self._gate(module, member, self.gates[group.name], placement)
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train(placement == "reads")

    def _gate(self, module: nn.Module, member: Member, gates: Tensor, placement: str) -> None:
        dim = -1 if isinstance(module, nn.Linear) else 1

        def gated(x: Tensor) -> Tensor:
            shape = [1] * x.dim()
            shape[dim] = -1
            factor = torch.ones(x.shape[dim], dtype=F64)
            factor = factor.index_put(
                (torch.as_tensor(member.positions.ravel()),), gates.repeat_interleave(member.multiplicity)
            )
            return x * factor.view(shape)

        if placement == "reads":
            module.register_forward_pre_hook(lambda _, args: (gated(args[0]), *args[1:]))
        else:
            module.register_forward_hook(lambda _, args, output: gated(output))

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def flow(self, batch: Batch) -> Tensor:
        """The squared norm of the gradient by all weights of convolutions and linear layers."""
        weights = list(prunable(self.model).values())
        with sdpa_kernel(SDPBackend.MATH):  # the only one with second derivatives
            gradients = torch.autograd.grad(self.loss(batch), weights, create_graph=True)
        return sum((g.square().sum() for g in gradients), torch.zeros(()))

    def derivatives(self, value: Tensor) -> dict[str, np.ndarray]:
        found = torch.autograd.grad(value, list(self.gates.values()))
        return {name: g.numpy() for name, g in zip(self.gates, found, strict=True)}


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(np.abs(values).max()) for values in expected.values())
    assert largest > 0
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-11 * largest, err_msg=name)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", GATED_NETWORKS)
def test_derivatives_are_those_by_gates_that_are_there(name: str, placement: str) -> None:
    model, batches = randomised(blank(name)), images(6)
    coupling = coupled(model)
    gates = Gates(model, coupling, placement, "test")
    first = gates.loss_gradient(batches, F.cross_entropy)
    second = gates.flow_gradient(batches, F.cross_entropy)
    if name == "upsampled":  # weights of transposed convolutions are no part of the flow
        assert "up.weight" not in prunable(model)
    gated = Gated(model, coupling, placement)
    assert_close(first, gated.derivatives(gated.loss(batches[0])))
    half = {group: derivative / 2 for group, derivative in gated.derivatives(gated.flow(batches[0])).items()}
    assert_close(second, half)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_flow_changes_as_its_derivative_says(placement: str) -> None:
    model, batches, h = randomised(blank("flattened")), images(6), 1e-6
    coupling = coupled(model)
    options = {"gates": placement, "temperature": 1}
    found = score_channels("grasp", model, coupling, batches=batches, loss_fn=F.cross_entropy, options=options)
    gated = Gated(model, coupling, placement)
    for group, gates in gated.gates.items():
        for i in range(len(gates)):
            flows = []
            for step in (h, -h):
                with torch.no_grad():
                    gates[i] = 1 + step
                flows.append(gated.flow(batches[0]).item())
            with torch.no_grad():
                gates[i] = 1
            assert found[group][i] == pytest.approx((flows[0] - flows[1]) / (4 * h), rel=1e-5, abs=1e-7)


def test_batch_norm_undoes_a_gate_in_front_of_it_in_training() -> None:
    """Why ``writes`` needs the running statistics."""
    model, batches = randomised(blank("depthwise")), images(8)
    model.get_submodule("norm").eps = 1e-14  # type: ignore[assignment]
    coupling, options = coupled(model), {"gates": "writes"}
    found = score_channels("snip", model, coupling, batches=batches, loss_fn=F.cross_entropy, options=options)
    assert found["expand"].min() > 1e-6
    gated = Gated(model, coupling, "writes")
    model.train()
    trained = gated.derivatives(gated.loss(batches[0]))
    np.testing.assert_allclose(trained["expand"], 0, atol=1e-10)


# ------------------------------------------------------------------------------------------------------- by hand


def test_snip_by_hand() -> None:
    # x = (1, 1) makes the channels 1 - 2 = -1 and -3 + 4 = 1, and y = -5 - 6 = -11. The target is -10, so that
    # dL/dy = -1: gates change y by -5 and -6, and L by 5 and 6.
    model, coupling = linear([[1, -2], [-3, 4]], [[5, -6]])
    batches = [(torch.ones(1, 2, dtype=F64), torch.tensor([[-10.0]], dtype=F64))]
    for gates in PLACEMENTS:
        found = score_channels(
            "snip", model, coupling, batches=batches, loss_fn=half_squared_error, options={"gates": gates}
        )
        assert found["0"].tolist() == [5, 6]


def test_crop_and_grasp_by_hand() -> None:
    # y = sum of c a b for a = (2, 1), b = (3, 1), x = 1: y = 7, target 8, e = -1. The gradients are e c b and e c a,
    # z(c) = e(1) e(c) sum of c n with n = a² + b² = (13, 2), and dz/dc = e (a b 15 + e n) = -(6 · 15 - 13), -(15 - 2).
    model, coupling = linear([[2], [1]], [[3, 1]])
    batches = [(torch.ones(1, 1, dtype=F64), torch.tensor([[8.0]], dtype=F64))]

    def found(name: str, **options: object) -> list[float]:
        return score_channels(name, model, coupling, batches=batches, loss_fn=half_squared_error, options=options)[
            "0"
        ].tolist()

    for gates in PLACEMENTS:
        assert found("crop", gates=gates) == pytest.approx([77, 13])
        # Without either channel there would be more flow: GraSP keeps the one whose removal raises it less.
        assert found("grasp", gates=gates, temperature=1.0) == pytest.approx([-77, -13])


def test_the_temperature_divides_the_output_by_hand() -> None:
    # As above with y / 2 = 3.5 and the target 4.5: dz/dc = (e/4) (a b 15 / 2 + e n).
    model, coupling = linear([[2], [1]], [[3, 1]])
    batches = [(torch.ones(1, 1, dtype=F64), torch.tensor([[4.5]], dtype=F64))]
    given = {"batches": batches, "loss_fn": half_squared_error}
    found = score_channels("grasp", model, coupling, options={"temperature": 2}, **given)["0"]
    assert found.tolist() == pytest.approx([-8, -1.375])
    with pytest.raises(AutoSparseError, match="option temperature of grasp is 0"):
        score_channels("grasp", model, coupling, options={"temperature": 0}, **given)


def test_taylor_squares_each_minibatch_by_hand() -> None:
    # One hidden channel w x of x = 1 and 2 images with targets: dL/dc = e y with y = 6 and e = 1; then y = 12, e = -2.
    model, coupling = linear([[2]], [[3]])
    x, y = torch.tensor([[1.0], [2.0]], dtype=F64), torch.tensor([[5.0], [14.0]], dtype=F64)

    def found(*batches: Batch) -> list[float]:
        return score_channels("taylor", model, coupling, batches=batches, loss_fn=half_squared_error)["0"].tolist()

    assert found((x[:1], y[:1]), (x[1:], y[1:])) == [(6**2 + 24**2) / 2]
    assert found((x, y)) == [((6 - 24) / 2) ** 2]


def test_taylor_counts_minibatches_by_their_images() -> None:
    model, batches = randomised(blank("flattened")), images(6, 2)
    coupling = coupled(model)
    given = {"model": model, "coupling": coupling, "loss_fn": F.cross_entropy}
    large, small = (score_channels("taylor", batches=[batch], **given) for batch in batches)  # type: ignore[arg-type]
    both = score_channels("taylor", batches=batches, **given)  # type: ignore[arg-type]
    for group, values in both.items():
        np.testing.assert_allclose(values, (6 * large[group] + 2 * small[group]) / 8, rtol=1e-12)
    with pytest.raises(AutoSparseError, match="no batch of images was given"):
        score_channels("taylor", batches=[], **given)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- properties


def test_behind_batch_norm_and_relu_taylor_is_that_of_the_norm() -> None:
    """The published score of a batch norm, (γ dL/dγ + β dL/dβ)²: ReLU passes its gate on to what reads the channel."""
    model, batches = randomised(blank("depthwise")), images(8)
    found = score_channels("taylor", model, coupled(model), batches=batches, loss_fn=F.cross_entropy)["expand"]
    norm = model.get_submodule("second")
    model.train()
    gamma, beta = norm.get_parameter("weight"), norm.get_parameter("bias")
    by_gamma, by_beta = torch.autograd.grad(F.cross_entropy(model(batches[0][0]), batches[0][1]), [gamma, beta])
    expected = (gamma * by_gamma + beta * by_beta).detach().numpy() ** 2
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["snip", "crop", "grasp"])
def test_scores_are_means_over_images_however_they_are_grouped(name: str) -> None:
    model = randomised(blank("flattened"))  # without batch norm, which sees its batch
    coupling = coupled(model)
    whole, pieces, reordered = (
        score_channels(name, model, coupling, batches=batches, loss_fn=F.cross_entropy)
        for batches in (images(9), images(4, 4, 1), images(4, 4, 1)[::-1])
    )
    assert_close(pieces, whole)
    assert_close(reordered, whole)


@pytest.mark.parametrize("name", ["snip", "taylor"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_moving_scale_through_relu_to_the_next_layer_changes_no_score(name: str, placement: str) -> None:
    model, batches = randomised(blank("flattened")), images(6)
    coupling, options = coupled(model), {"gates": placement}
    given = {"batches": batches, "loss_fn": F.cross_entropy, "options": options}
    before = score_channels(name, model, coupling, **given)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.get_submodule("conv").parameters():
            parameter.mul_(10)
        model.get_parameter("hidden.weight").div_(10)
    assert_close(score_channels(name, model, coupling, **given), before)  # type: ignore[arg-type]


def test_a_channel_that_nothing_reads_scores_zero() -> None:
    model, batches = randomised(RESIDUAL()), images(4)
    with torch.no_grad():
        model.get_parameter("back.weight")[:, 2] = 0
    found = score_channels("snip", model, coupled(model), batches=batches, loss_fn=F.cross_entropy)["inner"]
    assert found[2] == 0
    assert (np.delete(found, 2) > 0).all()


def test_hardsigmoid_has_a_flow_all_the_same() -> None:
    """Torch cannot differentiate its backward pass; away from its kinks it is a line."""
    model, batches = randomised(blank("flattened")), images(6)
    coupling = coupled(model)

    def with_gate(gate: Callable[[Tensor], Tensor]) -> dict[str, np.ndarray]:
        model._run = lambda net, x: net.head(gate(net.hidden(net.conv(x).relu().flatten(1)) / 100))  # type: ignore[assignment]
        return score_channels("crop", model, coupling, batches=batches, loss_fn=F.cross_entropy)

    assert_close(with_gate(F.hardsigmoid), with_gate(lambda x: x / 6 + 0.5))


@pytest.mark.parametrize("name", ["snip", "taylor", "crop", "grasp", "synflow"])
def test_an_unknown_placement_is_named(name: str) -> None:
    model = randomised(blank("flattened"))
    with pytest.raises(AutoSparseError, match=f"unknown gates of {name} 'read': did you mean reads"):
        score_channels(
            name, model, coupled(model), batches=images(2), loss_fn=F.cross_entropy, options={"gates": "read"}
        )


def test_a_derivative_that_is_not_finite_is_refused_with_advice() -> None:
    model = randomised(blank("flattened"))
    batches = [(math.inf * x, y) for x, y in images(2)]
    with pytest.raises(AutoSparseError, match=r"crop: .*set its option gates to reads if batch norm"):
        score_channels("crop", model, coupled(model), batches=batches, loss_fn=F.cross_entropy)
