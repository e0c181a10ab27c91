"""How the training loop asks a trigger: order, caps, refusals and checkpoints, whatever is watched."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted_looks import NOTHING, Scripted, moment

from autosparse.errors import AutoSparseError, FileFormatError
from autosparse.triggers.early_bird import TicketStable
from autosparse.triggers.epi import ArchitectureStable
from autosparse.triggers.epochs import AtEpoch, EpochSettings, EpochTrigger
from autosparse.triggers.gradient_flow import GradientFlowSettled

#: After every epoch: widths that shrink to 8, the same ticket, distances that grow by half of what is left to 1.
PATH = [
    Scripted(counts={"a": max(8, 20 - 2 * t)}, kept={"a": [True, False]}, distance=1 - 0.5**t) for t in range(1, 40)
]
SETTINGS: dict[str, tuple[EpochSettings, int]] = {
    "epi": (ArchitectureStable(), 11),  # from epoch 6 on there are 8 channels, all alike from epoch 11 on
    "early-bird": (TicketStable(tickets=3), 3),
    "gradient flow": (GradientFlowSettled(), 3),  # 1/8 < 0.2
    "gradient flow, code": (GradientFlowSettled(variant="code"), 4),  # r_1 = 3/4; 1/8, then 1/16 < 0.1 * 3/4
    "at epoch 4": (AtEpoch(4), 4),
    "at initialisation": (AtEpoch(), 0),
}


def watch(name: str, epochs: int = 40) -> EpochTrigger:
    return SETTINGS[name][0].watch(epochs=epochs, density=0.2)


@pytest.mark.parametrize("name", SETTINGS)
def test_each_settles_at_its_moment(name: str) -> None:
    trigger = watch(name)
    assert moment(trigger, PATH) == SETTINGS[name][1]
    facts = trigger.facts()
    assert (facts["epoch"], facts["pruned_at_epoch"], facts["settled"]) == (SETTINGS[name][1],) * 2 + (True,)
    assert len(facts["values"]) == SETTINGS[name][1]
    assert facts["trigger"] == type(SETTINGS[name][0]).__name__
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize("name", SETTINGS)
def test_a_restored_trigger_decides_as_the_whole_one(name: str) -> None:
    whole = watch(name)
    last = moment(whole, PATH)
    assert last is not None
    for cut in range(last + 1):  # killed after epoch ``cut``
        first, second = watch(name), watch(name)
        answers = [first.after_epoch(epoch, look) for epoch, look in enumerate([NOTHING, *PATH][: cut + 1])]
        second.restore(json.loads(json.dumps(first.facts())))
        assert second.facts() == first.facts()
        for epoch in range(cut + 1, last + 1):
            answers.append(second.after_epoch(epoch, PATH[epoch - 1]))
        assert answers == [False] * last + [True]
        assert second.facts() == whole.facts()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_trigger_that_was_never_asked_can_be_restored(name: str) -> None:
    trigger = watch(name)
    trigger.restore(json.loads(json.dumps(watch(name).facts())))
    assert trigger.facts()["epoch"] is None
    assert moment(trigger, PATH) == SETTINGS[name][1]


def test_facts_are_a_copy() -> None:
    trigger = watch("epi")
    trigger.after_epoch(0, NOTHING)
    trigger.after_epoch(1, PATH[0])
    trigger.facts()["counts"]["a"].append(3)
    assert trigger.facts()["counts"] == {"a": [18]}


def test_identity_is_json_and_tells_runs_apart() -> None:
    identity = watch("at epoch 4").identity
    assert identity == {"trigger": "AtEpoch", "epoch": 4, "epochs": 40, "density": 0.2}
    found = [json.dumps(watch(name, epochs).identity) for name in SETTINGS for epochs in (30, 40)]
    assert len(set(found)) == len(found)


# Order --------------------------------------------------------------------------------------------------------------


def test_epochs_come_one_after_the_other_and_none_after_pruning() -> None:
    trigger = watch("early-bird")
    with pytest.raises(ValueError, match="expects 0 got 1"):
        trigger.after_epoch(1, PATH[0])
    trigger.after_epoch(0, NOTHING)
    for wrong in (0, 2):
        with pytest.raises(ValueError, match=f"expects 1 got {wrong}"):
            trigger.after_epoch(wrong, PATH[0])
    for epoch in (1, 2, 3):
        trigger.after_epoch(epoch, PATH[0])
    with pytest.raises(ValueError, match="pruned after epoch 3"):
        trigger.after_epoch(4, PATH[0])


# Caps ---------------------------------------------------------------------------------------------------------------

RESTLESS = [Scripted(counts={"a": 4 + 9 * (t % 2)}) for t in range(40)]


@pytest.mark.parametrize("cap", [1, 12, 39])
def test_the_cap_prunes_what_has_not_settled(cap: int) -> None:
    trigger = ArchitectureStable(cap=cap).watch(epochs=40, density=0.2)
    assert moment(trigger, RESTLESS) == cap
    assert trigger.facts()["pruned_at_epoch"] == cap
    assert trigger.facts()["settled"] is False


def test_what_settles_before_the_cap_or_at_it_has_settled() -> None:
    for cap in (11, 20):
        trigger = ArchitectureStable(cap=cap).watch(epochs=40, density=0.2)
        assert moment(trigger, PATH) == 11
        assert trigger.facts()["settled"] is True


def test_a_cap_leaves_the_pruned_network_an_epoch() -> None:
    with pytest.raises(AutoSparseError, match="cap is 40, and a training of 40 epochs leaves the pruned network none"):
        ArchitectureStable(cap=40).watch(epochs=40, density=0.2)


def test_without_a_cap_the_last_epoch_but_one_refuses() -> None:
    trigger = ArchitectureStable().watch(epochs=15, density=0.2)
    for epoch in range(14):
        assert not trigger.after_epoch(epoch, RESTLESS[epoch])
    with pytest.raises(AutoSparseError, match=r"never was up to epoch 14, .* \(its last values were .*\): give a cap"):
        trigger.after_epoch(14, RESTLESS[14])


# At a given epoch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_at_an_epoch_nothing_is_looked_at(epoch: int) -> None:
    trigger = AtEpoch(epoch).watch(epochs=8, density=0.2)
    assert moment(trigger, [NOTHING] * 7) == epoch
    assert trigger.facts()["settled"] is True


def test_there_must_be_such_an_epoch() -> None:
    with pytest.raises(AutoSparseError, match="epoch is 8: a training of 8 epochs is pruned after 0 to 7 of them"):
        AtEpoch(8).watch(epochs=8, density=0.2)
    with pytest.raises(AutoSparseError, match=r"epoch is -1: give 0 \(at initialisation\) or more"):
        AtEpoch(-1)


# Damage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": "3"}, "epoch is '3'"),
        ({"epoch": -1}, "epoch is -1"),
        ({"epoch": True}, "epoch is True"),
        ({"epoch": 2}, "3 values of 2 epochs"),
        ({"epoch": None}, "3 values of 0 epochs"),
        ({"pruned_at_epoch": 2}, "pruned_at_epoch is 2 at epoch 3"),
        ({"settled": True}, "settled is True, pruned_at_epoch None"),
        ({"settled": None}, "settled is None"),
        ({"values": [None, None]}, "'a' has no width for each of 2 epochs"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_damaged_facts_are_refused(change: dict[str, Any], message: str) -> None:
    trigger = watch("epi")
    for epoch, look in enumerate([NOTHING, *PATH[:3]]):
        trigger.after_epoch(epoch, look)
    with pytest.raises(FileFormatError, match=f"damaged: {message}"):
        watch("epi").restore({**trigger.facts(), **change})


@pytest.mark.parametrize("name", SETTINGS)
def test_facts_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(FileFormatError, match="history in the checkpoint is damaged"):
        watch(name).restore({})
