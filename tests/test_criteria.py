"""Criteria: formulas by hand, and the promise that measuring leaves a model as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.criteria import CRITERIA, criterion, list_criteria, mean_gradient, score, untouched
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.layers import prunable
from autosparse.masks import Masks
from autosparse.scorer.network import Scorer
from autosparse.seeding import generator, global_stream

Batch = tuple[Tensor, Tensor]
Net = Callable[..., nn.Module]
#: Searches that are over sooner.
_SEARCH = {"steps": 5, "warm_steps": 2}
QUICK = {"cts": _SEARCH, "autos-cts": _SEARCH, "scout": {"steps": 5}}


@pytest.fixture
def scorer() -> Scorer:
    with global_stream(0, "scorer"):
        return Scorer("scale-free").eval()


def everything(name: str, model: nn.Module, batches: list[Batch], scorer: Scorer) -> dict[str, Tensor]:
    """The scores under any criterion: it takes what it needs."""
    counts = {key: 1 + weight.numel() // 3 for key, weight in prunable(model).items()}
    return score(
        name,
        model,
        options=QUICK.get(name),
        batches=batches,
        loss_fn=F.cross_entropy,
        generator=generator(0, "random"),
        scorer=scorer,
        keep=sum(counts.values()),
        counts=counts,
    )


def test_every_criterion_says_what_it_is_and_where_it_comes_from() -> None:
    assert {"autos", "magnitude", "random", "snip"} <= set(list_criteria())
    for name, entry in CRITERIA.items():
        assert entry.summary.endswith((".", "alone.")), name
        assert entry.paper or name == "random", name


@pytest.mark.parametrize("name", list_criteria())
def test_a_criterion_leaves_the_model_as_it_was(
    name: str, conv_net: Net, two_batches: list[Batch], scorer: Scorer
) -> None:
    model = conv_net()
    model.train()
    model.get_submodule("norm").eval()
    model.get_parameter("stem.weight").requires_grad_(False)
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, index) if index % 2 else None
    state = {key: value.clone() for key, value in model.state_dict().items()}
    grads = [parameter.grad for parameter in model.parameters()]
    values = [None if grad is None else grad.clone() for grad in grads]
    flags = [module.training for module in model.modules()]
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    torch.manual_seed(3)
    rng = torch.get_rng_state()

    scores = everything(name, model, two_batches, scorer)

    assert {key: tuple(value.shape) for key, value in scores.items()} == {
        key: tuple(value.shape) for key, value in prunable(model).items()
    }
    assert not any(value.requires_grad for value in scores.values())
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for parameter, grad, value in zip(model.parameters(), grads, values, strict=True):
        assert parameter.grad is grad
        assert value is None or torch.equal(value, parameter.grad)  # type: ignore[arg-type]
    assert [module.training for module in model.modules()] == flags
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("name", list_criteria())
def test_scores_are_not_the_weights_themselves(
    name: str, conv_net: Net, two_batches: list[Batch], scorer: Scorer
) -> None:
    model = conv_net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for value in everything(name, model, two_batches, scorer).values():
        value.fill_(7)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", list_criteria())
def test_scores_are_measured_also_where_gradients_are_off(
    name: str, conv_net: Net, two_batches: list[Batch], scorer: Scorer
) -> None:
    expected = everything(name, conv_net(), two_batches, scorer)
    with torch.no_grad():
        found = everything(name, conv_net(), two_batches, scorer)
        assert not torch.is_grad_enabled()
    # Dropout too: both calls find the global RNG in the same state, for each leaves it as it was.
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_an_exception_restores_the_model_too(conv_net: Net) -> None:
    model = conv_net()
    model.eval()

    def interrupted() -> None:
        with untouched(model):
            model.train()
            model.get_buffer("norm.running_mean").fill_(9)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert not model.training
    assert not model.get_buffer("norm.running_mean").any()


@pytest.mark.parametrize("sizes", [(12,), (5, 7), (1,) * 12, (10, 1, 1)])
def test_the_mean_gradient_is_that_of_the_mean_loss_however_images_are_grouped(
    sizes: tuple[int, ...], chain: Net
) -> None:
    model = chain(6, 5, 4, bias=True).double()
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(12, 6, generator=rng, dtype=torch.float64)
    y = torch.randint(0, 4, (12,), generator=rng)
    weights = prunable(model)
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), list(weights.values()))
    batches = list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))
    found = mean_gradient(model, batches, F.cross_entropy)
    assert list(found) == list(weights)
    for value, reference in zip(found.values(), expected, strict=True):
        assert torch.allclose(value, reference, rtol=0, atol=1e-15)


def test_batch_norm_uses_the_statistics_of_the_batch(conv_net: Net, two_batches: list[Batch]) -> None:
    model = conv_net()
    dropout = model.get_submodule("dropout")
    assert isinstance(dropout, nn.Dropout)
    dropout.p = 0.0
    model.eval()
    found = mean_gradient(model, two_batches[:1], F.cross_entropy)
    reference = copy.deepcopy(model).train()
    F.cross_entropy(reference(two_batches[0][0]), two_batches[0][1]).backward()
    assert reference.get_buffer("norm.running_mean").any()
    for name, weight in prunable(reference).items():
        assert weight.grad is not None
        assert torch.equal(found[name], weight.grad)
    assert not model.get_buffer("norm.running_mean").any()
    assert int(model.get_buffer("norm.num_batches_tracked")) == 0


def test_an_unused_layer_has_a_zero_gradient() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    found = mean_gradient(Idle(), [(torch.ones(1, 2), torch.tensor([0]))], F.cross_entropy)
    assert found["used.weight"].any()
    assert not found["idle.weight"].any()


def test_no_batches_and_a_loss_that_is_not_finite_are_refused(chain: Net) -> None:
    model = chain(2, 2)
    with pytest.raises(AutoSparseError, match="no batch of images was given"):
        mean_gradient(model, [], F.cross_entropy)
    good, bad = torch.ones(3, 2), torch.full((2, 2), math.nan)
    batches = [(good, torch.zeros(3, dtype=torch.int64)), (bad, torch.zeros(2, dtype=torch.int64))]
    with pytest.raises(AutoSparseError, match=r"the loss is nan .* images 3\.\.5"):
        mean_gradient(model, batches, F.cross_entropy)


@pytest.mark.parametrize(
    ("name", "missing"), [("snip", "batches"), ("autos", "batches"), ("random", "generator"), ("autos", "scorer")]
)
def test_a_missing_ingredient_is_named(
    name: str, missing: str, conv_net: Net, two_batches: list[Batch], scorer: Scorer
) -> None:
    given = {
        "batches": two_batches, "loss_fn": F.cross_entropy, "generator": generator(0), "scorer": scorer, "keep": 10,
    }  # fmt: skip
    given[missing] = None
    with pytest.raises(AutoSparseError, match=f"criterion '{name}' needs {missing}, which was not given"):
        score(name, conv_net(), **given)  # type: ignore[arg-type]


def test_an_unknown_criterion_suggests_the_nearest(conv_net: Net) -> None:
    with pytest.raises(UnknownNameError, match="unknown criterion 'magnitud': did you mean magnitude"):
        score("magnitud", conv_net())


def test_registration_refuses_a_taken_name_and_unknown_ingredients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA._entries))  # what is added here is forgotten afterwards

    @criterion("sign", paper="nobody 2000")
    def sign(model: nn.Module) -> dict[str, Tensor]:
        """The sign of each weight."""
        return {name: weight.sign() for name, weight in prunable(model).items()}

    assert CRITERIA.get("sign").needs == {"model"}
    assert CRITERIA.get("sign").summary == "The sign of each weight."
    found = score("sign", nn.Linear(2, 2))["weight"]
    assert not found.requires_grad
    with pytest.raises(ValueError, match="criterion 'sign' is already defined"):
        criterion("sign")(sign)
    with pytest.raises(ValueError, match=r"asks for \['hessian'\]"):
        criterion("curved")(lambda model, hessian: {})
    with pytest.raises(ValueError, match=r"options without a default: \['power'\]"):

        @criterion("curved")
        def curved(model: nn.Module, *, power: float) -> dict[str, Tensor]:
            return {}

    assert "curved" not in CRITERIA


@pytest.fixture
def powered(monkeypatch: pytest.MonkeyPatch) -> str:
    """A criterion with an option."""
    monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA._entries))

    @criterion("powered", paper="nobody 2000")
    def powered(model: nn.Module, *, power: float = 2.0) -> dict[str, Tensor]:
        """|w| to a power."""
        return {name: weight.abs() ** power for name, weight in prunable(model).items()}

    return "powered"


def test_options_have_defaults_and_can_be_set(powered: str) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, -3)
    assert score(powered, model)["weight"].item() == 9
    assert score(powered, model, options={"power": 3})["weight"].item() == 27  # an integer passes for a float


def test_wrong_options_are_named(powered: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown option of powered 'pover': did you mean power"):
        score(powered, nn.Linear(1, 1), options={"pover": 1})
    for value in ("two", None, True):
        with pytest.raises(AutoSparseError, match=r"option power of powered is .*: give a value such as 2\.0"):
            score(powered, nn.Linear(1, 1), options={"power": value})


def test_ingredients_that_follow_from_others_are_derived(monkeypatch: pytest.MonkeyPatch, conv_net: Net) -> None:
    monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA._entries))
    seen: dict[str, object] = {}

    @criterion("curious", paper="nobody 2000")
    def curious(
        model: nn.Module,
        example: Tensor,
        dense: dict[str, Tensor],
        masks: Masks,
        gradients: dict[str, Tensor],
        counts: dict[str, int] | None,
    ) -> dict[str, Tensor]:
        """Everything."""
        seen.update(example=example, dense=dense, masks=masks, gradients=gradients, counts=counts)
        return dense

    model, x = conv_net(), torch.randn(4, 3, 8, 8)
    batches = iter([(x[:3], torch.tensor([0, 1, 2])), (x[3:], torch.tensor([3]))])  # may be read once only
    score("curious", model, batches=batches, loss_fn=F.cross_entropy)
    assert torch.equal(seen["example"], x[:1])  # type: ignore[arg-type]
    assert seen["counts"] is None
    assert seen["masks"].density == 1  # type: ignore[attr-defined]
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in seen["dense"].items())  # type: ignore[attr-defined]
    assert seen["gradients"].keys() == prunable(model).keys()  # type: ignore[attr-defined]
