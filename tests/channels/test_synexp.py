"""The widths of PreCrop: a convex optimum, known by hand on small networks and from a general solver on large ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import CONCATENATION_AND_SUM, RESIDUAL

from autosparse.channels.costs import Bilinear, Costs, costs_of
from autosparse.channels.coupling import couple
from autosparse.channels.groups import Coupling
from autosparse.channels.synexp import path_weights, synexp_widths
from autosparse.channels.widths import Budget
from autosparse.errors import BudgetError
from autosparse.models import create_model

IMAGE = torch.zeros(1, 3, 8, 8)


def limit(budget: Budget, coupling: Coupling) -> float:
    return budget.share * budget.cost(coupling.widths)


def test_every_layer_counts_its_outputs_and_its_inputs() -> None:
    model = RESIDUAL()
    # stem: written by stem and back, read by inner and head. inner: written by inner, read by back.
    assert path_weights(model, couple(model, IMAGE)).tolist() == [4, 2]


def test_a_concatenation_shares_one_count_by_width() -> None:
    model = CONCATENATION_AND_SUM()
    coupling = couple(model, IMAGE)
    # a and b are written by their own layer, together by 'total', and read together by 'conv'
    expected = {"a": 1 + 2 * 2 / 5, "b": 1 + 2 * 3 / 5, "conv": 2}
    assert dict(zip(coupling.widths, path_weights(model, coupling), strict=True)) == pytest.approx(expected)


def test_depthwise_convolutions_multiply_no_number_of_paths() -> None:
    model = create_model("mobilenetv2")
    coupling = couple(model, torch.zeros(1, 3, 32, 32))
    weights = dict(zip(coupling.widths, path_weights(model, coupling), strict=True))
    assert weights["blocks.1.layers.0"] == 2  # written by the first, read by the last layer of its block


def test_two_factors_by_hand() -> None:
    """max 2 log a + log b with a b <= 8: b is worth less than a, so a grows to its limit first."""
    product = Bilinear(("a", "b"), np.array([1.0]), np.array([[0.0, 1, 0]]), np.array([[0.0, 0, 1]]))
    coupling = _pair(4, 8)
    found = synexp_widths(coupling, np.array([2.0, 1.0]), [Budget("size", product, 8 / 32)])
    assert found == pytest.approx({"a": 4.0, "b": 2.0}, rel=1e-4)


def test_a_sum_by_hand() -> None:
    """max log a + log b with a + 3 b <= 6 has every term cost the same: a = 3, b = 1."""
    total = Bilinear(("a", "b"), np.array([1.0]), np.array([[0.0, 1, 3]]), np.array([[1.0, 0, 0]]))
    found = synexp_widths(_pair(8, 8), np.array([1.0, 1.0]), [Budget("size", total, 6 / 32)])
    assert found == pytest.approx({"a": 3.0, "b": 1.0}, rel=1e-4)


def test_widening_ignores_the_dense_widths() -> None:
    total = Bilinear(("a", "b"), np.array([1.0]), np.array([[0.0, 1, 3]]), np.array([[1.0, 0, 0]]))
    narrow = synexp_widths(_pair(2, 8), np.array([1.0, 1.0]), [Budget("size", total, 6 / 26)])
    assert narrow == pytest.approx({"a": 2.0, "b": 4 / 3}, rel=1e-4)
    wide = synexp_widths(_pair(2, 8), np.array([1.0, 1.0]), [Budget("size", total, 6 / 26)], widen=True)
    assert wide == pytest.approx({"a": 3.0, "b": 1.0}, rel=1e-4)


def test_a_budget_that_binds_nothing_leaves_all_channels() -> None:
    coupling, weights, costs = _network("resnet20")
    full = {name: float(width) for name, width in coupling.widths.items()}
    assert synexp_widths(coupling, weights, [Budget("FLOPs", costs.flops, 1.0)]) == pytest.approx(full)


def test_both_budgets_at_once_hold_both() -> None:
    coupling, weights, costs = _network("resnet20")
    budgets = [Budget("FLOPs", costs.flops, 0.5), Budget("parameters", costs.params, 0.25)]
    both = synexp_widths(coupling, weights, budgets)
    for budget in budgets:
        assert budget.cost(both) <= limit(budget, coupling) * (1 + 1e-9)
    single = synexp_widths(coupling, weights, budgets[:1])
    assert budgets[1].cost(single) > limit(budgets[1], coupling)  # the second one had something to say
    # where one budget's optimum meets the other, it is the optimum of both
    loose = Budget("parameters", costs.params, 0.99)
    assert synexp_widths(coupling, weights, [budgets[0], loose]) == pytest.approx(single, rel=1e-4)


def test_the_smallest_budget_is_named() -> None:
    coupling, weights, costs = _network("resnet20")
    one = costs.flops.at(np.ones(len(coupling))) / costs.flops(coupling.widths)
    with pytest.raises(BudgetError, match=rf"FLOPs of 0.001 cannot be reached: .* there are {one:.4g} of them"):
        synexp_widths(coupling, weights, [Budget("FLOPs", costs.flops, 0.001)])
    least = synexp_widths(coupling, weights, [Budget("FLOPs", costs.flops, one)])
    assert set(least.values()) == {1.0}


@pytest.mark.parametrize("name", ["resnet20", "wrn-16-2", "mobilenetv2"])
@pytest.mark.parametrize("kind", ["FLOPs", "parameters", "both", "widened"])
def test_the_optimum_is_that_of_a_general_solver(name: str, kind: str) -> None:
    cp = pytest.importorskip("cvxpy")
    coupling, weights, costs = _network(name)
    flops, params = (Budget("f", costs.flops, 0.4), Budget("p", costs.params, 0.5))
    budgets = {"FLOPs": [flops], "parameters": [params], "both": [flops, params]}.get(kind, [flops, params])
    full = np.array([*coupling.widths.values()], dtype=float)
    # log(width / full width) of every group; costs are sums of exponentials of sums of two of them
    u = cp.Variable(len(full))
    constraints = [u >= -np.log(full)] + ([] if kind == "widened" else [u <= 0])
    constraints += [cp.log_sum_exp(_exponents(budget, full, u, cp)) <= 0 for budget in budgets]
    problem = cp.Problem(cp.Maximize(weights @ u), constraints)
    problem.solve(solver=cp.CLARABEL)
    found = synexp_widths(coupling, weights, budgets, widen=kind == "widened")
    objective = weights @ np.log(np.array([*found.values()]) / full)
    assert objective == pytest.approx(problem.value, rel=1e-6)
    assert all(budget.cost(found) <= limit(budget, coupling) * (1 + 1e-9) for budget in budgets)


def test_concatenations_meet_the_conditions_of_an_optimum() -> None:
    """Lagrange: where a width is free, what it is worth is the same multiple of what it costs; where it is at its
    limit, it is worth more."""
    coupling, weights, costs = _network("torchvision:densenet121")
    budget = Budget("FLOPs", costs.flops, 0.75)
    widths = np.array([*synexp_widths(coupling, weights, [budget]).values()])
    price = weights / (widths * budget.cost.gradient(widths) / limit(budget, coupling))
    full = np.array([*coupling.widths.values()])
    limited = widths > full * (1 - 1e-4)
    assert 0 < limited.sum() < len(full)
    multiplier = np.median(price[~limited])
    np.testing.assert_allclose(price[~limited], multiplier, rtol=1e-3)
    assert (price[limited] > multiplier * (1 - 1e-3)).all()
    assert budget.cost.at(widths) == pytest.approx(limit(budget, coupling), rel=1e-6)


def _exponents(budget: Budget, full: np.ndarray, u: object, cp: object) -> object:
    """Exponents of the monomials of ``cost / limit``."""
    cost, v = budget.cost, np.concatenate([[1.0], full])
    rows, offsets = [], []
    for coefficient, left, right in zip(cost.coefficients, cost.left * v, cost.right * v, strict=True):
        for a in np.flatnonzero(left):
            for b in np.flatnonzero(right):
                row = np.zeros(len(v))
                row[a] += 1
                row[b] += 1
                rows.append(row[1:])
                offsets.append(np.log(coefficient * left[a] * right[b] / budget.share / budget.cost.at(full)))
    return np.array(rows) @ u + np.array(offsets)  # type: ignore[operator]


def _network(name: str) -> tuple[Coupling, np.ndarray, Costs]:
    model, image = create_model(name), torch.zeros(1, 3, 32, 32)
    coupling = couple(model, image)
    return coupling, path_weights(model, coupling), costs_of(model, coupling, image)


def _pair(a: int, b: int) -> Coupling:
    from autosparse.channels.groups import ChannelGroup, Member

    def group(name: str, width: int) -> ChannelGroup:
        return ChannelGroup(name, (Member(name, "out", np.arange(width)[:, None]),))

    return Coupling((group("a", a), group("b", b)), {})
