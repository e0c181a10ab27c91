"""How much is kept, and where: exact counts, spread over the layers by a rule."""

from autosparse.budget.allocation import BUDGETS, Allocation, following, layer_counts, list_budgets
from autosparse.budget.selection import budget_counts, check_scores, density_of, keep_count, select

__all__ = [
    "BUDGETS",
    "Allocation",
    "budget_counts",
    "check_scores",
    "density_of",
    "following",
    "keep_count",
    "layer_counts",
    "list_budgets",
    "select",
]
