"""Named methods: one line each that picks a value for every axis.

Every registered criterion is a method of its own name: one shot at initialisation under one global threshold, unless
the table says otherwise.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from autosparse.criteria import CRITERIA, Criterion
from autosparse.criteria.base import fits
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.registry import Registry
from autosparse.triggers.gradient_flow import GradientFlow
from autosparse.triggers.init import ONE_SHOT, AtInit
from autosparse.triggers.prune_regrow import GMP, GRANET, GRANET_SPARSE, RIGL, SET, PruneAndRegrow
from autosparse.triggers.rounds import AfterTraining, PQRewinding, Rewinding

#: The moments at which a network may be pruned.
When = AtInit | PruneAndRegrow | GradientFlow | Rewinding | PQRewinding | AfterTraining


#: Settings beside criterion and options that a moment can honour; pruning at initialisation takes them all.
_TAKES: Mapping[type, frozenset[str]] = {
    PruneAndRegrow: frozenset({"budget", "min-layer-density"}),
    GradientFlow: frozenset({"budget", "granularity", "min-layer-density", "sanity shuffle", "sanity invert"}),
    Rewinding: frozenset({"sanity shuffle", "sanity reinit"}),
    PQRewinding: frozenset({"sanity shuffle", "sanity reinit"}),
    AfterTraining: frozenset({"sanity shuffle", "sanity reinit"}),
}
_MOMENTS: Mapping[type, str] = {
    PruneAndRegrow: "during training",
    GradientFlow: "early in training",
    Rewinding: "in rounds of training",
    PQRewinding: "in rounds of training",
    AfterTraining: "after training",
}


@dataclass(frozen=True)
class Recipe:
    """When to prune (a trigger), what is important (a criterion), and how much is kept where (a budget).

    What is removed together (single weights, N:M blocks) is a setting that fits every row.

    Args:
        rounds: for a trigger during training, the rounds at its one moment, back to back.
        on_paths: keep only weights on a path from input to output, unless a setting says otherwise.
        rescale: put the weights that are left back to the edge of chaos (a fifth axis that SBP-SR alone needs: what
            happens to the survivors).
        summary, paper: by default those of the criterion.
    """

    criterion: str
    budget: str = "global"
    when: When = ONE_SHOT
    rounds: AtInit = ONE_SHOT
    on_paths: bool = False
    rescale: bool = False
    summary: str = ""
    paper: str = ""

    @property
    def line(self) -> str:
        return self.summary or CRITERIA.get(self.criterion).summary

    @property
    def source(self) -> str:
        return self.paper or CRITERIA.get(self.criterion).paper

    @property
    def moment(self) -> str:
        """When, in words."""
        return str(self.when) if isinstance(self.when, AtInit) else _MOMENTS[type(self.when)]

    @property
    def at_init(self) -> AtInit:
        """The rounds at initialisation; AutoSparseError for a recipe that prunes later."""
        if not isinstance(self.when, AtInit):
            raise AutoSparseError(f"{self.criterion} is pruned {self.moment} here, not at initialisation")
        return self.when

    def takes(self, setting: str) -> bool:
        """Whether the moment can honour a setting such as ``keep-connected`` or ``sanity shuffle``."""
        return isinstance(self.when, AtInit) or setting in _TAKES[type(self.when)]

    def with_options(self, given: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
        """The recipe with its trigger's settings changed, and what is left for the criterion.

        Raises:
            UnknownNameError: neither the trigger nor the criterion has such an option.
        """
        criterion = CRITERIA.get(self.criterion)
        changed, own = divided_options(given, self.when, {f.name for f in fields(self.when)}, criterion)
        return replace(self, when=replace(self.when, **changed)), own


def divided_options(
    given: Mapping[str, Any], when: object, settings: Collection[str], criterion: Criterion[Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a method divided into those of its trigger ``when`` and those of its criterion, both checked.

    Args:
        settings: fields of ``when`` that may be set. A name that the criterion has too is the criterion's.

    Raises:
        UnknownNameError: neither has such an option. AutoSparseError: a value of another type.
    """
    options = criterion.options if criterion else {}
    for name in given:
        if name not in settings and name not in options:
            owner = criterion.name if criterion else "the method"
            raise UnknownNameError(f"option of {owner}", name, {*settings, *options})
    changed = {name: value for name, value in given.items() if name not in options}
    for name, value in changed.items():
        default = getattr(when, name)
        if not fits(value, default):
            raise AutoSparseError(f"option {name} is {value!r}: give a value such as {default!r}, its default")
    own = {name: value for name, value in given.items() if name in options}
    if criterion:
        criterion.check_options(own)
    return changed, own


_CROPIT = AtInit(rounds=7, path="halving")

RECIPES: Registry[Recipe] = Registry("method")
for _name, _recipe in {
    "autos": Recipe("autos", on_paths=True),
    "autos-cts": Recipe("autos-cts", on_paths=True),
    "random": Recipe("random", budget="erk"),
    "synflow": Recipe("synflow", when=AtInit(rounds=100)),
    "iter-snip": Recipe(
        "snip",
        when=AtInit(rounds=10),
        summary="SNIP in nested rounds.",
        paper="de Jorge et al. 2021, arXiv 2006.09081",
    ),
    "force": Recipe("force", when=AtInit(rounds=10, regrow=True)),
    "cropit": Recipe("crop", when=_CROPIT, summary="CroP in nested rounds."),
    "npb": Recipe("npb", budget="erk"),
    "sbp-sr": Recipe("sbp-sr", rescale=True),
    "earlycrop": Recipe(
        "crop",
        when=GradientFlow(),
        rounds=_CROPIT,
        summary="CroP early in training, once the weights have settled.",
    ),
    "gmp": Recipe(
        "magnitude",
        when=GMP,
        summary="Gradual magnitude pruning on a cubic path.",
        paper="Zhu & Gupta 2017, arXiv 1710.01878",
    ),
    "granet": Recipe(
        "magnitude",
        when=GRANET,
        summary="Gradual pruning from a dense network, with regrowth by gradient.",
        paper="Liu et al. 2021, arXiv 2106.10404",
    ),
    "granet-sparse": Recipe(
        "magnitude",
        when=GRANET_SPARSE,
        summary="GraNet from an ERK network of half the weights.",
        paper="Liu et al. 2021, arXiv 2106.10404",
    ),
    "rigl": Recipe(
        "magnitude",
        when=RIGL,
        budget="erk",
        summary="Sparse from the start, weights exchanged for those of large gradient.",
        paper="Evci et al. 2020, arXiv 1911.11134",
    ),
    "set": Recipe(
        "magnitude",
        when=SET,
        budget="erk",
        summary="Sparse from the start, weights exchanged for random ones.",
        paper="Mocanu et al. 2018, arXiv 1707.04780",
    ),
    "ltr": Recipe(
        "magnitude",
        when=Rewinding(),
        summary="Lottery ticket: rounds of training, pruning and rewinding. An upper bound.",
        paper="Frankle & Carbin 2019, arXiv 1803.03635",
    ),
    "sap": Recipe(
        "magnitude",
        when=PQRewinding(),
        summary="Rounds with rewinding that prune as far as the PQ index says.",
        paper="Diao et al. 2023, arXiv 2302.05601",
    ),
    "magnitude-after-training": Recipe(
        "magnitude",
        when=AfterTraining(),
        summary="Train dense, prune once, fine-tune. An upper bound.",
        paper="Han et al. 2015, arXiv 1506.02626",
    ),
}.items():
    RECIPES.add(_name, _recipe)


def list_methods() -> list[str]:
    """Names of all methods: the table's rows, and every criterion as it stands."""
    return sorted({*RECIPES.names(), *CRITERIA.names()})


def recipe_of(name: str) -> Recipe:
    """The recipe called ``name``: a row of the table, a criterion, or ``package.module:function`` of a user's own.

    Raises:
        UnknownNameError: none of these. AutoSparseError: a module that cannot be imported, or no criterion in it.
    """
    if name in RECIPES:
        return RECIPES.get(name)
    if name in CRITERIA:
        return Recipe(name)
    if ":" in name:
        return Recipe(_imported(name))
    raise UnknownNameError("method", name, list_methods(), "your own: package.module:function")


def _imported(path: str) -> str:
    """The name of the criterion that is defined as ``package.module:function``."""
    module, _, attribute = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise AutoSparseError(f"method '{path}' cannot be imported ({error}): is its package installed?") from None
    for name, entry in CRITERIA.items():
        if entry.function is function:
            return name
    raise AutoSparseError(f"method '{path}' is no criterion: decorate it with autosparse.criteria.criterion")
