"""How well a score predicts survival."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Fractions of the weights for which the overlap with the true survivors is reported.
TOP_FRACTIONS = (0.05, 0.02, 0.01)


@dataclass(frozen=True)
class Prediction:
    """Agreement of predictions with labels. ``overlap`` maps a fraction to the share of true survivors found."""

    r2: float
    spearman: float
    overlap: dict[str, float]


def top_overlap(predicted: np.ndarray, label: np.ndarray, fraction: float) -> float:
    """Share of the ``fraction`` of weights with the largest labels that the largest predictions find.

    Labels are whole rounds and tie at the boundary; which of the tied weights belong to the true top is then a matter
    of chance, and the expected share is returned. Tied predictions count in order of position, as in pruning.
    """
    k = max(1, round(fraction * len(label)))
    chosen = label[np.argsort(-predicted, kind="stable")[:k]]
    boundary = np.partition(label, len(label) - k)[len(label) - k]
    above, at = int((label > boundary).sum()), int((label == boundary).sum())
    found = (chosen > boundary).sum() + (chosen == boundary).sum() * (k - above) / at
    return float(found / k)


def compare(predicted: np.ndarray, label: np.ndarray) -> Prediction:
    """R2, Spearman's rank correlation and top overlaps of predicted survival ``[n]`` with labels ``[n]``."""
    from scipy.stats import spearmanr
    from sklearn.metrics import r2_score

    # Against a constant there is no rank to correlate with: scipy gives NaN, which JSON has no word for.
    rank = float(spearmanr(predicted, label).statistic) if np.ptp(predicted) > 0 and np.ptp(label) > 0 else 0.0
    overlap = {f"{fraction:.0%}": top_overlap(predicted, label, fraction) for fraction in TOP_FRACTIONS}
    return Prediction(float(r2_score(label, predicted)), rank, overlap)


def compare_baseline(score: np.ndarray, label: np.ndarray, fit_score: np.ndarray, fit_label: np.ndarray) -> Prediction:
    """The same figures for a score that is no survival, such as |w|.

    For R2 it is first mapped to survival by the monotone (isotonic) function that fits the fitting data best; ranks
    and overlaps are those of the raw score.
    """
    from sklearn.isotonic import IsotonicRegression
    from sklearn.metrics import r2_score

    curve = IsotonicRegression(out_of_bounds="clip").fit(fit_score, fit_label)
    raw = compare(score, label)
    return Prediction(float(r2_score(label, curve.predict(score))), raw.spearman, raw.overlap)
