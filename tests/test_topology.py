"""The graph of units: explicit expectations on hand-made networks, an independent derivation on built-in ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.errors import AutoSparseError
from autosparse.layers import prunable
from autosparse.models import list_models, seeded_model
from autosparse.topology import INPUT, OUTPUT, Topology, check_topology, trace_topology

Net = Callable[..., nn.Module]
Units = tuple[int, ...]


class Wired(nn.Module):
    """Named layers and a function that wires them."""

    def __init__(self, forward: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        self.wiring = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> object:
        return self.wiring(self, x)


def conv(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)


def feeds(topology: Topology) -> dict[str, dict[str, Units]]:
    """Layers without the ending ``.weight``, each with its predecessors."""

    def short(name: str) -> str:
        return name.removesuffix(".weight")

    nodes = [*topology.nodes.values(), topology.output]
    return {short(node.name): {short(feed.source): feed.units for feed in node.predecessors} for node in nodes}


def test_a_sequence_ending_in_flattened_pixels() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Dropout(), nn.Conv2d(2, 4, 3),
        nn.MaxPool2d(3, stride=1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    topology = trace_topology(model, torch.zeros(1, 3, 6, 6))
    assert feeds(topology) == {
        "0": {INPUT: (0, 1, 2)},
        "4": {"0": (0, 1)},
        "7": {"4": (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)},  # the pixels of a channel lie together
        OUTPUT: {"7": (0, 1, 2, 3, 4)},
    }
    nodes = topology.nodes.values()
    assert (topology.input.units, topology.input.channels, topology.input.positions_out) == (3, 0, 36)
    assert [node.units for node in nodes] == [2, 4, 5]
    assert [node.channels for node in nodes] == [3, 2, 16]
    assert [(node.positions_in, node.positions_out) for node in nodes] == [(36, 36), (36, 16), (1, 1)]


def test_residual_branches_with_and_without_a_projection() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = torch.relu(net.stem(x))
        x = torch.relu(x + net.b(F.relu_(net.a(x))))
        x = torch.relu(net.d(torch.relu(net.c(x))) + net.projection(x))
        return net.head(x.mean(dim=(2, 3)))

    model = Wired(
        forward,
        stem=conv(1, 2), a=conv(2, 3), b=conv(3, 2), c=conv(2, 4), d=conv(4, 4), projection=nn.Conv2d(2, 4, 1),
        head=nn.Linear(4, 2),
    )  # fmt: skip
    topology = trace_topology(model, torch.zeros(1, 1, 4, 4))
    assert feeds(topology) == {
        "stem": {INPUT: (0,)},
        "a": {"stem": (0, 1)},
        "b": {"a": (0, 1, 2)},
        "c": {"stem": (0, 1), "b": (0, 1)},
        "d": {"c": (0, 1, 2, 3)},
        "projection": {"stem": (0, 1), "b": (0, 1)},
        "head": {"d": (0, 1, 2, 3), "projection": (0, 1, 2, 3)},
        OUTPUT: {"head": (0, 1)},
    }
    ancestors = topology.ancestors()
    assert ancestors["b.weight"] == {INPUT, "stem.weight", "a.weight"}
    assert "d.weight" not in ancestors["projection.weight"]
    assert ancestors[OUTPUT] == {INPUT, *topology.nodes}


def test_concatenation_shifts_and_padding_leaves_channels_unfed() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        a = net.a(x)
        b = net.b(torch.cat([x, a], dim=1))
        return net.head((net.c(b) + F.pad(a, (0, 0, 0, 0, 1, 0))).amax(dim=(2, 3)))

    model = Wired(forward, a=conv(1, 2), b=conv(3, 2), c=conv(2, 3), head=nn.Linear(3, 2))
    assert feeds(trace_topology(model, torch.zeros(1, 1, 4, 4))) == {
        "a": {INPUT: (0,)},
        "b": {INPUT: (0, -1, -1), "a": (-1, 0, 1)},
        "c": {"b": (0, 1)},
        "head": {"a": (-1, 0, 1), "c": (0, 1, 2)},
        OUTPUT: {"head": (0, 1)},
    }


def test_grouped_and_depthwise_convolutions_between_a_channel_shuffle() -> None:
    model = nn.Sequential(conv(4, 4, groups=2), nn.ChannelShuffle(2), conv(4, 8, groups=4), nn.Flatten(2))
    topology = trace_topology(model, torch.zeros(1, 4, 2, 2))
    assert feeds(topology) == {
        "0": {INPUT: (0, 1, 2, 3)},
        "2": {"0": (0, 2, 1, 3)},
        OUTPUT: {"2": (0, 1, 2, 3, 4, 5, 6, 7)},
    }
    assert topology.nodes["2.weight"].channels == 4  # of the whole layer, not of one group


def test_a_gate_feeds_what_it_multiplies() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        gate = torch.sigmoid(net.gate(x.mean(dim=(2, 3), keepdim=True)))
        return net.b(x * gate).flatten(1)

    model = Wired(forward, a=conv(1, 2), gate=nn.Conv2d(2, 2, 1), b=conv(2, 1))
    topology = trace_topology(model, torch.zeros(1, 1, 2, 2))
    assert feeds(topology)["b"] == {"a": (0, 1), "gate": (0, 1)}
    assert topology.nodes["gate.weight"].positions_out == 1
    assert topology.nodes["b.weight"].positions_in == 4
    assert feeds(topology)[OUTPUT] == {"b": (0, 0, 0, 0)}


def test_values_play_no_role() -> None:
    """Scales that start at zero, dead activations and NaN images hide nothing."""
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.ReLU(), nn.Conv1d(3, 2, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.0)
        model.get_parameter("1.bias").fill_(-1.0)
    found = feeds(trace_topology(model, torch.full((1, 2, 5), float("nan"))))
    assert found == {"0": {INPUT: (0, 1)}, "3": {"0": (0, 1, 2)}, OUTPUT: {"3": (0, 1)}}


def test_features_are_the_last_dimension_of_linear_layers(chain: Net) -> None:
    found = feeds(trace_topology(nn.Sequential(nn.Flatten(), chain(4, 3, 2)), torch.zeros(1, 1, 2, 2)))
    assert found == {"1.0": {INPUT: (0, 0, 0, 0)}, "1.2": {"1.0": (0, 1, 2)}, OUTPUT: {"1.2": (0, 1)}}

    def by_pixel(net: Any, x: Tensor) -> Tensor:
        return net.b(net.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    model = Wired(by_pixel, a=nn.Linear(2, 3), b=conv(3, 1))
    topology = trace_topology(model, torch.zeros(1, 2, 4, 4))
    assert feeds(topology) == {"a": {INPUT: (0, 1)}, "b": {"a": (0, 1, 2)}, OUTPUT: {"b": (0,)}}
    assert topology.nodes["a.weight"].positions_out == 16


# ------------------------------------------------------------------------------------------------ built-in networks


@pytest.mark.parametrize("name", list_models())
def test_every_built_in_network_can_be_followed(name: str) -> None:
    model = seeded_model(name, seed=0, num_classes=4, width=0.1)
    topology = trace_topology(model, torch.zeros(1, 3, 16, 16))
    assert set(topology.nodes) == set(prunable(model))
    assert [feed.source for feed in topology.output.predecessors] == ["classifier.weight"]
    known = {INPUT}
    for node in topology.nodes.values():
        fed = zip(*(feed.units for feed in node.predecessors), strict=True)
        assert all(max(units) >= 0 for units in fed), node.name
        assert {feed.source for feed in node.predecessors} <= known
        known.add(node.name)


def by_gradient(model: nn.Module, example: Tensor) -> dict[tuple[str, str, int], set[int]]:
    """Units by (source, target, channel): those from which a channel, as a function of cut outputs, has a gradient."""
    cut: dict[str, Tensor] = {INPUT: example.clone().requires_grad_(True)}
    reached: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., Tensor]:
        def cut_here(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            reached[name] = args[0]
            cut[name] = torch.rand(output.shape, generator=stream).add(0.5).requires_grad_(True)
            return cut[name]

        return cut_here

    stream = torch.Generator().manual_seed(0)
    model.eval()
    handles = [model.get_submodule(n.rpartition(".")[0]).register_forward_hook(hook(n)) for n in prunable(model)]
    reached[OUTPUT] = model(cut[INPUT])
    for handle in handles:
        handle.remove()
    found = {}
    for target, x in reached.items():
        for channel in range(x.shape[1]):
            gradients = torch.autograd.grad(
                x[:, channel].sum(), list(cut.values()), retain_graph=True, allow_unused=True
            )
            for source, gradient in zip(cut, gradients, strict=True):
                if gradient is not None and bool(gradient.any()):
                    units = gradient.reshape(gradient.shape[1], -1).abs().sum(dim=1).nonzero()[:, 0]
                    found[source, target, channel] = set(units.tolist())
    return found


@pytest.mark.parametrize("name", ["resnet20", "wrn-16-2", "mobilenetv2"])
def test_units_agree_with_gradients(name: str) -> None:
    model = seeded_model(name, seed=0, num_classes=3, width=0.1)
    example = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.5
    topology = trace_topology(model, example)
    found = {
        (feed.source, node.name, channel): {unit}
        for node in [*topology.nodes.values(), topology.output]
        for feed in node.predecessors
        for channel, unit in enumerate(feed.units)
        if unit >= 0
    }
    assert found == by_gradient(model, example)


# ---------------------------------------------------------------------------------------------------------- refusals


class TinyAttention(nn.Module):
    """Tokens are pixels, features are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).mT).chunk(3, dim=-1)
        return self.out(torch.softmax(q @ k.mT, dim=-1) @ v).mean(dim=1)


def _twice(net: Any, x: Tensor) -> Tensor:
    return net.a(net.a(x))


def _by_function(net: Any, x: Tensor) -> Tensor:
    return F.linear(net.a(x), net.b.weight)


def _value_dependent(net: Any, x: Tensor) -> Tensor:
    return net.b(net.a(x)) if x.sum() > 0 else net.a(x)


def _fails_on_nan(net: Any, x: Tensor) -> Tensor:
    if net.a(x).isnan().any():
        raise ValueError("not a number\nsecond line")
    return net.b(x)


def linears(wiring: Callable[..., object], *names: str) -> nn.Module:
    """Linear layers of three features, wired."""
    return Wired(wiring, **{name: nn.Linear(3, 3) for name in names})


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "attention": (
        TinyAttention(),
        (1, 4, 2, 2),
        r"^the topology of TinyAttention .* layer 'out.weight': its channel 0 mixes several channels of 'qkv.weight'; ",
    ),
    "layer norm": (
        nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        (1, 3),
        r"^the topology of Sequential .* layer '2.weight': its channel 0 mixes several channels of '0.weight'; ",
    ),
    "group norm": (
        nn.Sequential(conv(1, 4), nn.GroupNorm(2, 4), conv(4, 1)),
        (1, 1, 4, 4),
        r"layer '2.weight': its channel 0 mixes",
    ),
    "gated linear unit": (
        nn.Sequential(nn.Linear(3, 4), nn.GLU(), nn.Linear(2, 2)),
        (1, 3),
        r"layer '2.weight': its channel 0 mixes",
    ),
    "mixed output": (
        nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=1)),
        (1, 3),
        r"its output: its channel 0 mixes several channels of '0.weight'",
    ),
    "called twice": (linears(_twice, "a"), (1, 3), r"Wired .* layer 'a.weight': it is called more than once"),
    "weight alone": (linears(_by_function, "a", "b"), (1, 3), r"layer 'b.weight': it is never called"),
    "value-dependent": (linears(_value_dependent, "a", "b"), (1, 3), r"layer 'b.weight': .* depends on values"),
    "fails on NaN": (
        linears(_fails_on_nan, "a", "b"),
        (1, 3),
        r"layer 'a.weight': what follows fails on a probe \(ValueError: not a number; choose",
    ),
    "batch reshaped": (
        nn.Sequential(nn.Linear(4, 4), nn.Flatten(0), nn.Unflatten(0, (-1, 2)), nn.Linear(2, 2)),
        (1, 4),
        r"layer '3.weight': the first dimension of its input is not the batch",
    ),
    "unfed": (
        linears(lambda net, x: net.a(x) + net.b(torch.ones(len(x), 3)), "a", "b"),
        (1, 3),
        r"layer 'b.weight': nothing in the network seems to feed it",
    ),
    "NaN of its own": (
        linears(lambda net, x: net.b(torch.log(-net.a(x))), "a", "b"),
        (1, 3),
        r"layer 'b.weight': operations before it give NaN",
    ),
    "two outputs": (
        linears(lambda net, x: (net.a(x), x), "a"),
        (1, 3),
        r"its output: one image does not give one tensor",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(case: str) -> None:
    model, shape, message = REFUSED[case]
    with pytest.raises(AutoSparseError, match=message) as caught:
        check_topology(model, torch.zeros(shape))
    assert "\n" not in str(caught.value)


def test_a_network_that_can_be_followed_passes_the_check(conv_net: Net) -> None:
    check_topology(conv_net(), torch.zeros(1, 3, 8, 8))


# --------------------------------------------------------------------------------------------------- nothing is left


def state(model: nn.Module) -> Mapping[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_random_state_are_as_before(fails: bool) -> None:
    model = nn.Sequential(
        conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LayerNorm(64) if fails else nn.Identity(),
        nn.Linear(64, 2),
    )  # fmt: skip
    seen: list[str] = []
    model[0].register_forward_hook(lambda *_: seen.append("own hook"))
    model[5].forward = own = model[5].forward  # as accelerate and others wrap it
    model.train()
    before, attributes, rng = state(model), [set(vars(module)) for module in model], torch.get_rng_state()
    try:
        trace_topology(model, torch.zeros(1, 3, 4, 4))
    except AutoSparseError:
        assert fails
    assert seen  # the user's hooks were not taken away
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [set(vars(module)) for module in model] == attributes
    assert model[5].forward is own
    assert all(len(module._forward_hooks) == (index == 0) for index, module in enumerate(model))
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


def test_many_units_get_different_code_words() -> None:
    """More units than the shortest code of the narrow layers could tell apart, in one network."""
    model = nn.Sequential(nn.Linear(2, 300), nn.ReLU(), nn.Linear(300, 3))
    topology = trace_topology(model, torch.zeros(1, 2))
    assert feeds(topology)["2"] == {"0": tuple(range(300))}
    assert feeds(topology)[OUTPUT] == {"2": tuple(range(3))}


def test_two_different_mixtures_are_never_taken_for_a_unit() -> None:
    """Any two of five units, summed, are refused."""
    for pair in itertools.combinations(range(5), 2):
        model = Wired(
            lambda net, x, pair=pair: net.b(net.a(x)[:, list(pair)].sum(dim=1, keepdim=True)),
            a=nn.Linear(2, 5),
            b=nn.Linear(1, 2),
        )
        with pytest.raises(AutoSparseError, match=r"mixes several channels of 'a.weight'"):
            check_topology(model, torch.zeros(1, 2))
