from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, count

import torch
from torch import Tensor, nn

from autosparse.criteria.base import Scores, criterion
from autosparse.layers import Layer, layers_of, prunable, total_weights
from autosparse.topology import INPUT, Feed, Node, Topology, check_topology, trace_topology

_PAIRS = 4096  # of walks that advance together; masks depend on it, so it is no option
_PASSES, _LEAST_MARKS = 10, 2**20  # walks end after so many marks for each weight, and at least so many


def _applies(model: nn.Module, x: Tensor) -> None:
    check_topology(model, x[:1])


@criterion("phew", paper="Patil & Dovrolis 2021, arXiv 2010.11354", check=_applies)
def phew(
    model: nn.Module, example: Tensor, keep: int, generator: torch.Generator, *, identity_skips: bool = False
) -> Scores:
    """Paths with higher edge weights: random walks, biased towards large weights, mark what is kept.

    Walks lead from input to output and from output to input in turn, and start at the units there in round-robin. The
    next unit is drawn with probability proportional to the L1 norm of the kernel between the two, and one weight of
    that kernel is marked, drawn with probability proportional to |w|. Where a unit feeds several layers (a residual
    branch beside a projection), or several feed it, each of them is as probable. Kernels through which no path of
    non-zero weights can be completed count as zero.

    Scores: of ``keep`` marked weights the i-th has keep - i, i = 0, 1, ..., so that the best ``keep`` are those which
    were marked first; the exact count may cut the last walk short. Unmarked weights have |w| / (2 max |w|): magnitude
    fills up where walks do not reach ``keep``, because zero weights leave no path, or because they have laid ten
    marks for every weight of the network (at least 2^20) and nearly all fall on marked weights. That concerns
    densities far above those that the method is meant for. Randomness comes from ``generator`` alone and is drawn on
    the CPU: a seed gives one mask on every device, and a larger ``keep`` continues the walks of a smaller one.

    Args:
        identity_skips: walks may also take a shortcut without weights, as probable as the residual branch. By default
            they follow the branch where that is possible, as in the authors' code, whose walks know only weights. A
            gate (squeeze-and-excitation) is no shortcut: the gate and the gated path are equally probable.

    Raises:
        AutoSparseError: the network cannot be followed from unit to unit (:func:`autosparse.topology.check_topology`).
    """
    layers = layers_of(model)
    weights = {name: weight.detach() for name, weight in prunable(model).items()}
    marks = walks(model, example, generator, identity_skips=identity_skips)
    marked = _first_marked(marks, total_weights(layers), keep)
    rank = torch.zeros(total_weights(layers), dtype=torch.float64)  # exact up to 2^53
    rank[marked] = torch.arange(keep, keep - len(marked), -1, dtype=torch.float64)
    largest = max(float(weight.abs().max()) for weight in weights.values()) or 1.0
    scores = {}
    for layer in layers:
        magnitude = weights[layer.name].abs().double() / (2 * largest)
        ranks = rank[layer.offset : layer.offset + layer.size].reshape(layer.shape).to(magnitude.device)
        scores[layer.name] = torch.where(ranks > 0, ranks, magnitude)
    return scores


def walks(
    model: nn.Module, example: Tensor, generator: torch.Generator, *, identity_skips: bool = False
) -> Iterator[Tensor]:
    """Positions that endless walks mark, as int64 tensors, each of a batch of walks; none where no path leads on.

    A position is a weight's place among the weights of all layers, laid out one after the other. Walk 2j is the j-th
    forward one, walk 2j + 1 the j-th backward one; each marks its weights in the order in which it passes them.
    """
    topology = trace_topology(model, example)
    layers = {layer.name: layer for layer in layers_of(model)}
    weights = prunable(model)
    kernels = [_Kernels(layers[name], weights[name].detach().cpu()) for name in topology.nodes]
    links = _Links.of(topology, identity_skips)
    directions = [_Direction(kernels, links, backward=backward) for backward in (False, True)]
    if not all(len(direction.starts) for direction in directions):
        return
    for first in count(0, _PAIRS):
        order, positions = [], []
        for parity, direction in enumerate(directions):
            for step, (number, position) in enumerate(direction.walk(first, generator)):
                order.append((2 * number + parity) * len(kernels) + step)
                positions.append(position)
        yield torch.cat(positions)[torch.cat(order).argsort()]


def _first_marked(marks: Iterator[Tensor], total: int, keep: int) -> Tensor:
    """The first ``keep`` different positions of ``marks``, in order; fewer where they do not suffice."""
    seen = torch.zeros(total, dtype=torch.bool)
    found = [torch.empty(0, dtype=torch.long)]
    left, laid = keep, 0
    limit = max(_LEAST_MARKS, _PASSES * total)
    while left > 0 and laid < limit and (batch := next(marks, None)) is not None:
        laid += len(batch)
        batch = batch[~seen[batch]]
        positions, index = batch.sort(stable=True)
        is_first = torch.ones(len(batch), dtype=torch.bool)
        is_first[1:] = positions[1:] != positions[:-1]
        found.append(batch[index[is_first].sort().values][:left])
        seen[found[-1]] = True
        left -= len(found[-1])
    return torch.cat(found)


class _Rows:
    """Draws an entry of a row with probability proportional to its value.

    Sums of rows should be of one magnitude: beside the others a tiny one would drown in rounding.
    """

    def __init__(self, values: Tensor, starts: Tensor) -> None:
        """``values [n]``, non-negative float64, row after row: row i is ``starts[i]`` up to ``starts[i + 1]``."""
        self._sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
        self._starts = starts

    @classmethod
    def of_table(cls, table: Tensor) -> _Rows:
        """The rows of ``table [rows, columns]``. One of zeros must not be drawn from."""
        shares = _share(table, table.sum(dim=1, keepdim=True))
        return cls(shares.reshape(-1), torch.arange(len(table) + 1) * table.shape[1])

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """One entry of each of ``rows``, as an index into all values."""
        low, high = self._sums[self._starts[rows]], self._sums[self._starts[rows + 1]]
        target = _target(low, high, generator)
        return torch.searchsorted(self._sums, target, right=True) - 1


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / torch.where(whole > 0, whole, 1.0)


def _target(low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in [low, high): the upper end is excluded also after rounding.

    The interval of an entry of value zero is empty, so that no target falls into it.
    """
    uniform = torch.rand(low.shape, generator=generator, dtype=torch.float64)
    return torch.minimum(low + uniform * (high - low), torch.nextafter(high, low))


class _Kernels:
    """The kernels of one layer, numbered unit * (channels of a group) + channel within the group."""

    def __init__(self, layer: Layer, weight: Tensor) -> None:
        self.layer = layer
        self.weight = weight.reshape(-1, layer.taps)
        self.norms = self.weight.abs().sum(dim=1, dtype=torch.float64)  # L1, [kernels]
        self.inner, self.outer = layer.shape[1], layer.shape[0] // layer.groups  # channels and units of one group
        self.units, self.channels = layer.shape[0], layer.shape[1] * layer.groups

    def unit(self, kernel: Tensor) -> Tensor:
        return kernel // self.inner

    def channel(self, kernel: Tensor) -> Tensor:
        return self.unit(kernel) // self.outer * self.inner + kernel % self.inner

    def table(self, is_open: Tensor, *, backward: bool) -> Tensor:
        """L1 norms, a row of kernels for each channel (forward) or unit (backward), 0 where walks could not go on.

        ``is_open``: bool, of the units (forward) or channels (backward) to which the kernels lead.
        """
        norms = self.norms.reshape(self.layer.groups, self.outer, self.inner)
        if backward:
            return (norms * is_open.reshape(-1, 1, self.inner)).reshape(self.units, self.inner)
        return (norms * is_open.reshape(-1, self.outer, 1)).mT.reshape(self.channels, self.outer)

    def at(self, entry: Tensor, *, backward: bool) -> Tensor:
        """The numbers of the kernels at entries of :meth:`table`."""
        if backward:
            return entry
        channel, unit = entry // self.outer, entry % self.outer
        return (channel // self.inner * self.outer + unit) * self.inner + channel % self.inner

    def draw_weight(self, kernel: Tensor, generator: torch.Generator) -> Tensor:
        """A weight of each kernel, with probability proportional to |w|, as its position among all layers' weights."""
        sums = self.weight[kernel].abs().double().cumsum(dim=1)
        whole = sums[:, -1:]
        tap = (sums <= _target(torch.zeros_like(whole), whole, generator)).sum(dim=1)
        return self.layer.offset + kernel * self.layer.taps + tap


@dataclass(frozen=True)
class _Links:
    """Which unit feeds which channel: one entry a pair, and whether walks avoid it.

    Layers count from 0 in order of execution; the input is -1 and the output comes last. Units are numbered through
    all layers and then the input, channels through all layers and then the output.
    """

    source: Tensor
    unit: Tensor
    target: Tensor
    channel: Tensor
    avoided: Tensor

    @classmethod
    def of(cls, topology: Topology, identity_skips: bool) -> _Links:
        nodes = [*topology.nodes.values(), topology.output]
        number = {node.name: index for index, node in enumerate(nodes)} | {INPUT: -1}
        first_unit = list(accumulate((node.units for node in nodes[:-1]), initial=0))  # [-1] is the input's
        first_channel = accumulate((node.channels for node in nodes), initial=0)
        ancestors = topology.ancestors()
        columns = []
        for (target, node), base in zip(enumerate(nodes), first_channel, strict=False):
            for feed in node.predecessors:
                units = torch.tensor(feed.units)
                fed = (units >= 0).nonzero()[:, 0]
                skips = _identity_skips(feed, node, topology, ancestors) & (not identity_skips)
                source = number[feed.source]
                columns.append(
                    (
                        torch.full_like(fed, source),
                        first_unit[source] + units[fed],
                        torch.full_like(fed, target),
                        base + fed,
                        skips[fed],
                    )
                )
        return cls(*(torch.cat(column) for column in zip(*columns, strict=True)))


def _identity_skips(feed: Feed, node: Node, topology: Topology, ancestors: Mapping[str, frozenset[str]]) -> Tensor:
    """The channels (bool) of ``node`` that ``feed`` reaches past another predecessor of the same channel.

    The other one comes later on a path from the feed's source. It is not a gate, which has one value for many pixels
    and replaces nothing.
    """
    pixels = topology.nodes.get(feed.source, topology.input).positions_out
    skips = torch.zeros(len(feed.units), dtype=torch.bool)
    for other in node.predecessors:
        is_later = feed.source in ancestors[other.source]
        if is_later and not topology.nodes[other.source].positions_out == 1 < pixels:
            skips |= torch.tensor(other.units) >= 0
    return skips


class _Direction:
    """How walks go: from the input to the output, or back.

    A walk is at a row of a layer, which is a channel (forward) or a unit (backward). It draws a kernel from the row,
    which leads to an exit, a unit (forward) or a channel (backward), and there a link to a row of another layer.
    """

    def __init__(self, kernels: Sequence[_Kernels], links: _Links, *, backward: bool) -> None:
        self.kernels, self.backward = kernels, backward
        self.order = range(len(kernels))[:: -1 if backward else 1]
        units = list(accumulate((layer.units for layer in kernels), initial=0))
        channels = list(accumulate((layer.channels for layer in kernels), initial=0))
        if backward:
            self.first_row, self.first_exit, begin, end = units, channels, len(kernels), -1
            left, exits, entered, rows = links.target, links.channel, links.source, links.unit
        else:
            self.first_row, self.first_exit, begin, end = channels, units, -1, len(kernels)
            left, exits, entered, rows = links.source, links.unit, links.target, links.channel
        self.tables: dict[int, _Rows] = {}
        shares = self._shares(exits, entered, rows, end)
        preferred = shares.masked_fill(links.avoided, 0.0)
        shares = torch.where(_sum_by(exits, preferred) > 0, preferred, shares)  # avoided only where something is left
        self.starts = rows[(left == begin) & (entered != end) & (shares > 0)].unique()
        order = exits.argsort(stable=True)
        self.choices = _Rows(shares[order], torch.cat([exits.new_zeros(1), exits.bincount().cumsum(0)]))
        self.entered, self.rows = entered[order], rows[order]

    def _shares(self, exits: Tensor, entered: Tensor, rows: Tensor, end: int) -> Tensor:
        """The probability of each link among those from one exit to one layer, 0 where walks could not go on.

        Several are found after a flattening, which spreads a unit over many channels of a linear layer: all of their
        weights are one kernel then, and the L1 norms decide. Fills ``tables`` on the way.
        """
        norms = torch.ones(int(rows.max()) + 1, dtype=torch.float64)  # of a row's kernels; 1 for the end
        is_open = torch.zeros(int(exits.max()) + 1, dtype=torch.bool)
        for layer in [end, *self.order[::-1]]:
            if layer != end:
                row, out = self.first_row[layer], self.first_exit[layer]
                table = self.kernels[layer].table(is_open[out : self.first_exit[layer + 1]], backward=self.backward)
                norms[row : row + len(table)] = table.sum(dim=1)
                self.tables[layer] = _Rows.of_table(table)
            is_open[exits[(entered == layer) & (norms[rows] > 0)]] = True
        values = norms[rows]
        return _share(values, _sum_by(exits * (len(self.kernels) + 2) + entered + 1, values))

    def walk(self, first: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Walks ``first``, ``first + 1``, ...: at each layer the numbers of those that pass it and what they mark."""
        number = torch.arange(first, first + _PAIRS)
        row = self.starts[number % len(self.starts)]
        layer = torch.bucketize(row, torch.tensor(self.first_row), right=True) - 1
        for current in self.order:
            here = (layer == current).nonzero()[:, 0]
            kernels = self.kernels[current]
            entry = self.tables[current].draw(row[here] - self.first_row[current], generator)
            kernel = kernels.at(entry, backward=self.backward)
            yield number[here], kernels.draw_weight(kernel, generator)
            exits = kernels.channel(kernel) if self.backward else kernels.unit(kernel)
            link = self.choices.draw(self.first_exit[current] + exits, generator)
            layer[here], row[here] = self.entered[link], self.rows[link]


def _sum_by(groups: Tensor, values: Tensor) -> Tensor:
    """For each entry the sum of ``values`` over its group."""
    _, index = groups.unique(return_inverse=True)
    return values.new_zeros(int(index.max()) + 1).index_add_(0, index, values)[index]
