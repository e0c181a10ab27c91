"""The contract of a criterion, and their registry."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autosparse.criteria.gradients import Batches, LossFn, untouched
from autosparse.errors import AutoSparseError
from autosparse.registry import Registry
from autosparse.scorer.network import Scorer

Scores = dict[str, Tensor]
_INGREDIENTS = frozenset({"model", "batches", "loss_fn", "generator", "scorer"})


@dataclass(frozen=True)
class Criterion:
    """A named scoring function and the ingredients that it asks for by the names of its parameters."""

    name: str
    function: Callable[..., Scores]
    paper: str
    needs: frozenset[str]

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


CRITERIA: Registry[Criterion] = Registry("criterion")


def criterion(name: str, *, paper: str = "") -> Callable[[Callable[..., Scores]], Callable[..., Scores]]:
    """Register a criterion.

    The function names what it needs: any of ``model``, ``batches``, ``loss_fn``, ``generator`` (a CPU
    ``torch.Generator``) and ``scorer``. It returns one tensor a prunable weight, of the weight's shape, and does
    nothing else. ValueError for an unknown ingredient or a name that is taken.
    """

    def decorate(function: Callable[..., Scores]) -> Callable[..., Scores]:
        needs = frozenset(inspect.signature(function).parameters)
        if needs - _INGREDIENTS:
            raise ValueError(
                f"criterion '{name}' asks for {sorted(needs - _INGREDIENTS)}; known: {sorted(_INGREDIENTS)}"
            )
        CRITERIA.add(name, Criterion(name, function, paper, needs))
        return function

    return decorate


def list_criteria() -> list[str]:
    return CRITERIA.names()


def score(
    name: str,
    model: nn.Module,
    *,
    batches: Batches | None = None,
    loss_fn: LossFn | None = None,
    generator: torch.Generator | None = None,
    scorer: Scorer | None = None,
) -> Scores:
    """Scores of every prunable weight under the criterion ``name``.

    The model comes back as it was: weights, buffers, gradients, train/eval flags, and the global RNG.

    Raises:
        UnknownNameError: no such criterion. AutoSparseError: it needs something that was not given.
    """
    entry = CRITERIA.get(name)
    given: dict[str, Any] = {
        "model": model,
        "batches": batches,
        "loss_fn": loss_fn,
        "generator": generator,
        "scorer": scorer,
    }
    for need in sorted(entry.needs):
        if given[need] is None:
            raise AutoSparseError(f"criterion '{name}' needs {need}, which was not given")
    with untouched(model):
        scores = entry.function(**{need: given[need] for need in entry.needs})
    return {key: value.detach() for key, value in scores.items()}
