"""What is important: criteria give every prunable weight a score, larger means keep."""

from autosparse.criteria import autos, magnitude, random, snip
from autosparse.criteria.base import CRITERIA, Criterion, Scores, criterion, list_criteria, score
from autosparse.criteria.gradients import Batches, LossFn, mean_gradient, untouched

__all__ = [
    "CRITERIA",
    "Batches",
    "Criterion",
    "LossFn",
    "Scores",
    "autos",
    "criterion",
    "list_criteria",
    "magnitude",
    "mean_gradient",
    "random",
    "score",
    "snip",
    "untouched",
]
