"""What a benchmark shows: groups of seeds, differences from a reference, sanity checks and ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autosparse.bench.comparison import Comparison, Overall, overall, with_plain, with_reference
from autosparse.bench.groups import Group, group_cells
from autosparse.bench.results import Results
from autosparse.bench.setting import WEIGHTS, Setting, setting_names
from autosparse.bench.statistics import Ranks, rank
from autosparse.errors import AutoSparseError, UnknownNameError


@dataclass(frozen=True)
class Ranking:
    """Ranks of labels that can be compared: of those that prune weights, or of those that remove channels.

    Args:
        what: ``weights`` or ``channels``.
        labels: all of the kind, best mean rank first.
        ranks: over the blocks (setting, density, seed) in which every label has finished; None without such a block.
            Labels of N:M patterns, whose density is their own, take no part (unless there are no others), nor do
            labels that have finished nowhere.
        blocks: number of blocks in which any label has finished.
        unranked: label -> in how many of these it has not, which keeps them out of the ranks.
    """

    what: str
    labels: tuple[str, ...]
    ranks: Ranks | None
    blocks: int
    unranked: Mapping[str, int]


@dataclass(frozen=True)
class Analysis:
    """Everything that is said about a benchmark.

    Args:
        titles: setting -> its name, in order. Dense networks of a setting in which only channels are removed have no
            table, and none of these, of their own.
        labels: of the pruning methods, best mean rank first, those that remove channels last; dense networks and
            sanity checks have none.
        groups: every group of seeds: dense first, then by label and from the highest density to the lowest.
        comparisons: every other label with the reference at the same setting and density. One family for Holm's
            correction.
        overall: the same averaged over settings and densities, one a label: another family.
        sanity: every sanity check with the same label without it: a third family.
        rankings: of the methods for weights and of those for channels, where there are any.
        absent: planned cells that the folder does not have, as (setting, label, density, seed); without a plan those
            that a crossing of each setting's labels, densities and seeds has.
    """

    results: Results
    reference: str | None
    titles: Mapping[Setting, str]
    labels: tuple[str, ...]
    groups: tuple[Group, ...]
    comparisons: tuple[Comparison, ...]
    overall: tuple[Overall, ...]
    sanity: tuple[Comparison, ...]
    rankings: tuple[Ranking, ...]
    absent: tuple[tuple[Setting, str, float, int], ...]

    def group(self, setting: Setting, label: str, density: float) -> Group | None:
        """The group of a label (not of its sanity checks); None when it is not there."""
        return self._plain.get((setting, label, density))

    def dense(self, setting: Setting) -> Group | None:
        """The dense networks of a setting."""
        own = setting.of_weights
        return next((group for group in self.groups if group.is_dense and group.setting == own), None)

    def groups_of(self, setting: Setting) -> list[Group]:
        """All groups of a setting, its dense networks first."""
        dense = self.dense(setting)
        return [*([dense] if dense else []), *(g for g in self.groups if g.setting == setting and not g.is_dense)]

    def shown_with(self, setting: Setting) -> Setting:
        """``setting``, or where it has no title of its own, the first that its dense networks belong to."""
        return setting if setting in self.titles else next(s for s in self.titles if s.of_weights == setting)

    def labels_of(self, setting: Setting) -> list[str]:
        """The labels that the setting has, best first."""
        return [label for label in self.labels if any(self.group(setting, label, d) for d in self.densities(setting))]

    def densities(self, setting: Setting) -> list[float]:
        """Densities of the setting's pruned networks, highest first."""
        return self._densities.get(setting, [])

    @cached_property
    def _plain(self) -> dict[tuple[Setting, str, float], Group]:
        return {(g.setting, g.label, g.density): g for g in self.groups if g.sanity is None}

    @cached_property
    def _densities(self) -> dict[Setting, list[float]]:
        found: dict[Setting, set[float]] = defaultdict(set)
        for group in self.groups:
            if not group.is_dense:
                found[group.setting].add(group.density)
        return {setting: sorted(densities, reverse=True) for setting, densities in found.items()}


def analyse(results: Results, reference: str | None = None) -> Analysis:
    """Group, compare and rank.

    Args:
        reference: the label to compare the others with, by default the one that the grid names; a dense one is
            compared at every density.

    Raises:
        UnknownNameError: no cell has the reference's label.
        AutoSparseError: no cell has finished.
    """
    if not results.done:
        raise AutoSparseError(
            f"no cell of {results.folder} has finished ({len(results.failed)} failed, the first with "
            f"{results.failed[0].error}): mend that and run the benchmark again"
        )
    known = {cell.label for cell in results.cells if cell.sanity is None}
    if reference is not None and reference not in known:
        raise UnknownNameError("label", reference, known)
    if reference is None and results.reference in known:
        reference = results.reference
    groups = group_cells(results.cells)
    plain = [group for group in groups if group.sanity is None and not group.is_dense]
    kinds = {"weights": [g for g in plain if g.setting.measure == WEIGHTS]}
    kinds["channels"] = [group for group in plain if group.setting.measure != WEIGHTS]
    rankings = tuple(_ranking(what, members) for what, members in kinds.items() if members)
    labels = list(dict.fromkeys(label for ranking in rankings for label in ranking.labels))
    settings = sorted({group.setting for group in groups}, key=lambda s: (s.model, s.dataset, s.key, s.measure))
    full = {group.setting for group in groups if not group.is_dense}
    bare = {s for s in settings if s not in full and s in {other.of_weights for other in full}}
    places = {setting: place for place, setting in enumerate(settings)}
    order = {label: place for place, label in enumerate(labels)}
    groups.sort(
        key=lambda g: (
            places[g.setting], not g.is_dense, order.get(g.label, len(order)), g.label, -g.density, g.sanity or "",
        )
    )  # fmt: skip
    comparisons = with_reference(groups, reference)
    return Analysis(
        results=results,
        reference=reference,
        titles=setting_names([s for s in settings if s not in bare]),
        labels=tuple(labels),
        groups=tuple(groups),
        comparisons=comparisons,
        overall=overall(comparisons),
        sanity=with_plain(groups),
        rankings=rankings,
        absent=tuple(_gaps(groups)) if results.absent is None else results.absent,
    )


def _ranking(what: str, groups: Sequence[Group]) -> Ranking:
    patterned = _patterned(groups)
    blocks = _blocks(group for group in groups if group.label not in patterned)
    labels = _ordered(dict.fromkeys(group.label for group in groups), blocks)
    finished = {label for block in blocks.values() for label in block}
    ranked = [label for label in labels if label in finished]
    complete = [block for block in blocks.values() if len(block) == len(ranked)]
    return Ranking(
        what,
        tuple(labels),
        rank({label: [block[label] for block in complete] for label in ranked}),
        len(blocks),
        {
            label: gaps
            for label in labels
            if label not in patterned and (gaps := sum(label not in block for block in blocks.values()))
        },
    )


def _patterned(groups: Sequence[Group]) -> set[str]:
    """Labels of N:M patterns among others; empty when there are no others."""
    labels = {group.label for group in groups}
    found = {group.label for group in groups if group.first.granularity is not None}
    return found if found != labels else set()


Block = tuple[Setting, float, int]


def _blocks(groups: Iterable[Group]) -> dict[Block, dict[str, float]]:
    """(setting, density, seed) -> label -> test accuracy."""
    blocks: dict[Block, dict[str, float]] = defaultdict(dict)
    for group in groups:
        for seed, accuracy in group.accuracies.items():
            blocks[group.setting, group.density, seed][group.label] = accuracy
    return blocks


def _ordered(labels: Iterable[str], blocks: Mapping[Block, Mapping[str, float]]) -> list[str]:
    """Labels by the mean of their relative ranks (0 the best, 1 the worst) in the blocks that they are in.

    In a complete grid that is the order of the mean ranks, and it exists in an incomplete one.
    """
    from scipy.stats import rankdata

    places: dict[str, list[float]] = {label: [] for label in labels}
    for block in blocks.values():
        ranks = rankdata([-accuracy for accuracy in block.values()])
        for label, place in zip(block, ranks, strict=True):
            places[label].append((float(place) - 1) / max(1, len(block) - 1))
    return sorted(places, key=lambda label: (float(np.mean(places[label])) if places[label] else 2.0, label))


def _gaps(groups: Sequence[Group]) -> Iterator[tuple[Setting, str, float, int]]:
    """What a crossing of labels, densities and seeds would have and the groups have not, setting by setting."""
    for setting in dict.fromkeys(group.setting for group in groups):
        own = [group for group in groups if group.setting == setting and group.sanity is None]
        crossed = [group for group in own if not group.is_dense and group.first.granularity is None]
        densities = sorted({group.density for group in crossed}, reverse=True)
        rows = {(group.label, group.density) for group in own}
        rows |= {(group.label, density) for group in crossed for density in densities}
        there = {(g.label, g.density, cell.seed) for g in own for cell in (*g.cells, *g.failed)}
        seeds = sorted({seed for _, _, seed in there})
        wanted = ((*row, seed) for row in sorted(rows) for seed in seeds)
        yield from ((setting, *cell) for cell in wanted if cell not in there)
