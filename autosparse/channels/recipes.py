"""Named methods that remove channels: one line each that picks a value for every axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from autosparse.channels.criteria import CHANNEL_CRITERIA
from autosparse.criteria import CRITERIA
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.recipes import divided_options
from autosparse.registry import Registry
from autosparse.triggers.early_bird import TicketStable
from autosparse.triggers.epi import ArchitectureStable
from autosparse.triggers.epochs import AtEpoch
from autosparse.triggers.gradient_flow import GradientFlowSettled
from autosparse.triggers.init import ONE_SHOT, AtInit

#: How a budget is spread over the groups.
#: ``global``: one threshold on the scores. ``uniform``: the same share of every group. ``synexp``: PreCrop's optimum.
SPREADS = ("global", "uniform", "synexp")

#: When channels are removed: before the first step, or after the epoch that a trigger chooses.
When = AtInit | AtEpoch | ArchitectureStable | TicketStable | GradientFlowSettled

#: Triggers by the names that users give.
TRIGGERS: Mapping[str, type] = {
    "init": AtInit,
    "epoch": AtEpoch,
    "epi": ArchitectureStable,
    "early-bird": TicketStable,
    "gradient-flow": GradientFlowSettled,
}


@dataclass(frozen=True)
class ChannelRecipe:
    """When to prune, what is important, and how much is kept where.

    Args:
        criterion: scores the channels of every group. ``None``: only the widths are chosen, and the network of those
            widths gets fresh weights, drawn at its own fan-ins and fan-outs.
        spread: one of :data:`SPREADS`; ``global`` needs a criterion.
        when: at initialisation, in one shot or in rounds that score what the last one left, or later by a trigger.
        rounds: for a trigger, the rounds at its one moment, back to back.
        widen: groups may become wider than they were (``synexp`` without a criterion).
        summary, paper: by default those of the criterion.
    """

    criterion: str | None
    spread: str = "global"
    when: When = ONE_SHOT
    rounds: AtInit = ONE_SHOT
    widen: bool = False
    summary: str = ""
    paper: str = ""

    def __post_init__(self) -> None:
        if self.spread not in SPREADS:
            raise UnknownNameError("spread of channels", self.spread, SPREADS)
        if self.criterion is None and self.spread == "global":
            raise AutoSparseError("a global threshold needs a criterion that scores channels: choose one, such as l1")
        if self.criterion is None and not isinstance(self.when, AtInit):
            raise AutoSparseError(
                "a method that only chooses widths draws fresh weights: it prunes at initialisation, or choose a "
                "criterion, such as l1, for the channels that stay"
            )
        if isinstance(self.when, ArchitectureStable) and self.spread != "global":
            raise AutoSparseError(
                f"spread {self.spread} fixes the widths, so that EPI would call them stable at once: take spread "
                "global, or another moment"
            )

    @property
    def line(self) -> str:
        return self.summary or (CHANNEL_CRITERIA.get(self.criterion).summary if self.criterion else "")

    @property
    def source(self) -> str:
        return self.paper or (CHANNEL_CRITERIA.get(self.criterion).paper if self.criterion else "")

    @property
    def at_init(self) -> AtInit:
        """The rounds in which channels are removed, at initialisation or at the trigger's moment."""
        return self.when if isinstance(self.when, AtInit) else self.rounds

    @property
    def moment(self) -> str:
        """When, in words."""
        return str(self.when) if isinstance(self.when, AtInit) else "early in training"

    def changed(
        self, *, when: str | None = None, criterion: str | None = None, spread: str | None = None
    ) -> ChannelRecipe:
        """The recipe with other values on its axes; ``None`` leaves one as it is.

        Args:
            when: a name of :data:`TRIGGERS`, with its default settings.

        Raises:
            UnknownNameError: no such trigger, criterion or spread.
        """
        recipe = self
        if criterion is not None:
            CHANNEL_CRITERIA.get(criterion)
            recipe = replace(recipe, criterion=criterion, summary="", paper="", widen=False)
        if spread is not None:
            recipe = replace(recipe, spread=spread, widen=recipe.widen and spread == "synexp")
        if when is not None:
            if when not in TRIGGERS:
                raise UnknownNameError("trigger", when, TRIGGERS)
            recipe = replace(recipe, when=TRIGGERS[when]())
        return recipe

    def with_options(self, given: Mapping[str, Any]) -> tuple[ChannelRecipe, dict[str, Any]]:
        """The recipe with its trigger's settings changed, and what is left for the criterion.

        EPI without a threshold takes the one that belongs to the criterion.

        Raises:
            UnknownNameError: neither the trigger nor the criterion has such an option. AutoSparseError: a value of
            another type, or EPI needs a threshold.
        """
        criterion = CHANNEL_CRITERIA.get(self.criterion) if self.criterion else None
        in_rounds = self.spread == "global" or not isinstance(self.when, AtInit)  # nothing else is chosen in rounds
        settings = {field.name for field in fields(self.when)} if in_rounds else set()
        changed, own = divided_options(given, self.when, settings, criterion)
        if isinstance(self.when, ArchitectureStable) and self.criterion:
            return replace(self, when=ArchitectureStable.for_importance(self.criterion, **changed)), own
        return replace(self, when=replace(self.when, **changed)), own


_CROPIT = AtInit(rounds=7, path="halving")
_PRECROP, _EARLYCROP, _EPI = (
    "Cai et al. 2022, arXiv 2203.02549",
    "Rachwan et al. 2022, arXiv 2206.10451",
    "Shen et al. 2022, arXiv 2110.12007",
)

CHANNEL_RECIPES: Registry[ChannelRecipe] = Registry("method for channels")
for _name, _recipe in {
    "precrop": ChannelRecipe(
        None,
        spread="synexp",
        summary="Widths that maximise the expected SynFlow score; fresh weights.",
        paper=_PRECROP,
    ),
    "preconfig": ChannelRecipe(
        None,
        spread="synexp",
        widen=True,
        summary="PreCrop whose layers may also become wider.",
        paper=_PRECROP,
    ),
    "uniform-width": ChannelRecipe(None, spread="uniform", summary="The same share of every layer; fresh weights."),
    "cropit-s": ChannelRecipe("crop", when=_CROPIT, summary="CroP for channels in nested rounds.", paper=_EARLYCROP),
    "earlycrop-s": ChannelRecipe(
        "crop",
        when=GradientFlowSettled(),
        summary="CroP for channels early in training, once the weights have settled.",
        paper=_EARLYCROP,
    ),
    "epi": ChannelRecipe(
        "l2",
        when=ArchitectureStable.for_importance("magnitude"),
        summary="By magnitude, once the pruned architecture no longer changes.",
        paper=_EPI,
    ),
    "epi-taylor": ChannelRecipe(
        "taylor",
        when=ArchitectureStable.for_importance("gradient"),
        summary="By first-order Taylor importance, once the pruned architecture no longer changes.",
        paper=_EPI,
    ),
    "early-bird": ChannelRecipe(
        "bn-scale",
        when=TicketStable(),
        summary="By the scales of batch norm, once the channels that would stay no longer change.",
        paper="You et al. 2020, arXiv 1909.11957",
    ),
}.items():
    CHANNEL_RECIPES.add(_name, _recipe)

#: Criteria that score weights too are called snip-s and so on as methods that remove channels: names are unique.
for _criterion in CHANNEL_CRITERIA.names():
    CHANNEL_RECIPES.add(f"{_criterion}-s" if _criterion in CRITERIA else _criterion, ChannelRecipe(_criterion))


def list_channel_methods() -> list[str]:
    """Names of all methods that remove channels, sorted."""
    return CHANNEL_RECIPES.names()


def channel_recipe_of(name: str) -> ChannelRecipe:
    """The recipe called ``name``, where ``snip`` stands for ``snip-s`` too; UnknownNameError if there is none."""
    return CHANNEL_RECIPES.get(f"{name}-s" if name not in CHANNEL_RECIPES and f"{name}-s" in CHANNEL_RECIPES else name)
