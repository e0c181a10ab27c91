"""Early-Bird tickets on hand-written masks: distances, the queue, and histories that are continued."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scripted_looks import Scripted, moment

from autosparse.errors import AutoSparseError, FileFormatError
from autosparse.triggers.early_bird import TicketHistory, TicketStable, hamming

Ticket = dict[str, np.ndarray]


def ticket(text: str) -> Ticket:
    """``"110 01"``: groups a and b of three and two channels, 1 for those that stay."""
    return {name: np.array([c == "1" for c in part]) for name, part in zip("abc", text.split(), strict=False)}


def fired(tickets: Sequence[str], settings: TicketStable | None = None) -> int | None:
    history = TicketHistory(settings or TicketStable())
    return next((epoch for epoch, text in enumerate(tickets, start=1) if history.update(ticket(text))), None)


ALL, ONE, OTHER, TWO, FAR = "11111 11111", "01111 11111", "11111 11110", "00111 11111", "00000 11111"


def test_distances_by_hand() -> None:
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert hamming(a, b) == 0.5
    assert hamming(a, a) == 0
    assert hamming(a, ~a) == 1


def test_values_are_the_largest_distance_of_the_newest_to_the_four_before() -> None:
    history = TicketHistory(TicketStable())
    for text in (ALL, FAR, ONE, ALL, TWO, ALL, FAR):
        history.update(ticket(text))
    # the fifth: .2 from ALL, .3 from FAR, .1 from ONE; the sixth: .5 from FAR; the seventh: .5 from ALL
    assert history.values == [None] * 4 + [0.3, 0.5, 0.5]


def test_a_tenth_of_the_channels_may_differ() -> None:
    assert fired([ALL, ALL, ALL, ALL, ONE]) == 5
    assert fired([ALL, ALL, ALL, ALL, TWO]) is None
    assert fired([ALL, ALL, ALL, ALL, TWO], TicketStable(threshold=0.2)) == 5


def test_groups_are_counted_together() -> None:
    # a quarter of the narrow group, but one of twenty channels
    assert fired([f"{'1' * 16} 1111"] * 4 + [f"{'1' * 16} 0111"], TicketStable(threshold=0.05)) == 5


def test_an_outlier_has_to_leave_the_queue() -> None:
    assert fired([FAR, *[ALL] * 4]) is None
    assert fired([FAR, *[ALL] * 5]) == 6
    assert fired([ALL, ALL, FAR, *[ALL] * 5]) == 8


def test_only_the_newest_is_compared() -> None:
    assert fired([ONE, OTHER, ONE, OTHER, ALL]) == 5  # ONE and OTHER differ by 0.2
    assert fired([ONE, OTHER, ONE, OTHER, ONE]) is None


@pytest.mark.parametrize("tickets", [2, 3, 7])
def test_the_length_of_the_queue_is_the_first_moment(tickets: int) -> None:
    assert fired([ALL] * 10, TicketStable(tickets=tickets)) == tickets


@pytest.mark.parametrize("removed", [1, 3, 10, 35, 59])
def test_tickets_of_one_size_differ_in_twice_what_is_removed_or_left(removed: int) -> None:
    rng = np.random.default_rng(removed)
    history = TicketHistory(TicketStable(threshold=0.0))
    for _ in range(200):
        history.update({"a": rng.permutation(60) >= removed})
    known = [value for value in history.values if value is not None]
    assert max(known) <= 2 * min(removed, 60 - removed) / 60
    assert max(known) > min(removed, 60 - removed) / 60  # and are not far from it when they are random
    if removed == 3:  # a twentieth: any ticket is stable
        assert max(known) <= TicketStable().threshold


@pytest.mark.parametrize("other", ["1111 11111", "11111", "11111 11111 1", ""])
def test_other_groups_than_before_are_refused(other: str) -> None:
    history = TicketHistory(TicketStable())
    history.update(ticket(ALL))
    with pytest.raises(AutoSparseError, match="a ticket has no channels, or other ones than those before"):
        history.update(ticket(other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, r"threshold is -0.1: give a number in \[0, 1\)"),
        ({"threshold": 1.0}, "threshold is 1.0"),
        ({"tickets": 1}, "tickets is 1: give 2 or more to compare"),
        ({"cap": -3}, "cap is -3"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoSparseError, match=message):
        TicketStable(**options)


# In a run -----------------------------------------------------------------------------------------------------------


def test_in_a_run() -> None:
    trigger = TicketStable().watch(epochs=20, density=0.5)
    assert moment(trigger, [Scripted(kept=ticket(text)) for text in (FAR, ALL, ALL, ALL, ALL, ONE)]) == 6
    facts = trigger.facts()
    assert (facts["pruned_at_epoch"], facts["settled"], facts["values"]) == (6, True, [None] * 4 + [0.5, 0.1])
    assert facts["widths"] == {"a": 5, "b": 5}
    assert json.loads(json.dumps(facts)) == facts


def test_the_cap_comes_before_the_queue_is_full() -> None:
    trigger = TicketStable(cap=2).watch(epochs=4, density=0.5)
    assert moment(trigger, [Scripted(kept=ticket(ALL))] * 3) == 2
    assert trigger.facts()["settled"] is False
    with pytest.raises(AutoSparseError, match="TicketStable prunes after epoch 5 at the earliest"):
        TicketStable().watch(epochs=5, density=0.5)


# State --------------------------------------------------------------------------------------------------------------

PATH = (FAR, ALL, TWO, ALL, ONE, ALL, ALL, OTHER)


def state(epochs: int) -> dict[str, Any]:
    history = TicketHistory(TicketStable(tickets=3))
    for text in PATH[:epochs]:
        history.update(ticket(text))
    return json.loads(json.dumps(history.as_dict()))


def test_tickets_are_one_bit_a_channel() -> None:
    # 00000111 11 and 11111111 11, padded to two bytes
    assert state(2) == {"widths": {"a": 5, "b": 5}, "queue": ["07c0", "ffc0"], "values": [None, None]}
    assert len(state(8)["queue"]) == 3


@pytest.mark.parametrize("cut", range(len(PATH)))
def test_a_restored_history_goes_on_as_the_whole_one(cut: int) -> None:
    whole, continued = TicketHistory(TicketStable(tickets=3)), TicketHistory(TicketStable(tickets=3))
    expected = [whole.update(ticket(text)) for text in PATH]
    continued.restore(state(cut))
    reordered = [dict(reversed(ticket(text).items())) for text in PATH[cut:]]  # groups are known by their names
    assert [continued.update(kept) for kept in reordered] == expected[cut:]
    assert continued.values == whole.values
    assert True in expected
    if cut:
        assert continued.as_dict() == whole.as_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": "none"}, "'values' is no list"),
        ({"values": [None, None, 0.1, 7]}, "'values' contains 7"),
        ({"values": [None, 0.1, 0.1, 0.1]}, "'values' do not begin after 2 epochs"),
        ({"widths": 10}, "'widths' are not those of channel groups"),
        ({"widths": {"a": 5, "b": -5}}, "'widths' are not those of channel groups"),
        ({"widths": {"a": 5, "b": 50}}, "a ticket of 16 bits is none of 55 channels"),
        ({"widths": {}}, "a ticket of 16 bits is none of 0 channels"),
        ({"queue": ["ffc0"]}, "'queue' does not hold the last tickets of 4 epochs"),
        ({"queue": None}, "'queue' does not hold"),
        ({"queue": ["ffc0", "ffc0", "none"]}, "a ticket is no hexadecimal text"),
        ({"queue": ["ffc0", "ffc0", 7]}, "a ticket is no hexadecimal text"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_damaged_state_is_refused(change: dict[str, Any], message: str) -> None:
    history = TicketHistory(TicketStable(tickets=3))
    with pytest.raises(FileFormatError, match=f"history in the checkpoint is damaged: {message}"):
        history.restore({**state(4), **change})
    assert history.values == []
