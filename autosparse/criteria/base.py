"""The contract of a criterion, and their registry.

Criteria of channels (:mod:`autosparse.channels.criteria`) keep the same contract with scores of another form and a
registry of their own; what both share is generic in the scores ``S``.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from autosparse.criteria.gradients import Batches, LossFn, mean_gradient, untouched
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.layers import prunable
from autosparse.masks import Masks
from autosparse.registry import Registry
from autosparse.scorer.network import Scorer

Scores = dict[str, Tensor]
Stream = Callable[[], Iterator[tuple[Tensor, Tensor]]]
S = TypeVar("S")
Option = int | float | bool | str | None

#: What a criterion may ask for by the name of a parameter.
INGREDIENTS: Mapping[str, str] = {
    "model": "the network at its current weights; those that earlier rounds removed are zero",
    "batches": "a list of (images, labels) batches",
    "stream": "a function: batches to train on without end, augmented where the images are, from the start each time",
    "loss_fn": "loss_fn(output, labels), a mean over its batch",
    "gradients": "the mean gradient of the loss over the batches at the current weights, a tensor a layer",
    "measure_gradients": "a function that gives `gradients`, for criteria that do not always look at them",
    "example": "one image [1, ...] of the batches",
    "dense": "the weights before anything was removed, a tensor a layer",
    "masks": "what earlier rounds left, all True in the first",
    "keep": "how many weights the coming selection keeps",
    "counts": "how many weights each layer keeps, where the budget fixes that; otherwise None",
    "generator": "a CPU torch.Generator",
    "scorer": "a learned scorer",
}
_FROM_DATA = frozenset({"batches", "stream", "gradients", "measure_gradients", "example"})


def fits(value: object, default: Option) -> bool:
    """Whether an option with ``default`` can have ``value``: its type, an integer for a float, anything for None."""
    return default is None or type(value) is type(default) or (type(default) is float and type(value) is int)


@dataclass(frozen=True)
class Criterion(Generic[S]):
    """A named scoring function, the ingredients that it asks for by the names of its parameters, and its options."""

    name: str
    function: Callable[..., S]
    paper: str
    needs: frozenset[str]
    options: Mapping[str, Option]
    check: Callable[[nn.Module, Tensor], None]

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def looks_at_gradients(self) -> bool:
        """Whether the mean gradient at the given weights may be asked for."""
        return bool(self.needs & {"gradients", "measure_gradients"})

    @property
    def needs_data(self) -> bool:
        return bool(self.needs & _FROM_DATA)

    def check_options(self, given: Mapping[str, Any]) -> dict[str, Option]:
        """``given`` over the defaults; an error names an option that the criterion lacks, or a value of another type.

        An integer passes for a float.
        """
        for name, value in given.items():
            if name not in self.options:
                raise UnknownNameError(f"option of {self.name}", name, self.options)
            default = self.options[name]
            if not fits(value, default):
                raise AutoSparseError(
                    f"option {name} of {self.name} is {value!r}: give a value such as {default!r}, its default"
                )
        return {**self.options, **given}


CRITERIA: Registry[Criterion[Scores]] = Registry("criterion")


def _any_network(model: nn.Module, x: Tensor) -> None:
    """The check of a criterion that applies to every network."""


def criterion(
    name: str, *, paper: str = "", check: Callable[[nn.Module, Tensor], None] = _any_network
) -> Callable[[Callable[..., Scores]], Callable[..., Scores]]:
    """Register a criterion.

    The function names what it needs: positional parameters are ingredients (:data:`INGREDIENTS`), keyword-only
    parameters with a default are options that a user may set. It returns one tensor a prunable weight, of the weight's
    shape, and does nothing else.

    Args:
        check: ``check(model, images [2, ...])`` raises an AutoSparseError for a network that cannot be scored.

    Raises:
        ValueError: an unknown ingredient, an option without default, or a name that is taken.
    """
    return entering(CRITERIA, INGREDIENTS, name, paper, check)


def entering(
    registry: Registry[Criterion[S]],
    ingredients: Collection[str],
    name: str,
    paper: str = "",
    check: Callable[[nn.Module, Tensor], None] = _any_network,
) -> Callable[[Callable[..., S]], Callable[..., S]]:
    """A decorator that enters a function into ``registry``, as :func:`criterion` says, with other ``ingredients``."""
    kind = registry.kind

    def decorate(function: Callable[..., S]) -> Callable[..., S]:
        parameters = inspect.signature(function).parameters
        options = {key: p.default for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        needs = frozenset(parameters) - frozenset(options)
        if unknown := needs - frozenset(ingredients):
            raise ValueError(f"{kind} '{name}' asks for {sorted(unknown)}; known: {sorted(ingredients)}")
        if open_ended := [key for key, value in options.items() if value is inspect.Parameter.empty]:
            raise ValueError(f"{kind} '{name}' has options without a default: {open_ended}")
        registry.add(name, Criterion(name, function, paper, needs, options, check))
        return function

    return decorate


def list_criteria() -> list[str]:
    return CRITERIA.names()


@dataclass
class Ingredients:
    """What criteria may ask for; what is not given is derived from the rest, or missing."""

    model: nn.Module
    batches: Batches | None = None
    stream: Stream | None = None
    loss_fn: LossFn | None = None
    generator: torch.Generator | None = None
    scorer: Scorer | None = None
    gradients: Mapping[str, Tensor] | None = None
    dense: Mapping[str, Tensor] | None = None
    masks: Masks | None = None
    keep: int | None = None
    counts: Mapping[str, int] | None = None
    _listed: list[tuple[Tensor, Tensor]] | None = field(default=None, init=False, repr=False)

    def get(self, name: str) -> Any:
        """The ingredient called ``name``; ``None`` when it is missing."""
        if name == "batches":
            return self._batches()
        if name == "stream" and self.stream is None and (batches := self._batches()):
            return lambda: itertools.cycle(batches)
        if name == "gradients" and self.gradients is None and self._batches() and self.loss_fn:
            return mean_gradient(self.model, self._batches() or [], self.loss_fn)
        if name == "measure_gradients":
            known = self.gradients is not None or (self._batches() and self.loss_fn)
            return partial(self.get, "gradients") if known else None
        if name == "example":
            batches = self._batches()
            return batches[0][0][:1].to(next(iter(prunable(self.model).values())).device) if batches else None
        if name == "dense" and self.dense is None:
            return {key: weight.detach() for key, weight in prunable(self.model).items()}
        if name == "masks" and self.masks is None:
            return Masks.dense(self.model)
        return getattr(self, name)

    def _batches(self) -> list[tuple[Tensor, Tensor]] | None:
        if self._listed is None and self.batches is not None:
            self._listed = list(self.batches)
        return self._listed


def score(name: str, model: nn.Module, *, options: Mapping[str, Any] | None = None, **given: Any) -> Scores:
    """Scores of every prunable weight under the criterion ``name``.

    The model comes back as it was: weights, buffers, gradients, train/eval flags, and the global RNG.

    Args:
        options: values for the criterion's own options.
        given: ingredients (:data:`INGREDIENTS`); ``gradients``, ``example``, ``dense`` and ``masks`` are derived from
            the others where they are not given.

    Raises:
        UnknownNameError: no such criterion or option. AutoSparseError: it needs something that was not given.
    """
    scores = evaluate(CRITERIA.get(name), Ingredients(model, **given), options or {})
    return {key: value.detach() for key, value in scores.items()}


def evaluate(entry: Criterion[S], ingredients: Ingredients, options: Mapping[str, Any]) -> S:
    """The scores that a criterion gives; the model comes back as it was.

    Raises:
        UnknownNameError: no such option. AutoSparseError: it needs something that was not given.
    """
    settings = entry.check_options(options)
    with untouched(ingredients.model):
        # counts may be None: the budget decides. Everything else that is asked for must be there.
        found = {need: ingredients.get(need) for need in sorted(entry.needs)}
        for need, value in found.items():
            if value is None and need != "counts":
                missing = _source(need, ingredients)
                raise AutoSparseError(f"criterion '{entry.name}' needs {missing}, which was not given")
        return entry.function(**found, **settings)


def _source(need: str, ingredients: Ingredients) -> str:
    """What has to be given for ``need`` to be there."""
    if need not in _FROM_DATA:
        return need
    if ingredients.batches is None:
        return "batches"
    return (
        "loss_fn" if need in ("gradients", "measure_gradients") and ingredients.loss_fn is None else "a batch of images"
    )
