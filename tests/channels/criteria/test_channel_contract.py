"""What every channel criterion promises, on every kind of coupling."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from criteria_networks import NETWORKS, RESIDUAL, blank, coupled, images, randomised
from torch import Tensor, nn

from autosparse.channels.criteria import (
    CHANNEL_CRITERIA,
    ChannelScores,
    channel_criterion,
    list_channel_criteria,
    score_channels,
)
from autosparse.channels.groups import ChannelGroup, Coupling, Member
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.scorer.network import Scorer
from autosparse.seeding import generator, global_stream

WITHOUT_BATCH_NORM = sorted(set(NETWORKS) - {"residual", "depthwise"})
NO_TIMM = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")


def everything() -> dict[str, Any]:
    """What any channel criterion may need."""
    with global_stream(0, "scorer"):
        scorer = Scorer("scale-free").eval()
    stream = generator(0, "random")
    return {"batches": images(4, 2), "loss_fn": F.cross_entropy, "scorer": scorer, "generator": stream}


def scores_of(name: str, model: nn.Module, coupling: Coupling, **options: object) -> ChannelScores:
    return score_channels(name, model, coupling, options=options, **everything())


def test_every_criterion_says_what_it_is_and_where_it_comes_from() -> None:
    for name, entry in CHANNEL_CRITERIA.items():
        assert entry.summary.endswith("."), name
        assert entry.paper or name == "random", name


@pytest.mark.parametrize("network", [pytest.param(n, marks=NO_TIMM) if n == "attention" else n for n in NETWORKS])
@pytest.mark.parametrize("name", list_channel_criteria())
def test_every_channel_of_every_kind_of_coupling_has_a_finite_score(name: str, network: str) -> None:
    model = randomised(blank(network))
    coupling = coupled(model)
    if name == "bn-scale" and network in WITHOUT_BATCH_NORM:
        with pytest.raises(AutoSparseError, match=r"no removable channel of .* has one: use another criterion"):
            scores_of(name, model, coupling)
        return
    # A transposed convolution is not among the weights that criteria of weights score.
    options = {"gates": "writes"} if (name, network) == ("synflow", "upsampled") else {}
    scores = scores_of(name, model, coupling, **options)
    assert {group: values.shape for group, values in scores.items()} == {g: (w,) for g, w in coupling.widths.items()}
    assert all(values.dtype == np.float64 and np.isfinite(values).all() for values in scores.values())
    if (name, network) != ("fpgm", "grouped"):  # two channels are as far from each other
        assert len({float(value) for values in scores.values() for value in values}) > 1


@pytest.mark.parametrize("name", list_channel_criteria())
def test_the_model_and_the_global_rng_are_left_as_they_were(name: str) -> None:
    model = randomised(RESIDUAL())
    coupling = coupled(model)
    model.train()
    model.get_submodule("norm").eval()
    model.get_parameter("inner.weight").requires_grad_(False)
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, index) if index % 2 else None
    state = {key: value.clone() for key, value in model.state_dict().items()}
    grads = [parameter.grad for parameter in model.parameters()]
    values = [None if grad is None else grad.clone() for grad in grads]
    flags = [module.training for module in model.modules()]
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    rng = torch.get_rng_state()

    scores = scores_of(name, model, coupling)
    for array in scores.values():
        array.fill(7)  # not the model's own memory

    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for parameter, grad, value in zip(model.parameters(), grads, values, strict=True):
        assert parameter.grad is grad
        assert value is None or torch.equal(value, parameter.grad)  # type: ignore[arg-type]
    assert [module.training for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("name", list_channel_criteria())
def test_scores_are_the_same_twice_and_where_gradients_are_off(name: str) -> None:
    model = randomised(RESIDUAL())
    coupling = coupled(model)
    first = scores_of(name, model, coupling)
    with torch.no_grad():
        second = scores_of(name, model, coupling)
    assert all(np.array_equal(first[group], values) for group, values in second.items())


@pytest.mark.parametrize("name", sorted({*list_channel_criteria()} - {"random"}))
def test_scores_move_with_the_channels(name: str) -> None:
    """Channels in another order are the same network: scores come in that order."""
    model, order = randomised(RESIDUAL()), [3, 0, 5, 1, 4, 2]
    coupling = coupled(model)
    before = scores_of(name, model, coupling)
    with torch.no_grad():
        for parameter in (*model.get_submodule("inner").parameters(),):
            parameter.copy_(parameter[order].clone())
        model.get_parameter("back.weight").copy_(model.get_parameter("back.weight")[:, order].clone())
    after = scores_of(name, model, coupling)
    largest = max(float(np.abs(values).max()) for values in before.values())
    np.testing.assert_allclose(after["inner"], before["inner"][order], rtol=1e-6, atol=1e-6 * largest)
    np.testing.assert_allclose(after["stem"], before["stem"], rtol=1e-6, atol=1e-6 * largest)


def test_random_scores_are_those_of_the_generator() -> None:
    model = RESIDUAL()
    coupling = coupled(model)
    first, second, other = (score_channels("random", model, coupling, generator=generator(s)) for s in (0, 0, 1))
    values = np.concatenate([*first.values()])
    assert ((values >= 0) & (values < 1)).all()
    assert len(set(values)) == 10
    assert all(np.array_equal(first[group], second[group]) for group in first)
    assert not any(np.array_equal(first[group], other[group]) for group in first)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("snip", "batches"), ("snip", "loss_fn"), ("synflow", "batches"), ("autos", "scorer"), ("random", "generator")],
)
def test_a_missing_ingredient_is_named(name: str, missing: str) -> None:
    model = randomised(RESIDUAL())
    with pytest.raises(AutoSparseError, match=f"criterion '{name}' needs {missing}, which was not given"):
        score_channels(name, model, coupled(model), **(everything() | {missing: None}))


def test_unknown_names_suggest_the_nearest() -> None:
    model = RESIDUAL()
    coupling = coupled(model)
    with pytest.raises(UnknownNameError, match="unknown channel criterion 'sinp': did you mean snip"):
        score_channels("sinp", model, coupling)
    with pytest.raises(UnknownNameError, match="unknown option of l1 'normalize': did you mean normalise"):
        scores_of("l1", model, coupling, normalize="max")
    with pytest.raises(AutoSparseError, match="option normalise of l1 is 3: give a value such as 'mean'"):
        scores_of("l1", model, coupling, normalise=3)


def test_the_coupling_must_be_that_of_the_network() -> None:
    coupling = coupled(RESIDUAL())
    with pytest.raises(AutoSparseError, match=r"coupling is not that of this Small, .* 'back': couple the network as"):
        score_channels("l1", blank("grouped"), coupling)
    narrow = RESIDUAL()
    narrow.inner = nn.Conv2d(4, 5, 3, padding=1)
    with pytest.raises(AutoSparseError, match=r"coupling is not that of this Small, .* 'inner': couple the network as"):
        score_channels("l1", narrow, coupling)


def test_no_channels_have_no_scores() -> None:
    assert score_channels("l1", RESIDUAL(), Coupling((), {})) == {}


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("name", ["afie", "fpgm", "l1", "l2", "magnitude"])
def test_scores_that_are_not_finite_are_refused(name: str, value: float) -> None:
    model = RESIDUAL()
    coupling = coupled(model)
    with torch.no_grad():
        model.get_parameter("inner.weight")[2] = value
    with pytest.raises(AutoSparseError, match=f"'{name}' gives channel group 'inner' scores that are not finite"):
        score_channels(name, model, coupling)


def test_a_reader_that_cannot_be_scored_is_named() -> None:
    model = nn.Sequential()
    model.add_module("first", nn.Linear(2, 2))
    model.add_module("rnn", nn.LSTM(2, 2))
    positions = np.arange(2)[:, None]
    group = ChannelGroup("first", (Member("first", "out", positions), Member("rnn", "in", positions)))
    model.forward = lambda x: model.rnn(model.first(x))[0]  # type: ignore[method-assign,operator]
    batches = [(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))]
    with pytest.raises(AutoSparseError, match=r"rnn.weight, .* channels of first, cannot be scored: .* --keep first"):
        score_channels("snip", model, Coupling((group,), {}), batches=batches, loss_fn=F.cross_entropy)


def test_a_transposed_convolution_that_reads_has_no_flow_of_synflow() -> None:
    model = randomised(blank("upsampled"))
    with pytest.raises(AutoSparseError, match=r"up.weight, .* channels of stem, cannot be scored: .* --keep stem"):
        scores_of("synflow", model, coupled(model))


def test_registration_refuses_what_channel_criteria_do_not_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CHANNEL_CRITERIA, "_entries", dict(CHANNEL_CRITERIA._entries))

    @channel_criterion("first", paper="nobody 2000")
    def first(coupling: Coupling, *, best: float = 1.0) -> ChannelScores:
        """The first one."""
        return {group.name: best * (np.arange(group.width) == 0) for group in coupling}

    coupling = coupled(RESIDUAL())
    assert score_channels("first", RESIDUAL(), coupling, options={"best": 3})["stem"].tolist() == [3, 0, 0, 0]
    with pytest.raises(ValueError, match="channel criterion 'first' is already defined"):
        channel_criterion("first")(first)
    with pytest.raises(ValueError, match=r"channel criterion 'other' asks for \['masks'\]"):
        channel_criterion("other")(lambda coupling, masks: {})


@pytest.mark.parametrize("name", ["crop", "grasp"])
def test_the_check_is_for_second_derivatives(name: str) -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g

    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(super().forward(x))

    check = CHANNEL_CRITERIA.get(name).check
    check(nn.Sequential(nn.Linear(2, 2), nn.Hardsigmoid()), torch.randn(2, 2))
    with pytest.raises(AutoSparseError, match="second derivatives"):
        check(Net(2, 2), torch.randn(2, 2))
