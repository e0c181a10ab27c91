"""NPB's integer programme: its three terms by hand, and optimal solutions by enumeration and by linear programming."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from autosparse.criteria.kernel_allocation import KernelAllocation
from autosparse.errors import AutoSparseError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def best_path_sum(problem: KernelAllocation) -> float:
    """The largest sum of P_i M_ij, weight by weight."""
    slots = sorted((p for p in problem.paths for _ in range(problem.row * problem.limit)), reverse=True)
    return float(sum(slots[: problem.count]))


def value(problem: KernelAllocation, kernels: np.ndarray) -> np.ndarray:
    """The objective of many ``kernels [..., C_in, C_out / groups]``, term by term from the paper's formulas."""
    n, row, width = problem.count, problem.row, problem.inputs // problem.groups
    rows = kernels.sum(axis=-1)
    columns = np.concatenate(
        [kernels[..., g * width : (g + 1) * width, :].sum(axis=-2) for g in range(problem.groups)], axis=-1
    )
    missing = np.clip(problem.min_node - rows, 0, None).sum(-1) + np.clip(problem.min_node - columns, 0, None).sum(-1)
    a = 1 - missing / (problem.inputs + problem.groups * row)
    best = best_path_sum(problem)
    b = (rows * problem.paths).sum(-1) / best if best else np.zeros(rows.shape[:-1])
    c = (n - np.clip(1 - kernels, 0, None).sum((-1, -2))) / n
    return problem.alpha * a + (1 - problem.alpha) * b + problem.beta * c


# ---------------------------------------------------------------------------------------------------- by hand


def test_two_by_two_by_hand() -> None:
    problem = KernelAllocation(np.array([3.0, 1.0]), outputs=2, groups=1, count=3, alpha=0.5, beta=1, max_kernel=2)
    # One of four nodes (the second output) has no weight; 2 * 3 + 1 * 1 = 7 of at most 9 paths; 2 empty kernels.
    expected = 0.5 * (1 - 1 / 4) + 0.5 * 7 / 9 + (3 - 2) / 3
    assert problem.objective(np.array([[2, 0], [1, 0]])) == pytest.approx(expected, abs=1e-9)
    # The kernels of the first input come first, then one of the second: A = 1, B = 7/9, C = (3 - 1) / 3.
    solved = problem.solve(rng())
    assert solved.sum(axis=1).tolist() == [2, 1]
    assert solved[0].tolist() == [1, 1]
    assert problem.objective(solved) == pytest.approx(0.5 + 0.5 * 7 / 9 + 2 / 3, abs=1e-9)


@pytest.mark.parametrize(("min_node", "nodes"), [(1, 4 / 5), (2, 2 / 5)])
def test_three_by_two_by_hand(min_node: int, nodes: float) -> None:
    paths = np.array([4.0, 2.0, 0.0])
    problem = KernelAllocation(paths, 2, 1, 5, alpha=0.1, beta=2.0, max_kernel=2, min_node=min_node)
    # Rows 4, 1, 0 and columns 2, 3: with n_min = 1 the last input lacks one; with 2 the second lacks one, the last two.
    # 4 * 4 + 1 * 2 = 18 paths are the most that five weights reach; 3 of 6 kernels are empty.
    kernels = np.array([[2, 2], [0, 1], [0, 0]])
    assert problem.objective(kernels) == pytest.approx(0.1 * nodes + 0.9 * 1 + 2 * (5 - 3) / 5, abs=1e-9)


def test_without_a_reward_for_kernels_paths_fill_the_best_input() -> None:
    problem = KernelAllocation(np.array([1.0, 5.0, 2.0]), 2, 1, 7, alpha=0.0, beta=0.0, max_kernel=3)
    assert problem.solve(rng()).sum(axis=1).tolist() == [0, 6, 1]


def test_with_nodes_alone_every_channel_gets_its_least() -> None:
    problem = KernelAllocation(np.array([9.0, 1.0, 0.0, 0.0]), 3, 1, 8, alpha=1.0, beta=0.0, min_node=2)
    solved = problem.solve(rng())
    assert solved.sum(axis=1).tolist() == [2, 2, 2, 2]
    assert sorted(solved.sum(axis=0).tolist()) == [2, 3, 3]


def test_equal_rows_share_evenly() -> None:
    solved = KernelAllocation(np.full(4, 1e20), 6, 1, 14).solve(rng())
    assert sorted(solved.sum(axis=1).tolist()) == [3, 3, 4, 4]
    assert sorted(solved.sum(axis=0).tolist()) == [2, 2, 2, 2, 3, 3]
    assert solved.max() == 1


# -------------------------------------------------------------------------------------------------- optimality


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "max_kernel"),
    [(2, 2, 1, 3), (3, 2, 1, 4), (2, 4, 1, 2), (3, 3, 1, 2), (4, 4, 2, 2), (4, 2, 2, 4), (4, 4, 4, 4), (6, 6, 3, 1)],
)
def test_solutions_are_optimal_among_all_allocations(inputs: int, outputs: int, groups: int, max_kernel: int) -> None:
    row = outputs // groups
    everything = np.array(list(itertools.product(range(max_kernel + 1), repeat=inputs * row)))
    everything = everything.reshape(-1, inputs, row)
    totals = everything.sum(axis=(1, 2))
    random = rng(inputs * 100 + outputs * 10 + max_kernel)
    for _ in range(25):
        problem = KernelAllocation(
            random.integers(0, 4, inputs).astype(float) if random.random() < 0.5 else random.random(inputs),
            outputs=outputs,
            groups=groups,
            count=int(random.integers(1, inputs * row * max_kernel + 1)),
            alpha=float(random.choice([0.0, 0.01, 0.3, 0.9, 1.0])),
            beta=float(random.choice([0.0, 0.1, 1.0, 2.0])),
            max_kernel=max_kernel,
            min_node=int(random.integers(0, 4)),
        )
        solved = problem.solve(random)
        assert solved.shape == (inputs, row)
        assert solved.sum() == problem.count
        assert 0 <= solved.min() <= solved.max() <= max_kernel
        found = float(value(problem, solved))
        assert found == pytest.approx(value(problem, everything[totals <= problem.count]).max(), abs=1e-7), problem
        assert problem.objective(solved) == pytest.approx(found, abs=1e-7)


def relaxed_optimum(problem: KernelAllocation) -> float:
    """The objective's maximum over real M, so that no allocation is better.

    The variables are M, what rows and columns lack, and how empty the kernels are.
    """
    rows, row, groups = problem.inputs, problem.row, problem.groups
    kernels, width = rows * row, rows // groups
    columns = groups * row
    empties = problem.beta / problem.count
    lack = problem.alpha / (rows + columns)
    cost = np.concatenate(
        [
            -(1 - problem.alpha) * np.repeat(problem.paths, row) / best_path_sum(problem),
            np.full(rows + columns, lack),
            np.full(kernels, empties),
        ]
    )
    at_most = [np.concatenate([np.ones(kernels), np.zeros(rows + columns + kernels)])]
    bounds = [float(problem.count)]
    for i in range(rows):
        line = np.zeros(len(cost))
        line[i * row : (i + 1) * row] = line[kernels + i] = -1
        at_most.append(line)
        bounds.append(-problem.min_node)
    for g, j in itertools.product(range(groups), range(row)):
        line = np.zeros(len(cost))
        line[[(g * width + i) * row + j for i in range(width)]] = line[kernels + rows + g * row + j] = -1
        at_most.append(line)
        bounds.append(-problem.min_node)
    for k in range(kernels):
        line = np.zeros(len(cost))
        line[k] = line[kernels + rows + columns + k] = -1
        at_most.append(line)
        bounds.append(-1.0)
    limits = [(0, problem.limit)] * kernels + [(0, None)] * (rows + columns + kernels)
    result = linprog(cost, A_ub=np.array(at_most), b_ub=np.array(bounds), bounds=limits, method="highs")
    assert result.status == 0
    return float(problem.alpha + problem.beta - result.fun)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_larger_solutions_reach_the_bound_of_the_relaxation(seed: int, groups: int) -> None:
    random = rng(seed)
    inputs, outputs = 3 * int(random.integers(2, 5)), 3 * int(random.integers(1, 5))
    problem = KernelAllocation(
        random.random(inputs) ** 2,
        outputs=outputs,
        groups=groups,
        count=int(random.integers(1, 5 * inputs * outputs // groups)),
        alpha=float(random.random()),
        beta=float(random.random()),
        max_kernel=5,
        min_node=int(random.integers(0, 7)),
    )
    assert float(value(problem, problem.solve(random))) == pytest.approx(relaxed_optimum(problem), abs=1e-7)


def test_kernels_hold_more_where_the_count_does_not_fit() -> None:
    solved = KernelAllocation(np.array([1.0, 2.0]), 2, 1, 11, max_kernel=2).solve(rng())
    assert solved.sum() == 11
    assert solved.max() == 3  # the least that lets 11 weights fit into 4 kernels


def test_a_layer_of_no_weights_and_one_without_paths_have_solutions() -> None:
    assert not KernelAllocation(np.array([1.0, 2.0]), 2, 1, 0).solve(rng()).any()
    assert KernelAllocation(np.zeros(2), 2, 1, 3).solve(rng()).sum() == 3


def test_chance_is_the_generators() -> None:
    problem = KernelAllocation(np.ones(8), 8, 1, 20)
    assert np.array_equal(problem.solve(rng(1)), problem.solve(rng(1)))
    assert not np.array_equal(problem.solve(rng(1)), problem.solve(rng(2)))


@pytest.mark.parametrize(
    "wrong", [{"alpha": 1.5}, {"alpha": -0.1}, {"beta": -1.0}, {"max_kernel": 0}, {"min_node": -1}]
)
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    name, number = next(iter(wrong.items()))
    with pytest.raises(AutoSparseError, match=rf"npb with .*{name}={number}"):
        KernelAllocation(np.ones(2), 2, 1, 1, **wrong)  # type: ignore[arg-type]
