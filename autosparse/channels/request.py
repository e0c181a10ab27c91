"""What is asked of the removal of channels, in names and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autosparse.channels.recipes import ChannelRecipe, channel_recipe_of
from autosparse.channels.widths import ROUND_TO, check_share
from autosparse.errors import AutoSparseError, BudgetError, UnknownNameError
from autosparse.triggers.init import AtInit

LATENCY_BATCH = 128
_SHARES = ("channels", "params", "flops")


@dataclass(frozen=True)
class ShrinkRequest:
    """What is asked of :func:`autosparse.shrinking.plan_shrink` in names and numbers.

    Args:
        method: a name of :func:`autosparse.list_channel_methods`.
        options: of the method's trigger (or rounds) and of its criterion.
        when, criterion: a trigger (init, epoch, epi, early-bird, gradient-flow) and a channel criterion in place of the
            method's own.
        channels, params, flops: what is kept at most, as shares of the dense network; at least one of them.
        spread: how the budget is spread over the groups: ``global`` (one threshold on the scores), ``uniform`` (the
            same share of every group) or ``synexp`` (PreCrop's widths); by default what the method names.
        latency: the measured latency that is kept at most, as a share of the dense network's on the device at hand, of
            inference at batch size ``latency_batch``. It is found by a search along the shares of ``latency_by``
            (channels, params or flops), within the other budgets, at initialisation only.
        keep: names of modules whose channels stay.
        round_to: channel counts are multiples of this, in narrow groups of a smaller power of two.
    """

    method: str = "precrop"
    options: Mapping[str, Any] | None = None
    when: str | None = None
    criterion: str | None = None
    channels: float | None = None
    params: float | None = None
    flops: float | None = None
    spread: str | None = None
    keep: Sequence[str] = ()
    round_to: int = ROUND_TO
    latency: float | None = None
    latency_batch: int = LATENCY_BATCH
    latency_by: str = "flops"

    @property
    def title(self) -> str:
        """The method and what was put in the place of its parts."""
        return ", ".join([self.method, *(part for part in (self.when, self.criterion, self.spread) if part)])

    @property
    def shares(self) -> dict[str, float]:
        """The budgets of what can be counted that are given."""
        given = {"channels": self.channels, "params": self.params, "flops": self.flops}
        return {name: share for name, share in given.items() if share is not None}

    @property
    def asked(self) -> dict[str, float]:
        """All budgets that are given."""
        return self.shares if self.latency is None else {**self.shares, "latency": self.latency}

    def recipe(self) -> tuple[ChannelRecipe, dict[str, Any]]:
        """The method as it is asked for, and the options of its criterion; errors as in :meth:`check`."""
        recipe = channel_recipe_of(self.method)
        return recipe.changed(when=self.when, criterion=self.criterion, spread=self.spread).with_options(
            self.options or {}
        )

    def check(self, *, at_init: bool = True) -> None:
        """Refuse what no network could be shrunk with, before anything costly is done.

        Args:
            at_init: refuse methods that prune later than at initialisation.

        Raises:
            UnknownNameError: no such method, option, trigger, criterion or spread. BudgetError: no budget, or one
            outside (0, 1]. AutoSparseError: a method that prunes later.
        """
        recipe, _ = self.recipe()
        if at_init and not isinstance(recipe.when, AtInit):
            raise AutoSparseError(
                f"method '{self.method}' does not prune at initialisation but {recipe.moment}: "
                f"run it with 'autosparse train --method {self.method}'"
            )
        if self.latency is not None:
            self._check_latency(recipe)
        elif not self.shares:
            raise BudgetError(
                "no budget was given: 0.5 of the FLOPs (flops), of params, of channels or of latency, for example"
            )
        for name, share in self.shares.items():
            check_share(name, share)
        if recipe.widen and len(self.shares) < 2:
            raise BudgetError(
                f"method '{self.method}' may widen, and one budget alone would make every layer cost the same: give "
                "two, such as params=0.8 and flops=1.0"
            )
        if self.round_to < 1:
            raise AutoSparseError(f"round-to is {self.round_to}: give 1 or more")

    def _check_latency(self, recipe: ChannelRecipe) -> None:
        assert self.latency is not None
        check_share("latency", self.latency)
        if self.latency_by not in _SHARES:
            raise UnknownNameError("share to search latency along", self.latency_by, _SHARES)
        if self.latency_batch < 1:
            raise AutoSparseError(f"the batch size of latency is {self.latency_batch}: give 1 or more")
        if not isinstance(recipe.when, AtInit):
            raise AutoSparseError(
                "latency is a budget at initialisation only: find the share of FLOPs that it takes with 'autosparse "
                "shrink --latency', and give that to a method that prunes later"
            )
        if recipe.widen:
            raise AutoSparseError(f"method '{self.method}' may widen, which has no place in a search for less latency")
