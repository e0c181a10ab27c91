"""Pruning at initialisation: in one shot, or in rounds that score what the last one left."""

from __future__ import annotations

from dataclasses import dataclass

from autosparse.errors import AutoSparseError, UnknownNameError

PATHS = ("exponential", "linear", "halving")


@dataclass(frozen=True)
class AtInit:
    """Before the first step of training.

    Args:
        rounds: how often the network is scored and pruned. In each round it has lost what the rounds before removed.
        path: the densities on the way to d. ``exponential`` keeps d^(k/n) after round k of n (SynFlow, FORCE).
            ``linear`` removes the same number of weights in every round. ``halving`` halves in every round the
            distance that the sparsity has to its target s, starting from s - 0.5 (CroPit; from 0.25 when s <= 0.5),
            and reaches it in the last.
        regrow: removed weights may return in a later round (FORCE); otherwise the masks are nested.
    """

    rounds: int = 1
    path: str = "exponential"
    regrow: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise AutoSparseError(f"rounds is {self.rounds}: give 1 or more")
        if self.path not in PATHS:
            raise UnknownNameError("path of densities", self.path, PATHS)

    def __str__(self) -> str:
        return "at init" if self.rounds == 1 else f"at init, {self.rounds} rounds"

    def densities(self, density: float) -> list[float]:
        """The density after each round; the last one is ``density``."""
        n = self.rounds
        if self.path == "exponential":
            way = [density ** (k / n) for k in range(1, n)]
        elif self.path == "linear":
            way = [1 - (1 - density) * k / n for k in range(1, n)]
        else:
            target = 1 - density
            first = 0.5 if target > 0.5 else min(0.25, target)
            way = [1 - (target - (target - first) * 0.5**k) for k in range(n - 1)]
        return [*way, density]


ONE_SHOT = AtInit()
