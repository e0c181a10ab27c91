"""What is important: criteria give every prunable weight a score, larger means keep.

Every module of this package is imported here, so that a new criterion is one new file.
"""

import importlib
import pkgutil

from autosparse.criteria.base import CRITERIA, INGREDIENTS, Criterion, Scores, Stream, criterion, list_criteria, score
from autosparse.criteria.gradients import Batches, LossFn, mean_gradient, untouched

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "CRITERIA",
    "INGREDIENTS",
    "Batches",
    "Criterion",
    "LossFn",
    "Scores",
    "Stream",
    "criterion",
    "list_criteria",
    "mean_gradient",
    "score",
    "untouched",
]
