"""Tickets from trained weights: iterative pruning with rewinding, and pruning once after training."""

from autosparse.rewinding.after_training import AfterTrainingPruner
from autosparse.rewinding.loop import Rounds
from autosparse.rewinding.rewinder import Rewinder
from autosparse.rewinding.ticket import BUDGET_OF, OnRound, Ticket, trained_scores

__all__ = ["BUDGET_OF", "AfterTrainingPruner", "OnRound", "Rewinder", "Rounds", "Ticket", "trained_scores"]
