"""The Early Pruning Indicator on hand-written widths: its values, when it fires, and histories that are continued."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scripted_looks import Scripted, moment

from autosparse.errors import AutoSparseError, FileFormatError, UnknownNameError
from autosparse.triggers.epi import ArchitectureStable, EpiHistory, similarity

Counts = Mapping[str, int]


def fired(settings: ArchitectureStable, widths: Sequence[int]) -> int | None:
    """The epoch (from 1) at which a network of one group fires that pruning would leave ``widths``."""
    history = EpiHistory(settings)
    return next((epoch for epoch, n in enumerate(widths, start=1) if history.update({"a": n})), None)


# Psi ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "psi"),
    [
        ({"x": 4, "y": 6}, {"x": 2, "y": 6}, 5 / 6),  # 1 - (2/6 + 0) / 2
        ({"x": 4, "y": 1}, {"x": 2, "y": 3}, 7 / 12),  # 1 - (2/6 + 2/4) / 2
        ({"x": 7, "y": 9}, {"y": 9, "x": 7}, 1.0),
        ({"x": 0, "y": 5}, {"x": 0, "y": 5}, 1.0),  # 0 / 0 is no change
        ({"x": 0, "y": 5}, {"x": 3, "y": 5}, 0.5),  # all of a group's channels came back
        ({"x": 0}, {"x": 9}, 0.0),
    ],
    ids=["one group", "both groups", "equal", "both empty", "one empty", "nothing alike"],
)
def test_similarity_by_hand(a: Counts, b: Counts, psi: float) -> None:
    assert similarity(a, b) == pytest.approx(psi, abs=1e-15)
    assert similarity(b, a) == similarity(a, b)


def test_similarity_weighs_groups_alike_whatever_their_widths() -> None:
    wide, narrow = {"x": 400, "y": 4}, {"x": 200, "y": 4}
    assert similarity(wide, narrow) == similarity({"x": 4, "y": 400}, {"x": 2, "y": 400})


@pytest.mark.parametrize(("a", "b"), [({}, {}), ({"x": 1}, {"y": 1}), ({"x": 1}, {"x": 1, "y": 1})])
def test_only_the_same_groups_can_be_compared(a: Counts, b: Counts) -> None:
    with pytest.raises(AutoSparseError, match=f"architectures of {len(a)} and {len(b)} channel groups"):
        similarity(a, b)


# EPI_t --------------------------------------------------------------------------------------------------------------


def test_values_by_hand() -> None:
    history = EpiHistory(ArchitectureStable(window=2))
    for n in (4, 4, 2, 2, 2):
        history.update({"a": n})
    # Psi(2, 4) = 2/3. EPI_3 = (2/3 + 2/3) / 2, EPI_4 = (1 + 2/3) / 2, EPI_5 = (1 + 1) / 2
    assert history.values == pytest.approx([None, None, 2 / 3, 5 / 6, 1.0])


# With a window of 1, EPI_t = Psi(t, t-1): None, 18/19, 1, 16/17, 1, 1.
WIDTHS = (10, 9, 9, 8, 8, 8)


@pytest.mark.parametrize(
    ("options", "epoch"),
    [
        ({"lookback": 0}, 2),  # the threshold alone
        ({"lookback": 0, "threshold": 0.95}, 3),
        ({"lookback": 1}, 3),  # the second value is no less than the first
        ({"lookback": 2}, 5),  # the third one is less
        ({"lookback": 3}, 5),
        ({"lookback": 4}, 6),  # the fifth value is the first with four before it
        ({"lookback": 2, "full_lookback": False}, 2),  # the first value, compared with none
        ({"lookback": 2, "full_lookback": False, "threshold": 0.95}, 3),
        ({"lookback": 1, "strict": True}, 3),
        ({"lookback": 2, "strict": True}, None),  # the value two before the fifth epoch's is 1, too
        ({"lookback": 5}, None),
    ],
    ids=str,
)
def test_it_fires_at_the_first_high_value_that_is_no_less_than_those_before(
    options: dict[str, Any], epoch: int | None
) -> None:
    assert fired(ArchitectureStable(**{"threshold": 0.94, "window": 1, **options}), WIDTHS) == epoch


def test_the_threshold_itself_is_enough() -> None:
    settings = ArchitectureStable(threshold=1.0, window=1, lookback=0)
    assert fired(settings, [10, 9, 9]) == 3
    assert fired(ArchitectureStable(threshold=0.5, window=1, lookback=0), [9, 3]) == 2  # 1 - 6/12


@pytest.mark.parametrize(("window", "lookback"), [(1, 0), (1, 5), (5, 5), (7, 3)])
def test_what_never_changes_is_pruned_as_early_as_it_can_be_judged(window: int, lookback: int) -> None:
    settings = ArchitectureStable(window=window, lookback=lookback)
    assert fired(settings, [8] * 40) == settings.earliest == 1 + window + lookback
    early = ArchitectureStable(window=window, lookback=lookback, full_lookback=False)
    assert fired(early, [8] * 40) == early.earliest == 1 + window
    if lookback:  # all values are 1
        assert fired(ArchitectureStable(window=window, lookback=lookback, strict=True), [8] * 40) is None


@pytest.mark.parametrize("seed", range(20))
def test_moment_and_values_are_those_of_exact_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    settings = ArchitectureStable(threshold=0.93, window=int(rng.integers(1, 5)), lookback=int(rng.integers(0, 5)))
    widths = [{name: int(n) for name, n in zip("abc", rng.integers(20, 30, 3), strict=True)} for _ in range(60)]

    def psi(a: Counts, b: Counts) -> Fraction:
        return 1 - sum((Fraction(abs(a[g] - b[g]), a[g] + b[g]) for g in "abc"), Fraction(0)) / 3

    r = settings.window
    epi = {t: sum(psi(widths[t], widths[t - j]) for j in range(1, r + 1)) / Fraction(r) for t in range(r, 60)}
    first = next(
        t
        for t in range(r + settings.lookback, 60)
        if epi[t] >= Fraction(93, 100) and all(epi[t] >= epi[t - j] for j in range(1, settings.lookback + 1))
    )
    history = EpiHistory(settings)
    moments = [t for t, counts in enumerate(widths) if history.update(counts)]
    assert moments[0] == first
    assert history.values == pytest.approx([None] * r + [float(value) for value in epi.values()], abs=1e-14)


def test_other_groups_than_before_are_refused_from_the_second_epoch_on() -> None:
    history = EpiHistory(ArchitectureStable())
    history.update({"a": 3})
    with pytest.raises(AutoSparseError, match="architectures of 2 and 1 channel groups"):
        history.update({"a": 3, "b": 4})


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, r"threshold is 0.0: give a number in \(0, 1\]"),
        ({"threshold": 1.1}, "threshold is 1.1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"window": 0}, "window is 0: give 1 epoch or more"),
        ({"lookback": -1}, "lookback is -1: give 0 epochs or more"),
        ({"cap": 0}, "cap is 0: give a whole number of epochs from 1 on"),
        ({"cap": 2.5}, r"cap is 2\.5"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoSparseError, match=message):
        ArchitectureStable(**options)


def test_thresholds_are_those_of_the_importance() -> None:
    assert ArchitectureStable().threshold == 0.983
    assert {name: ArchitectureStable.for_importance(name).threshold for name in ("magnitude", "l1", "l2")} == {
        "magnitude": 0.983,
        "l1": 0.983,
        "l2": 0.983,
    }
    assert ArchitectureStable.for_importance("gradient", window=3) == ArchitectureStable(threshold=0.944, window=3)
    assert ArchitectureStable.for_importance("taylor").threshold == 0.944
    for name in ("taylor", "synflow"):
        assert ArchitectureStable.for_importance(name, threshold=0.9).threshold == 0.9
    with pytest.raises(UnknownNameError, match=r"'synflow'.*or give a threshold of your own"):
        ArchitectureStable.for_importance("synflow")


# In a run -----------------------------------------------------------------------------------------------------------


def looks(widths: Sequence[int]) -> list[Scripted]:
    return [Scripted(counts={"a": n}) for n in widths]


def test_in_a_run() -> None:
    settings = ArchitectureStable(threshold=0.94, window=1, lookback=2)
    trigger = settings.watch(epochs=20, density=0.5)
    assert trigger.reference_epoch is None
    assert moment(trigger, looks(WIDTHS)) == 5
    facts = trigger.facts()
    assert (facts["pruned_at_epoch"], facts["settled"], facts["threshold"]) == (5, True, 0.94)
    assert facts["values"] == pytest.approx([None, 18 / 19, 1, 16 / 17, 1])
    assert facts["counts"] == {"a": [10, 9, 9, 8, 8]}


def test_without_a_cap_a_run_that_never_fires_is_refused_with_its_values() -> None:
    trigger = ArchitectureStable(threshold=0.99, window=1, lookback=2).watch(epochs=5, density=0.5)
    with pytest.raises(AutoSparseError) as caught:
        moment(trigger, looks([10, 8, 6, 4]))
    assert str(caught.value) == (
        "Early Pruning Indicator has to be at least 0.99 and no less than its 2 values before, and never was up to "
        "epoch 4, the last one to prune after (its last values were 0.8889, 0.8571, 0.8): give a cap, the epoch at "
        "which to prune at the latest, or train longer"
    )


def test_runs_too_short_to_judge_are_refused_before_they_begin() -> None:
    with pytest.raises(AutoSparseError, match=r"prunes after epoch 11 at the earliest, and a training of 11 epochs"):
        ArchitectureStable().watch(epochs=11, density=0.5)
    assert moment(ArchitectureStable().watch(epochs=12, density=0.5), looks([8] * 11)) == 11
    trigger = ArchitectureStable(cap=3).watch(epochs=5, density=0.5)
    assert moment(trigger, looks([8] * 4)) == 3
    assert trigger.facts()["settled"] is False


# State --------------------------------------------------------------------------------------------------------------


def states() -> list[dict[str, Any]]:
    """After no epoch, one, two, ... of a history of numpy's integers, each through JSON."""
    history = EpiHistory(ArchitectureStable(window=2))
    found = [json.loads(json.dumps(history.as_dict()))]
    for n in WIDTHS:
        history.update({"a": np.int64(n), "b": 2 * np.int64(n)})  # type: ignore[dict-item]
        found.append(json.loads(json.dumps(history.as_dict())))
    return found


def test_widths_are_written_by_group() -> None:
    assert states()[2] == {"counts": {"a": [10, 9], "b": [20, 18]}, "values": [None, None]}


@pytest.mark.parametrize("cut", range(len(WIDTHS)))
def test_a_restored_history_goes_on_as_the_whole_one(cut: int) -> None:
    whole, continued = (EpiHistory(ArchitectureStable(threshold=0.9, window=2, lookback=1)) for _ in range(2))
    expected = [whole.update({"a": n, "b": 2 * n}) for n in WIDTHS]
    continued.restore(states()[cut])
    assert [continued.update({"b": 2 * n, "a": n}) for n in WIDTHS[cut:]] == expected[cut:]
    assert continued.as_dict() == whole.as_dict()
    assert True in expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": None}, "'values' is no list"),
        ({"values": [None, None, 1.0]}, "'a' has no width for each of 3 epochs"),
        ({"values": [None, None, 1.5, 1.0]}, "'values' contains 1.5"),
        ({"values": [None, None, float("nan"), 1.0]}, "'values' contains nan"),
        ({"values": [None, None, None, 1.0]}, "'values' do not begin after 2 epochs"),
        ({"values": []}, "'counts' are not those of channel groups"),
        ({"counts": {}}, "'counts' are not those of channel groups"),
        ({"counts": [10]}, "'counts' are not those of channel groups"),
        ({"counts": {"a": 10}}, "'a' is no list"),
        ({"counts": {"a": [10, 9, 9, -8]}}, "'a' contains -8"),
        ({"counts": {"a": [10, 9, 9, True]}}, "'a' contains True"),
        ({"counts": {"a": [10, 9, 9, 8.5]}}, "'a' has no width for each of 4 epochs"),
        ({"counts": {"a": [10, 9, 9, None]}}, "'a' contains None"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_damaged_state_is_refused(change: dict[str, Any], message: str) -> None:
    history = EpiHistory(ArchitectureStable(window=2))
    with pytest.raises(FileFormatError, match=f"history in the checkpoint is damaged: {message}; start anew"):
        history.restore({**states()[4], **change})
    assert history.values == []
