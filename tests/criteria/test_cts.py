"""Concrete Ticket Search: its formulas by hand, its gradients by finite differences, a problem with a known answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from autosparse.budget import select
from autosparse.criteria import concrete, score
from autosparse.criteria.concrete import ExpectedCount, GradBalance, binary_concrete, binary_concrete_slope
from autosparse.criteria.cts import TASKS, reverse_kl
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.features import feature_set
from autosparse.layers import layers_of, prunable
from autosparse.masks import Masks
from autosparse.scorer.network import Scorer
from autosparse.scorer.search import scorer_of

F64 = torch.float64
NAMES = feature_set("state").names
Batch = tuple[Tensor, Tensor]


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def small_net(dropout: float = 0.0) -> nn.Sequential:
    """6 + 12 prunable weights, smooth, with batch norm between them."""
    model = nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Tanh(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
        model.get_buffer("1.running_mean").normal_(generator=generator)
    return model


def images(*sizes: int) -> list[Batch]:
    """The same images for every grouping of the same total."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(sizes), 1, 4, generator=generator, dtype=F64)
    y = torch.randint(0, 3, (sum(sizes),), generator=generator)
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def cts(model: nn.Module, batches: list[Batch], keep: int, seed: int = 0, **options: Any) -> dict[str, Tensor]:
    masks = options.pop("masks", None)
    return score(
        "cts",
        model,
        batches=batches,
        loss_fn=F.cross_entropy,
        keep=keep,
        masks=masks,
        generator=torch.Generator().manual_seed(seed),
        options=options,
    )


def with_scorer(model: nn.Module, batches: list[Batch], keep: int, scorer: Scorer, **options: Any) -> dict[str, Tensor]:
    return score(
        "autos-cts", model, batches=batches, loss_fn=F.cross_entropy, keep=keep, scorer=scorer,
        generator=torch.Generator().manual_seed(0), options=options,
    )  # fmt: skip


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


def test_the_concrete_sample_by_hand() -> None:
    # logit(1/2) = 0, logit(4/5) = log 4, logit(2/3) = log 2.
    s, u = vector(0, 0, math.log(2), -math.inf, 3), vector(1 / 2, 4 / 5, 2 / 3, 0.9, 0)
    torch.testing.assert_close(binary_concrete(s, u, 2.0), vector(1 / 2, 2 / 3, 2 / 3, 0, 0))
    # sigmoid(1.5 log 4) = 8 / 9
    torch.testing.assert_close(binary_concrete(s, u, 2 / 3), vector(1 / 2, 8 / 9, 8 / 9, 0, 0))


def test_a_sample_exceeds_one_half_with_the_probability_of_its_logit() -> None:
    u = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    s = torch.full_like(u, math.log(0.02 / 0.98))
    for temperature in (0.1, 2 / 3, 5.0):
        assert int((binary_concrete(s, u, temperature) > 0.5).sum()) == 20


def test_the_slope_of_a_sample_is_its_derivative() -> None:
    s, u = vector(-3, 0, 2).requires_grad_(), vector(0.9, 0.3, 0.4)
    m = binary_concrete(s, u, 2 / 3)
    (expected,) = torch.autograd.grad(m.sum(), s)
    torch.testing.assert_close(binary_concrete_slope(m.detach(), 2 / 3), expected)


def test_the_constraint_by_hand() -> None:
    count = ExpectedCount(0.5)
    s = vector(0, math.log(1 / 3), -math.inf)  # probabilities 1/2, 1/4 and 0
    assert float(count.error(s)) == pytest.approx(50)
    torch.testing.assert_close(count.gradient(s), vector(50, 37.5, 0))


def test_the_multiplier_by_hand() -> None:
    balance = GradBalance(rate=0.01)
    task, constraint = vector(3, 4), vector(0, 2)  # lengths 5 and 2
    assert float(balance.update(task, vector(7)[0], constraint)) == pytest.approx(2.5)
    assert float(balance.update(2 * task, vector(0.1)[0], constraint)) == pytest.approx(0.99 * 2.5 + 0.01 * 5)
    # Too few weights: the target is 0.
    assert float(balance.update(task, vector(-1)[0], constraint)) == pytest.approx(0.99 * (0.99 * 2.5 + 0.01 * 5))
    assert float(GradBalance().update(task, vector(-1)[0], constraint)) == 0
    # All logits saturated: finite.
    assert math.isfinite(float(GradBalance().update(0 * task, vector(1)[0], 0 * constraint)))


def test_the_kl_is_that_of_the_sparse_from_the_dense_network() -> None:
    dense = torch.log(torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=F64))
    output = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=F64)  # probabilities 1/2 and 1/2
    assert float(reverse_kl(output, dense)) == pytest.approx(0.5 * 0.5 * math.log(4 / 3))


class Recorder(torch.optim.Adam):
    """Adam that remembers what it was given."""

    seen: list[tuple[Tensor, Tensor, float]]

    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        (s,) = group["params"]
        self.seen.append((s.clone(), s.grad.clone(), group["lr"]))
        return super().step(closure)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, float]]:
    """Logits, gradient and learning rate of every step."""
    monkeypatch.setattr(Recorder, "seen", [], raising=False)
    monkeypatch.setattr(concrete.torch.optim, "Adam", Recorder)
    return Recorder.seen


def task_value(task: str, model: nn.Module, m: dict[str, Tensor], batch: Batch) -> Tensor:
    """The task term at a mask, from its definition."""
    x, y = batch
    theta = {name: weight.detach().requires_grad_() for name, weight in prunable(model).items()}
    output = functional_call(model, {name: theta[name] * m[name] for name in theta}, (x,))
    if task == "kl":
        q, p = output.softmax(1), model(x).softmax(1)
        return 100 * (q * (q.log() - p.log())).sum(1).mean().detach()
    loss = F.cross_entropy(output, y)
    if task == "ce":
        return 100 * loss.detach()
    gradient = torch.autograd.grad(loss, list(theta.values()))
    return -torch.cat([g.flatten() for g in gradient]).norm()


def slopes(function: Callable[[Tensor], Tensor], s: Tensor, h: float = 1e-6) -> Tensor:
    """Central differences."""
    steps = h * torch.eye(s.numel(), dtype=F64)
    return torch.stack([(function(s + step) - function(s - step)) / (2 * h) for step in steps])


@pytest.mark.parametrize("batch_statistics", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_every_step_descends_on_the_whole_objective(
    task: str, batch_statistics: bool, recorded: list[tuple[Tensor, Tensor, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    u = torch.rand(18, generator=torch.Generator().manual_seed(5), dtype=F64)
    monkeypatch.setattr(concrete, "binary_concrete", lambda s, _, temperature: binary_concrete(s, u, temperature))
    model, batches, keep = small_net(), images(6), 9
    options: dict[str, Any] = {"task": task, "batch_statistics": batch_statistics, "steps": 2, "warm_steps": 0}
    cts(model, batches, keep, temperature=0.8, density_slack=0.5, **options)

    model.train(batch_statistics)
    layers = layers_of(model)

    def objective(s: Tensor) -> Tensor:
        parts = torch.sigmoid((s + u.log() - (1 - u).log()) / 0.8).split([layer.size for layer in layers])
        m = {layer.name: part.reshape(layer.shape) for layer, part in zip(layers, parts, strict=True)}
        return task_value(task, model, m, batches[0])

    multiplier = None
    assert len(recorded) == 2
    for s, gradient, _ in recorded:
        by_task = slopes(objective, s)
        by_count = slopes(lambda s: 100 * (s.sigmoid().sum() / (0.5 * keep) - 1), s)
        target = float(by_task.norm() / by_count.norm())  # the expected count, 9, is above 4.5
        multiplier = target if multiplier is None else 0.99 * multiplier + 0.01 * target
        torch.testing.assert_close(gradient, by_task + multiplier * by_count, rtol=1e-6, atol=1e-7)
    assert not torch.equal(recorded[0][0], recorded[1][0])


def test_the_search_starts_at_the_density_and_slows_down_near_its_end(
    recorded: list[tuple[Tensor, Tensor, float]],
) -> None:
    cts(small_net(), images(4), 6, steps=25, warm_steps=0, lr=0.2)
    torch.testing.assert_close(recorded[0][0], torch.full((18,), math.log(6 / 12), dtype=F64))
    assert [lr for _, _, lr in recorded] == [0.2] * 22 + [0.2 / 10] * 3


def with_cancelling_inputs() -> tuple[nn.Module, list[Batch], Tensor]:
    """A linear classifier, images, and its best mask of half the density.

    Inputs 4 and 5 are equal, with opposite weights three times as large as the others', and so are 6 and 7: without
    these four the output is the same. Each of their weights is salient by itself.
    """
    generator = torch.Generator().manual_seed(3)
    linear = nn.Linear(8, 3, bias=False).double()
    with torch.no_grad():
        linear.weight.normal_(generator=generator).sign_()
        linear.weight[:, 4:] *= 3
        linear.weight[:, 5], linear.weight[:, 7] = -linear.weight[:, 4], -linear.weight[:, 6]
    # A fourth class with output 0: probabilities would not change if all outputs rose together.
    model = nn.Sequential(linear, nn.ZeroPad1d((0, 1)))
    x = torch.randn(64, 8, generator=generator, dtype=F64)
    x[:, 5], x[:, 7] = x[:, 4], x[:, 6]
    best = torch.zeros(3, 8, dtype=torch.bool)
    best[:, :4] = True
    return model, [(x, model(x).argmax(1))], best


def test_the_search_finds_the_mask_that_keeps_the_function() -> None:
    model, batches, best = with_cancelling_inputs()
    found = {name: score(name, model, batches=batches, loss_fn=F.cross_entropy) for name in ("magnitude", "snip")}
    found["random"] = score("random", model, generator=torch.Generator().manual_seed(0))
    # So few weights saturate before the multiplier settles, unless the logits move slowly.
    found["cts"] = cts(model, batches, 12, steps=1600, lr=0.02, warm_steps=0)
    agree = {name: int((select(s, layers_of(model), 12)["0.weight"] & best).sum()) for name, s in found.items()}
    assert agree["cts"] == 12
    assert agree["magnitude"] == 0
    assert max(agree["snip"], agree["random"]) < 10


@pytest.mark.parametrize("slack", [1.1, 0.8])
def test_the_expected_count_settles_at_the_constraint(slack: float, chain: Callable[..., nn.Sequential]) -> None:
    model = chain(32, 24, 8).double()
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0), dtype=F64)
    scores = cts(model, [(x, model(x).argmax(1))], 96, steps=600, warm_steps=0, density_slack=slack)
    assert float(flat(scores).sigmoid().sum()) == pytest.approx(slack * 96, rel=0.1)


def test_a_seed_fixes_the_search_whatever_the_global_generator() -> None:
    model = small_net(dropout=0.5)
    run: dict[str, Any] = {"keep": 6, "steps": 5, "warm_steps": 3}
    torch.manual_seed(1)
    first = cts(model, images(8), **run)
    torch.manual_seed(2)
    again, other = cts(model, images(8), **run), cts(model, images(8), seed=1, **run)
    assert torch.equal(flat(first), flat(again))
    assert not torch.equal(flat(first), flat(other))


def test_warming_up_changes_the_search_and_not_the_model() -> None:
    model = small_net(dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cold = cts(model, images(8), 6, steps=5, warm_steps=0)
    warm = cts(model, images(8), 6, steps=5, warm_steps=3)
    assert not torch.equal(flat(cold), flat(warm))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_a_step_sums_over_small_batches_and_cuts_large_ones(task: str) -> None:
    options: dict[str, Any] = {"task": task, "batch_statistics": False, "steps": 4, "step_images": 6, "warm_steps": 0}
    expected = flat(cts(small_net(), images(6, 6), 6, **options))
    for sizes in ((12,), (2, 4, 3, 3), (1,) * 12):
        torch.testing.assert_close(flat(cts(small_net(), images(*sizes), 6, **options)), expected)


def test_removed_weights_stay_removed_and_rank_last() -> None:
    model = small_net()
    masks = Masks.dense(model)
    masks["5.weight"][1] = False
    masks.apply(model)
    scores = cts(model, images(8), 7, steps=30, warm_steps=5, masks=masks)
    removed, left = flat(scores)[~flat(dict(masks))], flat(scores)[flat(dict(masks))]
    assert bool(flat(scores).isfinite().all())
    assert float(removed.max()) < float(left.min())
    assert left.unique().numel() == 14
    # The density is that among the 14 weights that are left.
    start = cts(model, images(8), 7, steps=1, lr=1e-12, warm_steps=0, masks=masks)
    torch.testing.assert_close(flat(start)[flat(dict(masks))], torch.zeros(14, dtype=F64))


def test_nothing_is_searched_where_everything_is_kept() -> None:
    model = small_net()
    masks = Masks.dense(model)
    masks["0.weight"][0] = False
    assert torch.equal(flat(cts(model, images(8), 15, masks=masks)), flat(dict(masks)).double())


def unusable() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"steps": 0}, "cts has steps 0: give 1 or more"
    yield {"step_images": 0}, "cts has step_images 0: give 1 or more"
    yield {"warm_steps": -1}, "cts has warm_steps -1: give 0 or more"
    yield {"lr": 0.0}, "cts has lr 0.0: give a positive number"
    yield {"temperature": -1.0}, "cts has temperature -1.0: give a positive number"
    yield {"density_slack": math.nan}, "cts has density_slack nan: give a positive number"


@pytest.mark.parametrize(("options", "message"), list(unusable()), ids=lambda value: str(value)[:20])
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoSparseError, match=message):
        cts(small_net(), images(8), 6, **options)


def test_an_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown task of cts 'grad-norm': did you mean gradnorm"):
        cts(small_net(), images(8), 6, task="grad-norm")


def test_a_loss_that_is_not_finite_is_refused() -> None:
    model = small_net()
    with torch.no_grad():
        model.get_parameter("0.weight")[0, 0, 0] = math.inf
    with pytest.raises(AutoSparseError, match=r"cts: the loss is nan on images 0\.\.7"):
        cts(model, images(8), 6, steps=3)


def test_no_images_are_refused() -> None:
    with pytest.raises(AutoSparseError, match="no batch of images was given"):
        cts(small_net(), [], 6)


# from the odds of a scorer -------------------------------------------------------------------------------------------


def test_without_trust_in_the_scorer_the_search_is_that_of_cts() -> None:
    scorer = scorer_of([1.0] * len(NAMES), "state")
    plain = cts(small_net(), images(8, 8), 6, steps=20, warm_steps=3)
    found = with_scorer(small_net(), images(8, 8), 6, scorer, trust=0.0, steps=20, warm_steps=3)
    assert torch.equal(flat(found), flat(plain))


def test_the_search_starts_at_the_odds_of_the_scorer_and_the_count_that_is_asked_for() -> None:
    slopes = [1.2 if name == "log|z|" else 0.0 for name in NAMES]
    by_magnitude = scorer_of(slopes, "state")  # logit log|w|, plus a constant
    model = small_net()
    found = flat(with_scorer(model, images(8), 6, by_magnitude, trust=2.0, steps=1, lr=1e-9, warm_steps=0))
    expected = 2 * flat({**prunable(model)}).detach().abs().log()
    assert torch.allclose(found - found[0], expected - expected[0], atol=1e-4)
    assert float(found.sigmoid().sum()) == pytest.approx(6, rel=1e-3)


@pytest.mark.parametrize("trust", [-1.0, math.inf, math.nan])
def test_trust_is_a_finite_factor(trust: float) -> None:
    with pytest.raises(AutoSparseError, match=r"autos-cts has trust .*: give 0 or more"):
        with_scorer(small_net(), images(8), 6, scorer_of([0.0] * len(NAMES), "state"), trust=trust)
