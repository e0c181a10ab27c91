"""Which units feed which: a network as a graph of its prunable layers, found by probing.

A *unit* is an output channel of a layer (a feature of a linear one) or a channel of the network's input; a *channel*
is an input channel of a layer, or a channel of the network's output. Between two layers lie only operations without
prunable weights: normalisation, activation, pooling, addition, concatenation, flattening, shuffling.

The probe needs no list of operations. Every layer is replaced by a stand-in that returns a tensor of the right shape,
so that whatever reaches a layer comes from its direct predecessors. Some units are NaN there, which arithmetic passes
on, and the channels that become NaN are those which the units feed. Values, zero-initialised scales included, play no
role. Channel-mixing operations (attention, layer norm, gated linear units) are noticed and refused.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autosparse.criteria.gradients import untouched
from autosparse.errors import AutoSparseError
from autosparse.layers import layers_of

INPUT = "input"  # no layer has these names: a layer is called after its parameter, "...weight"
OUTPUT = "output"

_SAMPLES = 16  # probes that share a forward pass; bounds the memory


@dataclass(frozen=True)
class Feed:
    """``units[c]`` is the unit of ``source`` (a layer or :data:`INPUT`) that feeds channel ``c``; -1: none of them."""

    source: str
    units: tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """A layer and what feeds it without another layer between. Several feeds of one channel are combined there.

    ``positions_in`` and ``positions_out`` count the pixels of one input and one output channel: H * W, or 1 where
    there are only features.
    """

    name: str
    units: int
    predecessors: tuple[Feed, ...]
    positions_in: int
    positions_out: int

    @property
    def channels(self) -> int:
        return max((len(feed.units) for feed in self.predecessors), default=0)


@dataclass(frozen=True)
class Topology:
    """A network as a graph: its input, its layers by name in order of execution, and its output.

    ``input`` (called :data:`INPUT`) has units but no predecessors, ``output`` (:data:`OUTPUT`) predecessors but no
    units.
    """

    input: Node
    nodes: Mapping[str, Node]
    output: Node

    def ancestors(self) -> dict[str, frozenset[str]]:
        """For the input, each layer and the output the names of everything from which a path leads there."""
        found: dict[str, frozenset[str]] = {INPUT: frozenset()}
        for node in [*self.nodes.values(), self.output]:
            sources = [feed.source for feed in node.predecessors]
            found[node.name] = frozenset(sources).union(*(found[source] for source in sources))
        return found


def check_topology(model: nn.Module, example: Tensor) -> None:
    """AutoSparseError with the layer and the reason unless the network can be followed from unit to unit.

    It costs what :func:`trace_topology` costs: some forward passes without the layers.
    """
    trace_topology(model, example)


@torch.no_grad()
def trace_topology(model: nn.Module, example: Tensor) -> Topology:
    """The graph of ``model`` in evaluation mode, for inputs of the shape of ``example [1, channels, ...]``.

    The model comes back as it was.

    Raises:
        AutoSparseError: a channel depends on several units of one layer (attention, layer norm), a layer is called
            never or more than once, or what is called depends on values.
    """
    with untouched(model):
        model.eval()
        probe = _Probe(model, example)
        sources = probe.direct_sources()
        units = probe.units_by_channel(sources)
    feeds = {
        target: tuple(Feed(source, units[source, target]) for source in found) for target, found in sources.items()
    }
    nodes = {
        name: Node(name, call.width, feeds[name], call.positions_in, call.usual.numel() // call.width)
        for name, call in probe.calls.items()
    }
    pixels = math.prod(example.shape[2:])
    return Topology(
        input=Node(INPUT, example.shape[1], (), pixels, pixels),
        nodes=nodes,
        output=Node(OUTPUT, 0, feeds[OUTPUT], probe.positions, probe.positions),
    )


@dataclass(frozen=True)
class _Call:
    """How a layer is called: along which axis channels lie, ``positions_in``, and an output ``usual [1, ...]``."""

    axis: int
    positions_in: int
    usual: Tensor

    @property
    def width(self) -> int:
        return self.usual.shape[self.axis]


class _Probe:
    """Runs a network with stand-ins for its layers; ``calls`` lists these in order of execution."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model
        self.images = _ordinary(example)
        names = [layer.name for layer in layers_of(model)]
        self.modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
        self.calls: dict[str, _Call] = {}
        self.positions = self._record()  # of the output
        self.widths = {INPUT: example.shape[1], **{name: call.width for name, call in self.calls.items()}}

    def _refusal(self, name: str, reason: str) -> AutoSparseError:
        where = f"layer '{name}'" if name in self.modules else f"its {name}"
        return AutoSparseError(
            f"the topology of {type(self.model).__name__} cannot be followed at {where}: {reason}; "
            "choose a method that does not walk through the network"
        )

    def _record(self) -> int:
        """Fill ``calls`` in one forward pass of the network itself; the pixels of one channel of its output."""
        original = {name: module.forward for name, module in self.modules.items()}

        def recorded(name: str, x: Tensor) -> Tensor:
            if name in self.calls:
                raise self._refusal(name, "it is called more than once")
            output = original[name](x)
            if len(x) != 1 or len(output) != 1 or output.dim() < 2:
                raise self._refusal(name, "the first dimension of its input is not the batch")
            axis = -1 if isinstance(self.modules[name], nn.Linear) else 1
            self.calls[name] = _Call(axis, x.numel() // x.shape[axis], _ordinary(output))
            return output

        with _replaced(self.modules, recorded):
            output = self.model(self.images)
        for name in self.modules:
            if name not in self.calls:
                raise self._refusal(name, "it is never called, though its weight may be used")
        if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != 1:
            raise self._refusal(OUTPUT, "one image does not give one tensor [1, channels, ...]")
        return math.prod(output.shape[2:])

    def run(self, poison: Mapping[str, Tensor], samples: int) -> dict[str, Tensor]:
        """Which channels of each layer and of the output are NaN, bool ``[samples, channels]``.

        ``poison``: bool ``[samples, units]`` for some sources, their units that are NaN.
        """
        called: list[str] = []
        seen: dict[str, Tensor] = {}

        def poisoned(name: str, usual: Tensor, axis: int) -> Tensor:
            """A fresh tensor: operations in place must not change ``usual``."""
            shape = [samples if i == 0 else size for i, size in enumerate(usual.shape)]
            output = usual.expand(shape).clone()
            if name in poison:
                index = [1] * usual.dim()
                index[0], index[axis] = poison[name].shape
                output.masked_fill_(poison[name].reshape(index).to(usual.device), math.nan)
            return output

        def stand_in(name: str, x: Tensor) -> Tensor:
            if len(x) != samples:
                raise self._refusal(name, "operations before it reshape the batch dimension")
            called.append(name)
            call = self.calls[name]
            seen[name] = _channels_with_nan(x, call.axis)
            return poisoned(name, call.usual, call.axis)

        with _replaced(self.modules, stand_in):
            try:
                output = self.model(poisoned(INPUT, self.images, axis=1))
            except AutoSparseError:
                raise
            except Exception as error:  # whatever the network's own code raises on NaN or on several images
                reason = f"what follows fails on a probe ({type(error).__name__}: {error})".partition("\n")[0]
                raise self._refusal(called[-1] if called else INPUT, reason) from error
        for name, expected in itertools.zip_longest(called, self.calls):
            if name != expected:
                raise self._refusal(expected or name, "whether it is called depends on values")
        return {**seen, OUTPUT: _channels_with_nan(output, axis=1)}

    def direct_sources(self) -> dict[str, list[str]]:
        """What feeds each layer and the output: every source is poisoned as a whole, in a sample of its own."""
        found: dict[str, list[str]] = {target: [] for target in [*self.calls, OUTPUT]}
        names = list(self.widths)
        for chunk in (names[start : start + _SAMPLES] for start in range(0, len(names), _SAMPLES)):
            one_hot = torch.eye(len(chunk) + 1, dtype=torch.bool)  # the last sample is clean
            poison = {name: one_hot[:, i : i + 1].expand(-1, self.widths[name]) for i, name in enumerate(chunk)}
            for target, seen in self.run(poison, len(chunk) + 1).items():
                is_fed = seen.any(dim=1).tolist()
                if is_fed.pop():
                    raise self._refusal(target, "operations before it give NaN for ordinary values")
                found[target] += itertools.compress(chunk, is_fed)
        for target, sources in found.items():
            if not sources:
                raise self._refusal(target, "nothing in the network seems to feed it")
        return found

    def units_by_channel(self, sources: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], tuple[int, ...]]:
        """For each (source, target) the unit that feeds each channel, -1 where none does.

        Every unit has a code word of one bit a sample, the samples in which it is NaN. All words have equally many
        ones, so that the union of several has more and is no word: a channel that mixes units is noticed.
        """
        codes = _code_words(max(self.widths.values()))
        unit_of = {0: -1} | {word: unit for unit, word in enumerate(_numbers(codes))}
        found: dict[tuple[str, str], tuple[int, ...]] = {}
        for group in _compatible(list(self.widths), sources):
            seen = self.run({name: codes[: self.widths[name]].T for name in group}, codes.shape[1])
            for source, target in itertools.product(group, sources):
                if source in sources[target]:
                    words = _numbers(seen[target].T)
                    mixed = [channel for channel, word in enumerate(words) if word not in unit_of]
                    if mixed:
                        raise self._refusal(target, f"its channel {mixed[0]} mixes several channels of '{source}'")
                    found[source, target] = tuple(unit_of[word] for word in words)
        return found


@contextmanager
def _replaced(modules: Mapping[str, nn.Module], forward: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Inside the block calls of the modules are ``forward(name, input)``; hooks of the modules' users stay active."""
    before = {name: vars(module)["forward"] for name, module in modules.items() if "forward" in vars(module)}
    try:
        for name, module in modules.items():
            module.forward = functools.partial(forward, name)  # an attribute of the instance goes before its method
        yield
    finally:
        for name, module in modules.items():
            del module.forward
            if name in before:
                module.forward = before[name]


def _ordinary(like: Tensor) -> Tensor:
    """Positive values, not constant, so that neither a logarithm nor a normalisation makes a NaN of its own."""
    return torch.linspace(0.5, 1.5, like.numel(), dtype=like.dtype, device=like.device).reshape(like.shape)


def _channels_with_nan(x: Tensor, axis: int) -> Tensor:
    """Bool ``[samples, channels]`` of ``x [samples, ...]`` with its channels along ``axis``, on the CPU."""
    return x.movedim(axis, 1).reshape(len(x), x.shape[axis], -1).sum(dim=2).isnan().cpu()


def _code_words(count: int) -> Tensor:
    """``count`` different bool rows with equally many ones, as short as possible."""
    length = next(m for m in itertools.count(1) if math.comb(m, (m + 1) // 2) >= count)
    ones = itertools.islice(itertools.combinations(range(length), (length + 1) // 2), count)
    return torch.zeros(count, length, dtype=torch.bool).scatter_(1, torch.tensor(list(ones)), True)


def _numbers(words: Tensor) -> list[int]:
    """Bool rows read as binary numbers."""
    return (words.long() << torch.arange(words.shape[1])).sum(dim=1).tolist()


def _compatible(names: Sequence[str], sources: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Groups of sources of which no two feed the same target, so that one forward pass can probe a group."""
    groups: list[list[str]] = []
    for name in names:
        rivals = set().union(*(feeding for feeding in sources.values() if name in feeding))
        for group in groups:
            if rivals.isdisjoint(group):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups
