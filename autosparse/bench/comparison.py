"""Differences between methods that share seeds, and what may be said of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autosparse.bench.groups import Group
from autosparse.bench.statistics import ALPHA, PairedDifference, holm, paired_difference

BETTER, WORSE, NOT_SHOWN = "better", "worse", "no difference shown"


@dataclass(frozen=True)
class Comparison:
    """``ours`` minus ``theirs`` by seed; ``holm`` is p after correction over all comparisons of the family."""

    ours: Group
    theirs: Group
    difference: PairedDifference | None
    holm: float | None = None

    @property
    def verdict(self) -> str:
        """Better or worse only where the corrected p says so, and otherwise what is missing."""
        return _verdict(self.difference, self.holm)


@dataclass(frozen=True)
class Overall:
    """``label`` minus the reference by seed, averaged over the ``places`` (setting and density) that both have."""

    label: str
    places: int
    difference: PairedDifference | None
    holm: float | None = None

    @property
    def verdict(self) -> str:
        """Better or worse only where the corrected p says so, and otherwise what is missing."""
        return _verdict(self.difference, self.holm)


def _verdict(difference: PairedDifference | None, corrected: float | None) -> str:
    if difference is None:
        return "no seed in common"
    if difference.estimate.n < 2:
        return "one seed: no test"
    if corrected is None:
        return "equal differences: no test"
    if corrected >= ALPHA:
        return NOT_SHOWN
    return BETTER if difference.estimate.mean > 0 else WORSE


def with_reference(groups: Sequence[Group], reference: str | None) -> tuple[Comparison, ...]:
    """Every other label with the reference at the same setting and density; a dense reference fits every density."""
    if reference is None:
        return ()
    theirs = {
        (group.setting, None if group.is_dense else group.density): group
        for group in groups
        if group.label == reference and group.sanity is None
    }
    pairs = []
    for ours in groups:
        other = theirs.get((ours.setting, ours.density)) or theirs.get((ours.setting.of_weights, None))
        if other is not None and not ours.is_dense and ours.sanity is None and ours.label != reference:
            pairs.append((ours, other))
    return _corrected(pairs)


def with_plain(groups: Sequence[Group]) -> tuple[Comparison, ...]:
    """Each sanity check with the same use of the method without it, under its own label or under another."""
    plain = {(g.setting, g.first.usage, g.density): g for g in groups if g.sanity is None}
    checked = [group for group in groups if group.sanity is not None]
    pairs = [(ours, plain.get((ours.setting, ours.first.usage, ours.density))) for ours in checked]
    return _corrected([(ours, theirs) for ours, theirs in pairs if theirs is not None])


def _corrected(pairs: Sequence[tuple[Group, Group]]) -> tuple[Comparison, ...]:
    differences = [paired_difference(ours.accuracies, theirs.accuracies) for ours, theirs in pairs]
    adjusted = holm([None if difference is None else difference.p for difference in differences])
    return tuple(
        Comparison(ours, theirs, difference, p)
        for (ours, theirs), difference, p in zip(pairs, differences, adjusted, strict=True)
    )


def overall(comparisons: Iterable[Comparison]) -> tuple[Overall, ...]:
    """One comparison a label: its differences from the reference averaged over settings and densities, by seed.

    Only seeds that are finished at all places of the label take part, so that every seed averages the same places.
    """
    found: dict[str, list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        if comparison.difference is not None:
            found[comparison.ours.label].append(comparison)
    differences = []
    for own in found.values():
        seeds = set.intersection(*(c.ours.accuracies.keys() & c.theirs.accuracies.keys() for c in own))
        ours, theirs = (
            {seed: sum(group.accuracies[seed] for group in groups) / len(own) for seed in seeds}
            for groups in ([c.ours for c in own], [c.theirs for c in own])
        )
        differences.append(paired_difference(ours, theirs))
    adjusted = holm([None if difference is None else difference.p for difference in differences])
    return tuple(
        Overall(label, len(found[label]), difference, p)
        for label, difference, p in zip(found, differences, adjusted, strict=True)
    )
