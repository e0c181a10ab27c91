"""Statistics of repeated runs: intervals over seeds, paired differences, correction for many tests, ranks.

Only numbers come in. With the handful of seeds that a benchmark has, all of this rests on the assumption that the
values (or the differences of pairs) are about normally distributed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Level of all tests, and the confidence of all intervals.
ALPHA = 0.05
CONFIDENCE = 1 - ALPHA
#: Spreads below this are rounding: an accuracy is a count over at most some millions of images.
_NO_SPREAD = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` values and how well it is known.

    ``std`` is the sample standard deviation and ``half_width`` half the t-interval of the mean; one value has neither.
    """

    n: int
    mean: float
    std: float | None = None
    half_width: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper end of the interval; None for a single value."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)


@dataclass(frozen=True)
class PairedDifference:
    """Mean of the differences of pairs, with the two-sided p of the paired t-test.

    ``p`` is None when there is nothing to test with: a single pair, or the same difference (not 0) in every pair.
    """

    estimate: Estimate
    p: float | None = None


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over blocks (1 is the best, ties share their mean) and whether they differ at all.

    ``p`` is that of the Friedman test; None for fewer than three names or two blocks, or when every block is tied.
    ``critical_difference``: mean ranks closer than this are not told apart (Nemenyi's test at 5 %); None as for ``p``.
    """

    mean_ranks: Mapping[str, float]
    blocks: int
    p: float | None = None
    critical_difference: float | None = None


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of ``values`` with its t-interval.

    x̄ ± t(1 - α/2; n - 1) · s / √n with s² = Σ (xᵢ - x̄)² / (n - 1) and α = 1 - ``confidence``. Equal values have an
    interval of width 0, which says that they are equal and not that the next one will be.

    Raises:
        ValueError: no values.
    """
    x = np.asarray(values, dtype=float)
    n = len(x)
    if n == 0:
        raise ValueError("no values: nothing to estimate")
    mean = float(x.mean())
    if n == 1:
        return Estimate(1, mean)
    s = float(x.std(ddof=1))
    s = 0.0 if s < _NO_SPREAD else s
    from scipy import stats  # slow to import

    t = float(stats.t.ppf((1 + confidence) / 2, n - 1))
    return Estimate(n, mean, s, t * s / math.sqrt(n))


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = CONFIDENCE
) -> PairedDifference | None:
    """Ours minus theirs over the seeds that both have; None when there is no such seed.

    With dᵢ the differences: d̄ ± t(1 - α/2; n - 1) · s_d / √n, and p = 2 · P(T(n - 1) > |d̄| / (s_d / √n)). When all
    differences are 0, p is 1.

    Args:
        ours, theirs: seed -> value. Equal seeds share everything but the method, which is what pairs them.
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    found = estimate(differences, confidence)
    if found.std is None:
        return PairedDifference(found)
    if found.std == 0:
        return PairedDifference(found, 1.0 if abs(found.mean) < _NO_SPREAD else None)
    from scipy import stats

    t = abs(found.mean) / (found.std / math.sqrt(found.n))
    return PairedDifference(found, float(2 * stats.t.sf(t, found.n - 1)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: comparing each with α keeps the chance of any false discovery below α.

    For the m values that are not None, sorted: p̃₍ᵢ₎ = max over j ≤ i of min(1, (m - j + 1) · p₍ⱼ₎). None stays None and
    does not count.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for place, (p, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - place) * p))
        adjusted[index] = highest
    return adjusted


def rank(table: Mapping[str, Sequence[float]], confidence: float = CONFIDENCE) -> Ranks | None:
    """Rank names within each block, higher values first, and average; None without a name or a block.

    The Friedman statistic, corrected for ties, is compared with χ²(k - 1) for k names. Critical difference:
    q(1 - α; k, ∞) / √2 · √(k (k + 1) / (6 N)) with the studentised range q and N blocks (Demšar 2006).

    Args:
        table: name -> one value a block, in the same order of blocks for every name.

    Raises:
        ValueError: rows of different lengths.
    """
    if len({len(values) for values in table.values()}) > 1:
        raise ValueError("every name needs one value a block")
    values = np.array(list(table.values()), dtype=float)  # [names, blocks]
    if values.size == 0:
        return None
    from scipy import stats

    k, blocks = values.shape
    ranks = stats.rankdata(-values, axis=0)
    means = dict(zip(table, ranks.mean(axis=1).tolist(), strict=True))
    if k < 3 or blocks < 2 or bool((ranks == ranks[0]).all()):
        return Ranks(means, blocks)
    q = float(stats.studentized_range.ppf(confidence, k, np.inf))
    critical = q / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * blocks))
    return Ranks(means, blocks, float(stats.friedmanchisquare(*values).pvalue), critical)
