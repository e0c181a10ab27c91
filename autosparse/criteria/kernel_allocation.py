"""How many weights each kernel of a layer gets: NPB's integer programme, solved exactly.

Pham et al. 2023, "Towards Data-Agnostic Pruning at Initialization: What Makes a Good Sparse Mask?" (NeurIPS), choose
M in Z^(C_in x C_out), the number of weights of the kernel from input channel i to output channel j, by

    maximise  alpha A + (1 - alpha) B + beta C   subject to   0 <= M_ij <= m_max,  sum M <= n
    A = 1 - [sum_i (n_min - sum_j M_ij)+  +  sum_j (n_min - sum_i M_ij)+] / (C_in + C_out)      effective nodes
    B = sum_ij P_i M_ij / (the largest sum that n weights can reach)                            effective paths
    C = [n - sum_ij (1 - M_ij)+] / n                                                            kernels in use

and hand it to a solver for mixed-integer programmes. None is needed:

* Given the row sums r_i = sum_j M_ij, spread each row over its kernels as evenly as it goes, and give the odd weights
  to the columns that have least. Then every column sum is within 1 of the others. That is best for the columns' part
  of A, which is concave in each column sum, and best for C, while the rows' part of A and B know row sums only. So no
  choice of the row sums forbids the best columns or the best use of kernels.
* What is left is concave and piecewise linear in each r_i. One weight more in row i is worth

      (1 - alpha) P_i / B_max  +  beta/n [r_i < kernels of the row]  +  alpha/(C_in + C_out) [r_i < n_min]

  plus alpha/(C_in + C_out) for a column, as long as the columns of its group can be filled to n_min. Such functions,
  concave in sums over rows and over the (disjoint) groups of rows, are maximised by taking the n most valuable
  weights one after the other.

No weight has a negative value, so all n are used. Rows of equal value share evenly, where any division is optimal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autosparse.errors import AutoSparseError


@dataclass(frozen=True)
class KernelAllocation:
    """One layer's problem, in the paper's letters.

    Args:
        paths: P ``[C_in]``, non-negative; only ratios matter.
        outputs: C_out.
        groups: input channels i of one group meet the outputs of that group only: ``C_out / groups`` kernels a row.
        count: n, the number of weights.
        max_kernel: m_max; raised to the least that lets n weights fit.
        min_node: n_min, the weights that an input or output channel should have.
    """

    paths: np.ndarray
    outputs: int
    groups: int
    count: int
    alpha: float = 0.01
    beta: float = 1.0
    max_kernel: int = 9
    min_node: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or self.beta < 0 or self.max_kernel < 1 or self.min_node < 0:
            raise AutoSparseError(
                f"npb with alpha={self.alpha}, beta={self.beta}, max_kernel={self.max_kernel}, "
                f"min_node={self.min_node}: alpha lies in [0, 1], max_kernel is at least 1, nothing is negative"
            )

    @property
    def inputs(self) -> int:
        return len(self.paths)

    @property
    def row(self) -> int:
        """Kernels of one input channel."""
        return self.outputs // self.groups

    @property
    def limit(self) -> int:
        """m_max, or more where n weights would not fit."""
        return max(self.max_kernel, math.ceil(self.count / (self.inputs * self.row)))

    @property
    def path_value(self) -> np.ndarray:
        """(1 - alpha) P_i / B_max ``[C_in]``, free of rounding, so that equal numbers of paths stay equal."""
        if self.count == 0 or self.paths.max() <= 0:
            return np.zeros(self.inputs)
        relative = np.round(self.paths / self.paths.max(), 9)
        full, rest = divmod(self.count, self.row * self.limit)
        descending = np.append(np.sort(relative)[::-1], 0.0)
        return (1 - self.alpha) * relative / (descending[:full].sum() * self.row * self.limit + descending[full] * rest)

    @property
    def kernel_value(self) -> float:
        """beta / n: what the first weight of a kernel adds."""
        return self.beta / max(1, self.count)

    @property
    def node_value(self) -> float:
        """alpha / (C_in + C_out): what a weight adds to a channel that has fewer than n_min."""
        return self.alpha / (self.inputs + self.outputs)

    def objective(self, kernels: np.ndarray) -> float:
        """alpha A + (1 - alpha) B + beta C of ``kernels [C_in, C_out / groups]``."""
        columns = kernels.reshape(self.groups, -1, self.row).sum(axis=1)
        missing = np.maximum(self.min_node - kernels.sum(axis=1), 0).sum()
        missing += np.maximum(self.min_node - columns, 0).sum()
        effective_nodes = self.alpha - self.node_value * missing
        effective_paths = self.path_value @ kernels.sum(axis=1)
        kernels_in_use = self.beta - self.kernel_value * (kernels == 0).sum()
        return float(effective_nodes + effective_paths + kernels_in_use)

    def solve(self, rng: np.random.Generator) -> np.ndarray:
        """An optimal M as int64 ``[C_in, C_out / groups]`` with exactly n weights.

        Columns are relative to the row's group. Chance decides only between optima: which columns get odd weights,
        and which of equal rows.
        """
        rows = self._row_sums(rng).reshape(self.groups, -1)
        kernels = np.empty((self.groups, rows.shape[1], self.row), dtype=np.int64)
        for group, sums in enumerate(rows):
            load = np.zeros(self.row)  # odd weights that each column has got
            for i in rng.permutation(len(sums)):
                kernels[group, i], odd = divmod(int(sums[i]), self.row)
                if odd:
                    least = np.argpartition(load + rng.random(self.row), odd - 1)[:odd]
                    kernels[group, i, least] += 1
                    load[least] += 1
        return kernels.reshape(self.inputs, self.row)

    def _row_sums(self, rng: np.random.Generator) -> np.ndarray:
        """r ``[C_in]``."""
        ends, values = self._steps()
        for_columns = min(self.min_node * self.row, self.inputs // self.groups * self.row * self.limit)
        if self.groups > 1 and for_columns:
            # The first weights of each group fill its columns: they are worth more, whichever row they fall to.
            by_group = zip(np.split(ends, self.groups), np.split(values, self.groups), strict=True)
            filling = np.concatenate([_most_valuable(*steps, for_columns, rng) for steps in by_group])
            ends = np.sort(np.column_stack([ends, filling]), axis=1)
            starts = ends - np.diff(ends, axis=1, prepend=0)
            values = self._values(starts) + self.node_value * (starts < filling[:, None])
        return _most_valuable(ends, values, self.count, rng)

    def _steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each row's next weight changes in value, and the value up to there; both ``[C_in, steps]``."""
        full = self.row * self.limit
        ends = np.sort([min(self.min_node, full), self.row, full])
        ends = np.tile(ends, (self.inputs, 1))
        return ends, self._values(ends - np.diff(ends, axis=1, prepend=0))

    def _values(self, rows: np.ndarray) -> np.ndarray:
        """The value of one weight more in rows that have ``rows [C_in, steps]``, but for the columns' part."""
        return (
            self.path_value[:, None] + self.kernel_value * (rows < self.row) + self.node_value * (rows < self.min_node)
        )


def _most_valuable(ends: np.ndarray, values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """How many of the ``count`` most valuable weights each row has; ``[rows]``, int64.

    Args:
        ends, values: ``[rows, steps]``; the weights of a row up to the first end have the first value, and so on.
            Ends ascend and values do not ascend. Weights of the value at which the count is reached are taken from all
            rows evenly: up to a common level, and one more from rows drawn by chance.
    """
    sizes = np.diff(ends, axis=1, prepend=0)
    order = np.argsort(-values, axis=None, kind="stable")
    reached = np.searchsorted(np.cumsum(sizes.ravel()[order]), count)
    last = values.ravel()[order[int(reached)]]
    low = (sizes * (values > last)).sum(axis=1)
    high = (sizes * (values >= last)).sum(axis=1)
    level_low, level_high = 0, int(ends.max())
    while level_low < level_high:  # the highest level that takes no more than count
        level = (level_low + level_high + 1) // 2
        if np.clip(level, low, high).sum() <= count:
            level_low = level
        else:
            level_high = level - 1
    taken = np.clip(level_low, low, high)
    open_rows = np.flatnonzero((taken < high) & (taken == level_low))
    taken[rng.permutation(open_rows)[: count - int(taken.sum())]] += 1
    return taken.astype(np.int64)
