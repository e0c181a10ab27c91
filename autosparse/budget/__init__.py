"""How much is kept, and where: exact counts, spread over the layers by a rule."""

from autosparse.budget.allocation import BUDGETS, layer_counts, list_budgets
from autosparse.budget.selection import check_scores, density_of, keep_count, select

__all__ = ["BUDGETS", "check_scores", "density_of", "keep_count", "layer_counts", "list_budgets", "select"]
