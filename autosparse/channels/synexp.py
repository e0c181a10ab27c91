"""SynExp-optimal widths: the allocation of PreCrop, over coupled channel groups.

PreCrop (Cai et al. 2022, arXiv 2203.02549) chooses layer densities p_l that maximise SynExp, the expected SynFlow
score over random masks and weights. On a chain its logarithm is a constant plus the sum of log p_l, which knows
neither data nor weight values. Here channels are removed on both sides of a layer, so that p_l = w_in w_out, where w_g
is the share that stays of channel group g, and all tensors that additions tie share one w_g. With u_g = log w_g that is
a geometric program:

    maximise    sum over layers of (u_in + u_out)
    subject to  cost_k(exp u) <= budget_k  for parameters, FLOPs, or both
                1 / width_g <= exp u_g <= 1  (no upper bound where layers may widen: PreConfig)

What the paper leaves open is settled thus. A layer that reads several groups (a concatenation) counts the mean of
their u, weighted by width: the lower bound of log p_l by Jensen's inequality, which keeps the program convex. Grouped
and depthwise convolutions cost, but multiply no number of paths: they are left out of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from autosparse.channels.costs import Bilinear, layer_forms
from autosparse.channels.groups import Coupling
from autosparse.channels.widths import Budget
from autosparse.errors import BudgetError

_GAP = 1e-10  # of the objective to its optimum


def path_weights(model: nn.Module, coupling: Coupling) -> np.ndarray:
    """How often each group's u_g counts in the sum over layers: ``[groups]``."""
    counts = np.zeros(len(coupling))
    full = np.array([1.0, *coupling.widths.values()])
    for _, outputs, inputs in layer_forms(model, coupling):
        for form in (outputs, inputs):
            counts += (form * full)[1:] / (form @ full)
    return counts


def synexp_widths(
    coupling: Coupling, weights: np.ndarray, budgets: Sequence[Budget], *, widen: bool = False
) -> dict[str, float]:
    """Widths, as real numbers, that maximise the sum over groups of ``weights * log(width)`` within the budgets.

    Args:
        weights: of :func:`path_weights`, positive.
        widen: groups may become wider than they are (PreConfig).

    Raises:
        BudgetError: one channel in every group costs more than a budget.
    """
    program = _Program(np.array([*coupling.widths.values()], dtype=np.float64), weights, budgets, widen)
    return dict(zip(coupling.widths, np.exp(program.solve()).tolist(), strict=True))


class _Program:
    """The geometric program in x = log(width), solved by Newton's method on a logarithmic barrier.

    (Boyd & Vandenberghe, Convex Optimization, chapter 11.) There are as many variables as groups, at most a few
    hundred, and costs are quadratic forms, so that a solution takes milliseconds.
    """

    def __init__(self, full: np.ndarray, weights: np.ndarray, budgets: Sequence[Budget], widen: bool) -> None:
        self.weights = weights
        self.upper = np.full(len(full), np.inf) if widen else np.log(full)
        #: cost = v Q v / 2 with v = (1, widths)
        self.forms = [_quadratic(budget.cost) for budget in budgets]
        self.limits = np.array([budget.share * budget.cost.at(full) for budget in budgets])
        for budget, limit in zip(budgets, self.limits, strict=True):
            least = budget.cost.at(np.ones(len(full)))
            if limit * (1 + 1e-12) < least:
                raise BudgetError(
                    f"{budget.name} of {budget.share:.4g} cannot be reached: with one channel in every group there "
                    f"are {least / budget.cost.at(full):.4g} of them"
                )

    def solve(self) -> np.ndarray:
        full = np.isfinite(self.upper).all()
        if full and (self._slack(self.upper) >= 0).all():
            return self.upper
        x = self._feasible()
        free = self.upper > 0  # a group of one channel has nothing to choose
        if not free.any() or not x.any():
            return x
        constraints = len(self.forms) + int(free.sum()) + int((free & np.isfinite(self.upper)).sum())
        scale = max(1.0, float(np.abs(self.weights).sum()))
        sharpness = 1.0
        while True:
            x = self._centre(x, free, sharpness)
            if constraints / sharpness < _GAP * scale:
                return x
            sharpness *= 20.0

    def _feasible(self) -> np.ndarray:
        """A point within all constraints, as far from them as halving finds."""
        top = np.where(np.isfinite(self.upper), self.upper, np.log(1e4))
        x = 0.5 * top
        while any(self._slack(x) <= 0) and float(x.max()) > 1e-12:
            x = 0.5 * x
        return x if all(self._slack(x) > 0) else np.zeros_like(x)

    def _slack(self, x: np.ndarray) -> np.ndarray:
        """log(budget) - log(cost), one each."""
        v = np.concatenate([[1.0], np.exp(x)])
        costs = np.array([v @ form @ v / 2 for form in self.forms])
        return np.log(self.limits) - np.log(costs)

    def _barrier(self, x: np.ndarray, free: np.ndarray, sharpness: float) -> float:
        slack = self._slack(x)
        room = np.concatenate([x[free], (self.upper - x)[free & np.isfinite(self.upper)], slack])
        if (room <= 0).any():
            return np.inf
        return float(-sharpness * (self.weights @ x) - np.log(room).sum())

    def _centre(self, x: np.ndarray, free: np.ndarray, sharpness: float) -> np.ndarray:
        """The barrier's minimum, by damped Newton steps from ``x``."""
        value = self._barrier(x, free, sharpness)
        for _ in range(100):
            gradient, hessian = self._derivatives(x, free, sharpness)
            step = np.zeros_like(x)
            step[free] = -np.linalg.solve(hessian[np.ix_(free, free)], gradient[free])
            decrease = float(-gradient[free] @ step[free])
            if decrease < 1e-12:
                break
            length = 1.0
            while (moved := self._barrier(x + length * step, free, sharpness)) > value - 1e-4 * length * decrease:
                length /= 2
                if length < 1e-12:
                    return x
            x, value = x + length * step, moved
        return x

    def _derivatives(self, x: np.ndarray, free: np.ndarray, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
        v = np.concatenate([[1.0], np.exp(x)])
        gradient = -sharpness * self.weights
        hessian = np.zeros((len(x), len(x)))
        for form, slack in zip(self.forms, self._slack(x), strict=True):
            cost = v @ form @ v / 2
            first = (v * (form @ v))[1:] / cost  # of log cost
            second = (v[:, None] * form * v)[1:, 1:] / cost + np.diag(first) - np.outer(first, first)
            gradient = gradient + first / slack
            hessian += second / slack + np.outer(first, first) / slack**2
        below, above = np.where(free, 1 / np.where(free, x, 1), 0.0), np.where(free, 1 / (self.upper - x), 0.0)
        return gradient - below + above, hessian + np.diag(below**2 + above**2)


def _quadratic(cost: Bilinear) -> np.ndarray:
    """The symmetric Q with ``cost = v Q v / 2``."""
    product = (cost.coefficients[:, None] * cost.left).T @ cost.right
    return product + product.T
