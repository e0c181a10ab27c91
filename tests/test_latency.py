"""A budget of latency: the search on clocks that are made up, and a real network on the real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn

from autosparse import plan_shrink
from autosparse.channels.request import ShrinkRequest
from autosparse.errors import AutoSparseError, BudgetError, UnknownNameError
from autosparse.latency import Trial, search
from autosparse.measuring import Spread, latency_share
from autosparse.models import seeded_model

WIDTH = 64


def widths_at(share: float) -> Mapping[str, int]:
    return {"a": max(1, int(WIDTH * share + 1e-9))}


class Clock:
    """Latency as a function of the width, with a count of how often it was asked."""

    def __init__(self, latency: Callable[[float], float]) -> None:
        self.latency = latency
        self.asked: list[int] = []

    def __call__(self, widths: Mapping[str, int]) -> Spread:
        self.asked.append(widths["a"])
        value = self.latency(widths["a"] / WIDTH)
        return Spread(value, value, value, 5)

    def trial(self, share: float) -> Trial:
        return Trial(share, widths_at(share), self(widths_at(share)))


@pytest.mark.parametrize(
    "latency",
    [lambda s: s, lambda s: 0.2 + 0.8 * s, lambda s: s**2, lambda s: s**0.25, lambda s: 0.45 if s < 0.7 else 1.0],
    ids=["linear", "overhead", "convex", "concave", "a step"],
)
@pytest.mark.parametrize("target", [0.5, 0.75, 0.9])
def test_the_widest_network_within_the_budget_is_found(latency: Callable[[float], float], target: float) -> None:
    clock = Clock(latency)
    found = search(target, clock.trial(1 / WIDTH), clock.trial(1.0), widths_at, clock)
    width = found.widths["a"]
    assert found.latency.median == latency(width / WIDTH) <= target
    assert clock.asked[-1] == width or width == 1  # measured again
    widest = max(w for w in range(1, WIDTH + 1) if latency(w / WIDTH) <= target)
    assert latency(width / WIDTH) >= 0.98 * target or width >= widest - 3
    assert len(clock.asked) <= 13


def test_a_network_that_is_fast_enough_as_it_is_stays() -> None:
    clock = Clock(lambda s: 0.5 * s)
    assert search(0.5, clock.trial(0.1), clock.trial(1.0), widths_at, clock).share == 1.0


def test_what_looked_fast_by_chance_is_not_taken() -> None:
    """The clock stops once, when a network of nearly full width is measured for the first time."""
    clock = Clock(lambda s: s)

    def chancy(widths: Mapping[str, int]) -> Spread:
        lucky = widths["a"] > 48 and clock.asked.count(widths["a"]) == 0
        found = clock(widths)
        return Spread(0.7, 0.7, 0.7, 5) if lucky else found

    found = search(0.8, clock.trial(1 / WIDTH), clock.trial(1.0), widths_at, chancy)
    assert found.latency.median == found.widths["a"] / WIDTH <= 0.8 * 1.02


def test_latency_that_no_width_reaches_is_refused() -> None:
    clock = Clock(lambda s: 0.6 + 0.4 * s)
    with pytest.raises(BudgetError, match=r"latency of 0.5 cannot be reached: .* 0\.606 of the dense"):
        search(0.5, clock.trial(1 / WIDTH), clock.trial(1.0), widths_at, clock)


def test_a_network_is_shrunk_to_a_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is taken as FLOPs are counted: what the search does with it is exact, and no machine is too busy for it."""
    model = seeded_model("vgg16", seed=0, num_classes=10, in_channels=3, width=0.25).eval()
    example = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def flops(small: nn.Module, dense: nn.Module, *_: object, **__: object) -> Spread:
        from torch.utils.flop_counter import FlopCounterMode

        counts = []
        for network in (small, dense):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network.eval()(example)
            counts.append(counter.get_total_flops())
        share = counts[0] / counts[1]
        return Spread(share, share, share, 5)

    monkeypatch.setattr("autosparse.shrinking.latency_share", flops)
    plan = plan_shrink(model, example=example, method="l1", latency=0.5)
    assert 0.45 < plan.summary.reached["latency"] <= 0.5
    assert plan.summary.reached["latency"] == pytest.approx(plan.summary.reached["flops"])
    assert plan.summary.asked == {"latency": 0.5}
    assert "measured at batch size 128" in plan.summary.note
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    within = plan_shrink(model, example=example, method="l1", latency=0.9, flops=0.3)
    assert within.summary.reached["flops"] <= 0.3
    by_params = plan_shrink(model, example=example, method="uniform-width", latency=0.5, latency_by="params")
    assert 0.4 < by_params.summary.reached["latency"] <= 0.5


def test_latency_is_measured_in_turn() -> None:
    dense = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1))
    small = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1))
    found = latency_share(small, dense, (3, 32, 32), batch=4, seconds=0.2)
    assert found.count >= 3
    assert 0 < found.low <= found.median <= found.high


@pytest.mark.parametrize(
    ("changes", "error", "fact"),
    [
        ({"latency": 1.5}, BudgetError, "latency of 1.5 is outside"),
        ({"latency": 0.5, "latency_by": "layers"}, UnknownNameError, "layers"),
        ({"latency": 0.5, "latency_batch": 0}, AutoSparseError, "batch size of latency is 0"),
        ({"latency": 0.5, "method": "epi"}, AutoSparseError, "at initialisation only"),
        ({"latency": 0.5, "method": "preconfig"}, AutoSparseError, "may widen"),
    ],
)
def test_requests_for_latency_that_cannot_be(changes: dict[str, object], error: type, fact: str) -> None:
    with pytest.raises(error, match=fact):
        ShrinkRequest(**{"method": "l1", **changes}).check(at_init=False)  # type: ignore[arg-type]
