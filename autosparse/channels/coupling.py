"""Finding the coupled channels of a network: torch-pruning traces it, connected components couple it.

torch-pruning's graph says, for every two neighbouring operations, which channel of one is which channel of the other
(through additions, concatenations, splits and flattened images). Here every such pair is an edge between two slots
(operation, side, position), and a coupled channel is a connected component. Components that lie in the same modules
with the same multiplicities form a group.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from autosparse._torchvision import ensure_torchvision
from autosparse.channels.check import check_coupling
from autosparse.channels.groups import ChannelGroup, Coupling, Member, Side
from autosparse.errors import AutoSparseError, first_line
from autosparse.outputs import tensors_in

_CONV = nn.modules.conv._ConvNd


def couple(model: nn.Module, example: Tensor, keep: Iterable[str] = ()) -> Coupling:
    """The channel groups of ``model``; the model is left as it was.

    Args:
        example: images ``[N, C, H, W]`` as the network will see them; one is enough.
        keep: names of modules whose channels stay, and those of all modules in them.

    Raises:
        AutoSparseError: a name in ``keep`` that the model does not have, a network that cannot be traced, or a group
            without which it computes something else than the trace says.
    """
    keep = list(keep)
    names = {name for name, _ in model.named_modules()}
    for name in keep:
        if name not in names:
            raise AutoSparseError(f"cannot keep '{name}': {type(model).__name__} has no module of that name")
    graph = _trace(model, example)
    coupling = _grouped(graph, _slots(graph), keep)
    check_coupling(model, coupling, example)
    return coupling


@dataclass
class _Graph:
    """A traced copy of a network."""

    nodes: list[Any]  # torch_pruning.dependency.Node
    pruner_of: Any
    names: dict[nn.Module, str]
    parameters: dict[nn.Parameter, str]
    outputs: set[Any]  # autograd nodes that compute what the network returns
    attentions: dict[str, Any]  # modules with num_heads, qkv and proj
    layers: frozenset[str]  # names of convolutions and linear layers


def _trace(model: nn.Module, example: Tensor) -> _Graph:
    ensure_torchvision()
    import torch_pruning as tp

    traced = copy.deepcopy(model)  # tracing switches to eval mode and needs gradients everywhere
    for parameter in traced.parameters():
        parameter.requires_grad_(True)
    outputs: set[Any] = set()

    def note(output: Any) -> Any:
        outputs.update(tensor.grad_fn for tensor in tensors_in(output) if tensor.grad_fn is not None)
        return output

    graph = tp.DependencyGraph()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # it warns of parameters outside of layers, which stay as they are here
            graph.build_dependency(traced, example[:1], output_transform=note, verbose=False)
    except AutoSparseError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise AutoSparseError(
            f"{type(model).__name__} cannot be traced on images of {tuple(example.shape[1:])} ({reason}): "
            "check that it can be evaluated on them"
        ) from error
    names = {module: name for name, module in traced.named_modules()}
    attentions: dict[str, Any] = {name: module for module, name in names.items() if _has_heads(module)}
    parameters = {parameter: name for name, parameter in traced.named_parameters()}
    nodes = list(graph.module2node.values())
    layers = frozenset(name for module, name in names.items() if isinstance(module, (_CONV, nn.Linear)))
    return _Graph(nodes, graph.get_pruner_of_module, names, parameters, outputs, attentions, layers)


def _has_heads(module: nn.Module) -> bool:
    """Whether this is attention in the style of timm: one projection to queries, keys and values of all heads."""
    qkv, proj = getattr(module, "qkv", None), getattr(module, "proj", None)
    heads, size = getattr(module, "num_heads", None), getattr(module, "head_dim", None)
    if not (isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and isinstance(heads, int)):
        return False
    size = size if isinstance(size, int) else proj.in_features // heads
    plain = isinstance(getattr(module, "norm", nn.Identity()), nn.Identity) and getattr(module, "gate", None) is None
    return plain and qkv.out_features == 3 * heads * size and proj.in_features == heads * size


#: A slot's place: the index of its node, and its side.
_Place = tuple[int, str]


class _Slots:
    """Every channel of every operation that a layer's outputs reach, numbered, and the edges between them."""

    def __init__(self, graph: _Graph) -> None:
        self.graph = graph
        self.numbers: dict[_Place, dict[int, int]] = {}
        self.edges: list[tuple[int, int]] = []
        self.count = 0
        self.index = {node: index for index, node in enumerate(graph.nodes)}
        #: New slots whose neighbours have not been looked for.
        self._new: dict[_Place, list[int]] = {}
        #: Sides beyond which attention knows the coupling better than the trace.
        self._inside = {(a.qkv, "out") for a in graph.attentions.values()}
        self._inside |= {(a.proj, "in") for a in graph.attentions.values()}

    def add(self, node: Any, side: str, position: int) -> int:
        """The number of a slot, which is made if it is new."""
        place = (self.index[node], side)
        known = self.numbers.setdefault(place, {})
        if position not in known:
            known[position] = self.count
            self.count += 1
            self._new.setdefault(place, []).append(position)
        return known[position]

    def tie(self, slots: Iterable[int]) -> None:
        self.edges += itertools.pairwise(slots)

    def spread(self) -> None:
        """Follow new slots to their neighbours, with one edge for every pair, until nothing is new."""
        from torch_pruning._helpers import _HybridIndex

        while self._new:
            place, positions = self._new.popitem()
            node, side = self.graph.nodes[place[0]], place[1]
            if (node.module, side) in self._inside:
                continue
            pruner = self.graph.pruner_of(node.module)
            function = pruner.prune_in_channels if side == "in" else pruner.prune_out_channels
            known = self.numbers[place]
            sources = [_HybridIndex(idx=i, root_idx=known[i]) for i in positions]
            for dependency in node.dependencies:
                if not dependency.is_triggered_by(function):
                    continue
                targets = sources
                for mapping in dependency.index_mapping:
                    targets = targets if mapping is None else mapping(targets)
                other = self.side(dependency.target, dependency.handler)
                self.edges += [(t.root_idx, self.add(dependency.target, other, t.idx)) for t in targets]

    def side(self, node: Any, function: Any) -> str:
        """``out`` or ``in`` where pruning them differs, ``channel`` where it is one thing."""
        pruner = self.graph.pruner_of(node.module)
        if pruner.prune_out_channels == pruner.prune_in_channels:
            return "channel"
        return "out" if function == pruner.prune_out_channels else "in"

    def components(self) -> np.ndarray:
        """The coupled channel that each slot belongs to."""
        ends = np.array(self.edges, dtype=np.int64).reshape(-1, 2).T
        matrix = coo_matrix((np.ones(ends.shape[1], dtype=np.int8), (ends[0], ends[1])), (self.count, self.count))
        return connected_components(matrix, directed=False)[1]


def _slots(graph: _Graph) -> _Slots:
    slots = _Slots(graph)
    node_of = {node.module: node for node in graph.nodes if isinstance(node.module, nn.Module)}
    for node in graph.nodes:
        if isinstance(node.module, (_CONV, nn.Linear)):
            pruner = graph.pruner_of(node.module)
            side = slots.side(node, pruner.prune_out_channels)
            for i in range(pruner.get_out_channels(node.module)):
                slots.add(node, side, i)
            if side == "out" and getattr(node.module, "groups", 1) > 1:
                _tie_blocks(slots, node)
    for attention in graph.attentions.values():
        if attention.qkv in node_of and attention.proj in node_of:
            _tie_heads(slots, attention, node_of[attention.qkv], node_of[attention.proj])
    slots.spread()
    return slots


def _tie_blocks(slots: _Slots, node: Any) -> None:
    """What a grouped convolution reads and writes in one of its groups goes as a whole."""
    conv = node.module
    reads, writes = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    for g in range(conv.groups):
        written = [slots.add(node, "out", i) for i in range(g * writes, (g + 1) * writes)]
        slots.tie(written + [slots.add(node, "in", i) for i in range(g * reads, (g + 1) * reads)])


def _tie_heads(slots: _Slots, attention: Any, qkv: Any, proj: Any) -> None:
    """A head is its queries, keys and values, and what the projection behind them reads of it."""
    inner = attention.proj.in_features
    size = inner // attention.num_heads
    for first in range(0, inner, size):
        channels = range(first, first + size)
        written = [slots.add(qkv, "out", part * inner + i) for part in range(3) for i in channels]
        slots.tie(written + [slots.add(proj, "in", i) for i in channels])


def _grouped(graph: _Graph, slots: _Slots, keep: Collection[str]) -> Coupling:
    """Components with the same modules and multiplicities as groups; those that must stay as reasons."""
    labels = slots.components()
    order = {name: index for index, name in enumerate(graph.names.values())}
    reasons: dict[int, str] = {}  # of components
    places: dict[int, dict[tuple[str, Side], list[int]]] = defaultdict(lambda: defaultdict(list))
    operations: dict[int, set[str]] = defaultdict(set)
    for (index, side), numbers in slots.numbers.items():
        node = graph.nodes[index]
        name = graph.names.get(node.module) if isinstance(node.module, nn.Module) else None
        reason = _reason(graph, node, name, side, keep)
        for position, number in numbers.items():
            label = int(labels[number])
            if reason:
                reasons.setdefault(label, reason)
            if name is None and hasattr(node.grad_fn, "name"):
                operations[label].add(node.grad_fn.name())
            elif name is not None:
                places[label][name, cast(Side, side)].append(position)
    alike: dict[tuple[tuple[str, Side, int], ...], list[int]] = defaultdict(list)
    fixed: dict[str, str] = {}
    for label, places_of in places.items():
        reason = reasons.get(label) or _loose(graph, places_of)
        if reason:
            fixed |= {name: reason for name, side in places_of if _computes(graph, name, side)}
            continue
        keys = sorted(places_of, key=lambda key: (key[1] == "in" or key[0] not in graph.layers, order[key[0]], key[1]))
        alike[tuple((*key, len(places_of[key])) for key in keys)].append(label)
    groups = [
        replace(
            _group(graph, signature, [places[label] for label in channels]),
            operations=tuple(sorted(set.union(*(operations[label] for label in channels)))),
        )
        for signature, channels in alike.items()
    ]
    groups.sort(key=lambda group: (order[group.members[0].module], int(group.members[0].positions[0, 0])))
    return Coupling(tuple(_named(groups)), dict(sorted(fixed.items(), key=lambda item: order[item[0]])))


def _group(
    graph: _Graph,
    signature: Sequence[tuple[str, Side, int]],
    channels: Sequence[Mapping[tuple[str, Side], Sequence[int]]],
) -> ChannelGroup:
    first = signature[0][:2]
    ordered = sorted(channels, key=lambda channel: min(channel[first]))
    members = tuple(
        Member(name, side, np.array([sorted(channel[name, side]) for channel in ordered], dtype=np.int64))
        for name, side, _ in signature
    )
    written = {name for name, side, _ in signature if side == "out"}
    heads = [name for name, a in graph.attentions.items() if graph.names[a.qkv] in written]
    return ChannelGroup(members[0].module, members, heads[0] if heads else None)


def _named(groups: Iterable[ChannelGroup]) -> Iterator[ChannelGroup]:
    """Names made unique: a layer whose outputs fall apart into several groups gives them all its name."""
    seen: Counter[str] = Counter()
    for group in groups:
        seen[group.name] += 1
        yield replace(group, name=f"{group.name}#{seen[group.name]}") if seen[group.name] > 1 else group


def _computes(graph: _Graph, name: str, side: Side) -> bool:
    """Whether this side of a module is the output of a layer."""
    return side != "in" and name in graph.layers


def _reason(graph: _Graph, node: Any, name: str | None, side: str, keep: Collection[str]) -> str | None:
    """Why the channels on a side of a node cannot be removed, if they cannot."""
    module = node.module
    if side != "in" and node.grad_fn in graph.outputs:
        return "the network returns them"
    if isinstance(module, nn.Parameter):
        return f"they meet the parameter {graph.parameters.get(module, '')}".rstrip()
    if name is None:
        return None
    if side == "in":
        return None
    if any(name == kept or name.startswith(f"{kept}.") for kept in keep if kept) or "" in keep:
        return f"{name} is to be kept"
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
        return f"{name} ({type(module).__name__}) normalises them together"
    if isinstance(module, (nn.MultiheadAttention, nn.Embedding, nn.LSTM)) or getattr(module, "transposed", False):
        return f"{name} ({type(module).__name__}) cannot lose them"
    return None


def _loose(graph: _Graph, places: Mapping[tuple[str, Side], Sequence[int]]) -> str | None:
    """Why a component without a reason so far is no channel: nothing computes it, or nothing reads it."""
    layers = [side for name, side in places if name in graph.layers]
    if "out" not in layers:
        return "no layer computes them"
    return None if "in" in layers else "no layer reads them"
