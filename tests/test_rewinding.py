"""Tickets from trained weights: exact, rewound bit for bit, and the same however a run was cut into pieces."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autosparse.rewinding.after_training
import autosparse.rewinding.loop
from autosparse.data import ImageData
from autosparse.errors import (
    AutoSparseError,
    BudgetError,
    DivergedError,
    FileFormatError,
    OutputExistsError,
    UnknownNameError,
)
from autosparse.files import exclusive
from autosparse.layers import prunable
from autosparse.masks import Masks
from autosparse.models import seeded_model
from autosparse.pq_index import pq_survivors
from autosparse.pruning import score_batches
from autosparse.rewinding import AfterTrainingPruner, Rewinder, Ticket
from autosparse.seeding import derive_seed
from autosparse.training import Callback, EpochRecord, TrainConfig, train
from autosparse.triggers.rounds import AfterTraining, PQRewinding, Rewinding

TRAIN = TrainConfig(epochs=1, batch_size=128, precision="fp32", seed=3)
TOTAL = 17_132
SEED = 5
HALVING = Rewinding(fraction=0.5)
ONCE = AfterTraining()
State = dict[str, Tensor]


def network(seed: int = 0) -> nn.Module:
    return seeded_model("resnet20", seed=seed, num_classes=10, width=0.25)


def state_of(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: Any, other: Any) -> bool:
    """Whether two mappings of tensors are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def within(inner: Masks, outer: Masks) -> bool:
    return all(not (inner[name] & ~outer[name]).any() for name in outer)


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**record, "seconds": 0} for record in records]


def assert_same_ticket(one: Ticket, other: Ticket) -> None:
    assert same(one.state, other.state)
    assert same(one.masks, other.masks)
    assert timeless(one.records) == timeless(other.records)
    assert (one.train, one.start_step) == (other.train, other.start_step)


class KilledError(Exception):
    """A kill, as far as a run can tell."""


class Kill(Callback):
    """Stops after an epoch, or at a step."""

    def __init__(self, epoch: int | None = None, step: int | None = None) -> None:
        self._epoch, self._step = epoch, step

    def on_epoch(self, history: list[EpochRecord]) -> None:
        if history[-1].epoch == self._epoch:
            raise KilledError

    def on_step(self, step: int, steps: int) -> None:
        if step == self._step:
            raise KilledError


@dataclass
class Watch:
    """What each round was given, and the weights that it trained."""

    begins: list[State]
    masks: list[Masks]
    trained: list[State]
    configs: list[TrainConfig]


def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    seen = Watch([], [], [], [])

    def spy(model: nn.Module, data: ImageData, config: TrainConfig, **kwargs: Any) -> list[EpochRecord]:
        if "masks" not in kwargs:  # towards the rewinding point
            return train(model, data, config, **kwargs)
        seen.begins.append(state_of(model))
        seen.masks.append(kwargs["masks"])
        seen.configs.append(config)
        history = train(model, data, config, **kwargs)
        seen.trained.append(state_of(model))
        return history

    monkeypatch.setattr(autosparse.rewinding.loop, "train", spy)
    return seen


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        pytest.fail("trained in vain")

    monkeypatch.setattr(autosparse.rewinding.loop, "train", never)
    monkeypatch.setattr(autosparse.rewinding.after_training, "train", never)


@dataclass(frozen=True)
class Run:
    """A run that was taken straight to 5 %, and all that it did."""

    folder: Path
    ticket: Ticket
    watch: Watch


@pytest.fixture(scope="module")
def run(tiny_data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run") / "rounds"
    with pytest.MonkeyPatch.context() as patch:
        seen = watch(patch)
        ticket = Rewinder(network(), tiny_data, HALVING, TRAIN, folder, seed=SEED).ticket(857)
    return Run(folder, ticket, seen)


# Tickets ------------------------------------------------------------------------------------------------------------

COUNTS = [round(0.5**k * TOTAL) for k in range(6)]  # 17132, 8566, 4283, 2142, 1071, 536


def test_rounds_follow_the_fraction_and_the_ticket_is_exact(run: Run) -> None:
    assert (run.ticket.masks.kept, run.ticket.rounds) == (857, 5)
    assert [masks.kept for masks in run.watch.masks] == COUNTS[:5]
    assert [record["kept"] for record in run.ticket.records] == COUNTS[:5]
    assert [record["kept_after"] for record in run.ticket.records] == COUNTS[1:]
    assert [record["round"] for record in run.ticket.records] == [0, 1, 2, 3, 4]
    json.dumps(run.ticket.records, allow_nan=False)
    chain = [*run.watch.masks, run.ticket.masks]
    assert all(within(after, before) for before, after in itertools.pairwise(chain))


def test_every_round_begins_in_the_initial_state(run: Run) -> None:
    initial = state_of(network())
    assert all(same(begin, initial) for begin in run.watch.begins)
    assert same(run.ticket.state, initial)
    assert (run.ticket.train, run.ticket.start_step) == (TRAIN, 0)
    seeds = [config.seed for config in run.watch.configs]
    assert seeds == [derive_seed(SEED, "round", index) for index in range(5)]
    model = network(seed=9)
    run.ticket.load(model)
    for name, weight in prunable(model).items():
        kept = run.ticket.masks[name]
        assert torch.equal(weight[kept], initial[name][kept])
        assert not weight[~kept].any()


@pytest.mark.parametrize(
    ("keep", "rounds"), [(17_131, 1), (8_567, 1), (8_566, 1), (8_565, 2), (2_500, 3), (2_142, 3), (857, 5), (536, 5)]
)
def test_a_ticket_is_the_largest_trained_weights_of_its_last_round(
    keep: int, rounds: int, run: Run, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_training(monkeypatch)  # all that these densities need has been done
    ticket = Rewinder(network(), tiny_data, HALVING, TRAIN, run.folder, seed=SEED).ticket(keep)
    assert (ticket.masks.kept, ticket.rounds) == (keep, rounds)
    trained, masks = run.watch.trained[rounds - 1], run.watch.masks[rounds - 1]
    values = torch.cat([trained[name][masks[name]].abs() for name in masks]).sort(descending=True).values
    assert values[keep - 1] > values[keep]  # the expectation below is unique
    for name, mask in ticket.masks.items():
        assert torch.equal(mask, masks[name] & (trained[name].abs() >= values[keep - 1]))


def test_all_weights_need_no_round(tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_training(monkeypatch)
    ticket = Rewinder(network(), tiny_data, HALVING, TRAIN, tmp_path / "rounds", seed=SEED).ticket(TOTAL)
    assert (ticket.masks.kept, ticket.rounds) == (TOTAL, 0)


def test_rewinding_to_a_later_step(tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    train(model, tiny_data, dataclasses.replace(TRAIN, seed=derive_seed(SEED, "rewind")), stop_step=4)
    seen = watch(monkeypatch)
    settings = Rewinding(fraction=0.5, rewind_steps=4)
    ticket = Rewinder(network(), tiny_data, settings, TRAIN, tmp_path / "rounds", seed=SEED).ticket(5_000)
    assert (ticket.start_step, ticket.rounds) == (4, 2)
    assert all(same(state, model.state_dict()) for state in (*seen.begins, ticket.state))
    assert not same(ticket.state, state_of(network()))


def test_layer_scope_gives_every_layer_the_same_density(tiny_data: ImageData, tmp_path: Path) -> None:
    rewinder = Rewinder(
        network(), tiny_data, Rewinding(fraction=0.5, scope="layer"), TRAIN, tmp_path / "rounds", seed=SEED
    )
    small, large = rewinder.ticket(6_000), rewinder.ticket(7_000)
    assert within(rewinder.rounds.masks(2), small.masks)
    for ticket in (small, large):
        density = ticket.masks.kept / TOTAL
        for mask in ticket.masks.values():
            assert abs(int(mask.sum()) - density * mask.numel()) <= 2


def test_other_criteria_and_epochs_of_the_rounds(
    tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    settings = Rewinding(fraction=0.5, criterion="snip", epochs=2)
    ticket = Rewinder(
        network(),
        tiny_data,
        settings,
        TRAIN,
        tmp_path / "rounds",
        seed=SEED,
        batches=lambda: score_batches(tiny_data, seed=SEED, images=200),
    ).ticket(9_000)
    assert [config.epochs for config in seen.configs] == [2]
    assert ticket.train == TRAIN
    by_magnitude = torch.cat([seen.trained[0][name].abs().flatten() for name in ticket.masks]).topk(9_000).indices
    chosen = torch.cat([mask.flatten() for mask in ticket.masks.values()])
    assert 0 < int(chosen[by_magnitude].sum()) < 9_000


# One run in pieces --------------------------------------------------------------------------------------------------


def test_a_run_goes_on_from_a_larger_density_as_if_never_stopped(
    run: Run, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "rounds"
    told: list[int] = []
    first = Rewinder(network(), tiny_data, HALVING, TRAIN, folder, seed=SEED)
    assert first.ticket(3_000, lambda records: told.append(len(records))).rounds == 3
    seen = watch(monkeypatch)
    torch.manual_seed(17)
    second = Rewinder(network(), tiny_data, HALVING, TRAIN, folder, seed=SEED)
    ticket = second.ticket(857, lambda records: told.append(len(records)))
    assert (len(seen.begins), told) == (2, [1, 2, 3, 4, 5])
    assert_same_ticket(ticket, run.ticket)
    no_training(monkeypatch)
    again = Rewinder(network(), tiny_data, HALVING, TRAIN, run.folder, seed=SEED).ticket(3_000)
    assert_same_ticket(again, first.ticket(3_000))


TWO_EPOCHS = dataclasses.replace(TRAIN, epochs=2)


def rewinder_of(settings: Rewinding | PQRewinding, data: ImageData, folder: Path, kill: Callback | None) -> Rewinder:
    def callbacks(index: int) -> Sequence[Callback]:
        return [kill] if kill and index == 1 else []

    return Rewinder(network(), data, settings, TWO_EPOCHS, folder, seed=SEED, callbacks=callbacks)


SETTINGS: dict[str, Rewinding | PQRewinding] = {
    "fraction": Rewinding(fraction=0.5, rewind_steps=3),
    "pq": PQRewinding(max_rounds=2),
}


@pytest.fixture(scope="module")
def uninterrupted(tiny_data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ticket]:
    folder = tmp_path_factory.mktemp("whole")
    return {
        name: rewinder_of(settings, tiny_data, folder / name, None).ticket(5_000) for name, settings in SETTINGS.items()
    }


@pytest.mark.parametrize(
    ("name", "kill"),
    [
        pytest.param("fraction", Kill(epoch=0), id="first epoch"),
        pytest.param("fraction", Kill(step=15), id="second epoch, in the middle"),
        pytest.param("pq", Kill(epoch=1), id="last epoch of a round"),
    ],
)
def test_an_interrupted_run_ends_bit_equal(
    name: str, kill: Kill, uninterrupted: dict[str, Ticket], tiny_data: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        rewinder_of(SETTINGS[name], tiny_data, tmp_path / "rounds", kill).ticket(5_000)
    torch.manual_seed(99)
    ticket = rewinder_of(SETTINGS[name], tiny_data, tmp_path / "rounds", None).ticket(5_000)
    assert_same_ticket(ticket, uninterrupted[name])
    assert [path.name for path in tmp_path.iterdir()] == ["rounds"]


def test_another_run_is_not_continued(run: Run, tiny_data: ImageData) -> None:
    def ask(model: nn.Module, settings: Rewinding | PQRewinding, config: TrainConfig, **more: Any) -> Ticket:
        return Rewinder(model, tiny_data, settings, config, run.folder, **{"seed": SEED, **more}).ticket(500)

    higher = dataclasses.replace(TRAIN, lr=0.2)
    for message, call in {
        r"settings\.fraction was 0\.5 and is now 0\.6": lambda: ask(network(), Rewinding(fraction=0.6), TRAIN),
        r"settings\.criterion was 'magnitude' and is now None": lambda: ask(network(), PQRewinding(), TRAIN),
        r"train\.lr was 0\.1 and is now 0\.2": lambda: ask(network(), HALVING, higher),
        r"train\.seed was 5 and is now 6": lambda: ask(network(), HALVING, TRAIN, seed=6),
        r"initial_state was": lambda: ask(network(seed=1), HALVING, TRAIN),
        r"model was None and is now 'x'": lambda: ask(network(), HALVING, TRAIN, identity={"model": "x"}),
    }.items():
        with pytest.raises(AutoSparseError, match=f"cannot resume from .*{message}"):
            call()


def test_only_what_the_rounds_depend_on_must_agree(
    run: Run, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_training(monkeypatch)
    final = dataclasses.replace(TRAIN, epochs=7, seed=8)
    settings = dataclasses.replace(HALVING, epochs=1)
    ticket = Rewinder(network(), tiny_data, settings, final, run.folder, seed=SEED).ticket(857)
    assert ticket.train == final
    assert same(ticket.masks, run.ticket.masks)
    with pytest.raises(AutoSparseError, match=r"train\.epochs was 1 and is now 7"):
        Rewinder(network(), tiny_data, HALVING, final, run.folder, seed=SEED).ticket(857)


def test_one_process_at_a_time(run: Run, tiny_data: ImageData) -> None:
    rewinder = Rewinder(network(), tiny_data, HALVING, TRAIN, run.folder, seed=SEED)
    with exclusive(run.folder), pytest.raises(OutputExistsError, match="another process is writing"):
        rewinder.ticket(857)


# SAP ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["global", "layer", "neuron"])
def test_sap_follows_the_index_and_stops_short_at_the_target(
    scope: str, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    settings = PQRewinding(scope=scope, gamma=2.0)
    rewinder = Rewinder(network(), tiny_data, settings, TRAIN, tmp_path / "rounds", seed=SEED)
    ticket = rewinder.ticket(11_000)
    layers = rewinder.rounds.layers
    rounds = zip(seen.trained, seen.masks, strict=True)
    survivors = [pq_survivors(trained, layers, masks, settings) for trained, masks in rounds]
    assert ticket.rounds == len(seen.masks) >= 2
    assert all(same(after, before) for after, before in zip(survivors, seen.masks[1:], strict=False))
    assert survivors[-1].kept < 11_000 < seen.masks[-1].kept
    assert ticket.masks.kept == 11_000
    assert within(survivors[-1], ticket.masks)
    assert within(ticket.masks, seen.masks[-1])
    # What stays beside the round's survivors is larger than what goes.
    trained, last = seen.trained[-1], seen.masks[-1]
    spared = [trained[name][ticket.masks[name] & ~survivors[-1][name]].abs() for name in last]
    removed = [trained[name][last[name] & ~ticket.masks[name]].abs() for name in last]
    assert torch.cat(spared).min() >= torch.cat(removed).max()
    assert same(ticket.state, state_of(network()))


def test_sap_takes_the_rest_at_once_when_its_rounds_are_over(
    uninterrupted: dict[str, Ticket], tiny_data: ImageData, tmp_path: Path
) -> None:
    ticket = uninterrupted["pq"]
    assert (ticket.rounds, ticket.masks.kept) == (2, 5_000)
    assert ticket.records[-1]["kept_after"] > 5_000
    for limit in (1, 2, 1):  # more rounds may be allowed later, and fewer
        settings = PQRewinding(max_rounds=limit)
        found = rewinder_of(settings, tiny_data, tmp_path / "rounds", None).ticket(5_000)
        assert (found.rounds, found.masks.kept) == (limit, 5_000)
        assert limit == 1 or same(found.masks, ticket.masks)


# After training -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense(tiny_data: ImageData) -> State:
    """The dense network after its training."""
    model = network()
    train(model, tiny_data, TWO_EPOCHS)
    return state_of(model)


def pruner(data: ImageData, folder: Path, settings: AfterTraining = ONCE, **more: Any) -> AfterTrainingPruner:
    return AfterTrainingPruner(network(), data, settings, TWO_EPOCHS, folder, **more)


def test_after_training_the_largest_trained_weights_stay_as_they_are(
    dense: State, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pruner(tiny_data, tmp_path / "dense")
    ticket = source.ticket(1_713)
    assert (ticket.masks.kept, ticket.rounds, ticket.start_step) == (1_713, 1, 0)
    assert same(ticket.state, dense)
    values = torch.cat([dense[name].abs().flatten() for name in ticket.masks]).sort(descending=True).values
    assert all(torch.equal(mask, dense[name].abs() >= values[1_712]) for name, mask in ticket.masks.items())
    assert ticket.train == TWO_EPOCHS
    no_training(monkeypatch)
    assert [path.name for path in (tmp_path / "dense").iterdir()] == ["trained.safetensors"]
    assert_same_ticket(pruner(tiny_data, tmp_path / "dense").ticket(1_713), ticket)
    smaller = source.ticket(200)
    assert smaller.masks.kept == 200
    assert within(smaller.masks, ticket.masks)


def test_a_trained_network_can_be_handed_in(
    dense: State, tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_training(monkeypatch)
    ticket = pruner(tiny_data, tmp_path / "dense", AfterTraining(scope="layer"), trained=dense).ticket(1_713)
    assert (ticket.masks.kept, ticket.rounds) == (1_713, 0)
    assert same(ticket.state, dense)
    assert all(abs(int(mask.sum()) - mask.numel() * 1_713 / TOTAL) <= 2 for mask in ticket.masks.values())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AutoSparseError, match=r"the trained state does not fit .*: hand in what the same network"):
        pruner(tiny_data, tmp_path / "dense", trained={"x": torch.ones(1)}).ticket(5)


def test_an_interrupted_dense_training_ends_bit_equal(dense: State, tiny_data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        pruner(tiny_data, tmp_path / "dense", callbacks=[Kill(epoch=0)]).ticket(1_713)
    assert same(pruner(tiny_data, tmp_path / "dense").ticket(1_713).state, dense)
    other = AfterTrainingPruner(network(), tiny_data, AfterTraining(), TRAIN, tmp_path / "dense")
    with pytest.raises(AutoSparseError, match=r"train\.epochs was 2 and is now 1"):
        other.ticket(5)


def test_fine_tuning_may_be_shorter_and_gentler() -> None:
    settings = AfterTraining(lr_factor=0.1, epochs=4)
    assert settings.fine_tuning(TRAIN) == dataclasses.replace(TRAIN, lr=TRAIN.lr * 0.1, epochs=4)
    assert AfterTraining().fine_tuning(TRAIN) == TRAIN


# What can go wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, -1, TOTAL + 1])
def test_impossible_counts_are_refused(keep: int, run: Run, tiny_data: ImageData, dense: State) -> None:
    sources = (
        Rewinder(network(), tiny_data, HALVING, TRAIN, run.folder, seed=SEED),
        pruner(tiny_data, run.folder, trained=dense),
    )
    for source in sources:
        with pytest.raises(BudgetError, match=f"cannot keep {keep} of {TOTAL} weights"):
            source.ticket(keep)


def test_divergence_names_the_round_and_leaves_nothing_to_stumble_over(tiny_data: ImageData, tmp_path: Path) -> None:
    folder = tmp_path / "rounds"
    hot = dataclasses.replace(TRAIN, lr=1e30)
    with pytest.raises(DivergedError, match=r"^round 1: the loss became"):
        Rewinder(network(), tiny_data, HALVING, hot, folder, seed=SEED).ticket(9_000)
    assert list(tmp_path.iterdir()) == []
    assert Rewinder(network(), tiny_data, HALVING, TRAIN, folder, seed=SEED).ticket(9_000).masks.kept == 9_000


def test_damaged_scores_are_named(tiny_data: ImageData, tmp_path: Path) -> None:
    rewinder = Rewinder(network(), tiny_data, HALVING, TRAIN, tmp_path / "rounds", seed=SEED)
    rewinder.ticket(9_000)
    path = tmp_path / "rounds" / "scores-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FileFormatError, match=r"scores-00000\.safetensors is damaged"):
        rewinder.ticket(9_000)


def test_runs_that_could_not_work_are_refused_at_once(tiny_data: ImageData, tmp_path: Path) -> None:
    def build(settings: Rewinding | PQRewinding, config: TrainConfig = TRAIN) -> None:
        Rewinder(network(), tiny_data, settings, config, tmp_path / "rounds", seed=SEED)

    with pytest.raises(AutoSparseError, match="rewind-steps is 10, but a round has 10 steps"):
        build(Rewinding(rewind_steps=10))
    with pytest.raises(AutoSparseError, match="rewind-steps is 10, but a round has 10 steps"):
        build(PQRewinding(rewind_steps=10))
    with pytest.raises(UnknownNameError, match="magnitud"):
        build(Rewinding(criterion="magnitud"))
    with pytest.raises(AutoSparseError, match="criterion 'snip' looks at data: pass batches="):
        build(Rewinding(criterion="snip"))
    with pytest.raises(AutoSparseError, match="criterion 'snip' looks at data: pass batches="):
        pruner(tiny_data, tmp_path, AfterTraining(criterion="snip"))
    with pytest.raises(AutoSparseError, match="epochs is 0"):
        build(Rewinding(), dataclasses.replace(TRAIN, epochs=0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Rewinding(fraction=0.0), "fraction is 0.0"),
        (lambda: Rewinding(fraction=1.0), "fraction is 1.0"),
        (lambda: Rewinding(fraction=float("nan")), "fraction is nan"),
        (lambda: Rewinding(rewind_steps=-1), "rewind-steps is -1"),
        (lambda: Rewinding(epochs=0), "epochs is 0"),
        (lambda: Rewinding(scope="neuron"), "unknown scope 'neuron'"),
        (lambda: PQRewinding(p=1.0, q=1.0), "p is 1.0 and q is 1.0"),
        (lambda: PQRewinding(p=0.0), "p is 0.0"),
        (lambda: PQRewinding(q=float("inf")), "q is inf"),
        (lambda: PQRewinding(gamma=0.0), "gamma is 0.0"),
        (lambda: PQRewinding(eta=-0.1), "eta is -0.1"),
        (lambda: PQRewinding(max_fraction=1.0), "max-fraction is 1.0"),
        (lambda: PQRewinding(max_rounds=0), "max-rounds is 0"),
        (lambda: PQRewinding(epochs=0), "epochs is 0"),
        (lambda: PQRewinding(scope="layers"), "unknown scope 'layers': did you mean layer"),
        (lambda: AfterTraining(lr_factor=0.0), "lr-factor is 0.0"),
        (lambda: AfterTraining(epochs=0), "epochs is 0"),
        (lambda: AfterTraining(scope="x"), "unknown scope 'x'"),
    ],
)
def test_settings_are_checked(build: Callable[[], object], message: str) -> None:
    with pytest.raises(AutoSparseError, match=message):
        build()


@pytest.mark.parametrize("settings", [Rewinding(), PQRewinding(), AfterTraining()], ids=lambda s: type(s).__name__)
def test_settings_are_json(settings: Rewinding | PQRewinding | AfterTraining) -> None:
    assert type(settings)(**json.loads(json.dumps(asdict(settings)))) == settings


def test_the_path_knows_no_target() -> None:
    assert [Rewinding(fraction=0.8).kept_after(k, 1000) for k in range(5)] == [1000, 800, 640, 512, 410]
    assert Rewinding(fraction=0.1).kept_after(9, 1000) == 1
