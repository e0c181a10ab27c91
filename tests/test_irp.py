"""Iterative rewind pruning: exact counts, bit-exact rewinding, resuming, and files that stand on their own."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autosparse.rewinding.loop
from autosparse.criteria import mean_gradient
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError, DivergedError, FileFormatError, OutputExistsError, UnknownNameError
from autosparse.layers import layers_of, prunable
from autosparse.masks import Masks
from autosparse.models import create_model
from autosparse.pruning import score_batches
from autosparse.scorer.dataset import IRPRun, list_runs, read_run
from autosparse.scorer.fit import FitConfig, fit_scorer
from autosparse.training import Callback, EpochRecord, TrainConfig
from data_gen import IRPConfig, append_run, generate
from data_gen.run import run_name, work_folder

CONFIG = IRPConfig(
    model="resnet20",
    model_args={"width": 0.25},
    rounds=3,
    final_density=0.05,
    gradient_images=200,
    train=TrainConfig(epochs=1, batch_size=128, precision="fp32"),
)
NAME = "resnet20_digits_seed0"
TOTAL = 17_132


@dataclass(frozen=True)
class Watched:
    """A finished run, its file, and what each round's training was given: the network's state and the masks."""

    path: Path
    run: IRPRun
    states: list[dict[str, Tensor]]
    masks: list[Masks]
    windows: list[int]


def watch(config: IRPConfig, data: ImageData, path: Path) -> Watched:
    """Run IRP and note how every round begins."""
    states: list[dict[str, Tensor]] = []
    masks: list[Masks] = []
    windows: list[int] = []
    train = autosparse.rewinding.loop.train

    def spy(model: nn.Module, *args: Any, **kwargs: Any) -> list[EpochRecord]:
        if "masks" in kwargs:  # a round, and not the training towards the rewinding point
            states.append({name: value.clone() for name, value in model.state_dict().items()})
            masks.append(kwargs["masks"])
            windows.append(kwargs["start_step"])
        return train(model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autosparse.rewinding.loop, "train", spy)
        run = generate(config, data, path)
    return Watched(path, run, states, masks, windows)


@pytest.fixture(scope="module")
def watched(tiny_data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return watch(CONFIG, tiny_data, tmp_path_factory.mktemp("irp") / "a.h5")


def contents(path: Path) -> dict[str, Any]:
    """All data sets and attributes of a file, as bytes; the clock left out."""
    found: dict[str, Any] = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        found.update({f"{name}@{key}": value for key, value in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            value = np.array(item[()])
            if value.dtype.names and "seconds" in value.dtype.names:
                value["seconds"] = 0
            found[name] = (value.dtype, value.shape, value.tobytes())

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


class KilledError(Exception):
    """A kill, as far as the run can tell."""


# What a run is ------------------------------------------------------------------------------------------------------


def check_run(watched: Watched, config: IRPConfig) -> None:
    """What holds for every run, whatever its settings."""
    run = watched.run
    layers = layers_of(create_model(config.model, num_classes=10, **config.model_args))
    assert run.layers == layers
    total = sum(layer.size for layer in layers)
    survived = run.rounds_survived
    assert len(survived) == len(run.initial_value) == len(run.initial_gradient) == total
    assert survived.dtype == np.uint16
    for completed in range(config.rounds + 1):
        assert (survived >= completed).sum() == config.kept_after(completed, total)
    assert survived.max() == config.rounds
    assert run.rounds["round"].tolist() == list(range(config.rounds))
    assert run.rounds["kept"].tolist() == [config.kept_after(i, total) for i in range(config.rounds)]
    assert run.rounds["kept_after"].tolist() == [config.kept_after(i + 1, total) for i in range(config.rounds)]
    assert run.rounds["density"].tolist() == pytest.approx([kept / total for kept in run.rounds["kept"].tolist()])
    assert np.isfinite(run.rounds["train_loss"]).all()
    assert ((run.rounds["val_accuracy"] >= 0) & (run.rounds["val_accuracy"] <= 1)).all()
    for index, masks in enumerate(watched.masks):
        flat = torch.cat([masks[layer.name].flatten() for layer in layers]).numpy()
        assert np.array_equal(flat, survived >= index)
    for before, after in itertools.pairwise(watched.masks):
        assert all(not (after[name] & ~before[name]).any() for name in before)
    # Every round begins in the same state, batch norm and biases included.
    expected = run.states["rewind_state" if config.rewind_steps else "initial_state"]
    assert len(watched.states) == config.rounds
    for state in watched.states:
        assert state.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in state.items())
    assert watched.windows == [config.rewind_steps] * config.rounds
    assert not work_folder(watched.path).exists()


def test_a_run_keeps_exact_counts_nests_its_masks_and_rewinds_bit_by_bit(watched: Watched) -> None:
    check_run(watched, CONFIG)
    assert len(watched.run.rounds_survived) == TOTAL
    assert sorted(path.name for path in watched.path.parent.iterdir()) == ["a.h5"]


SMALL: dict[str, Any] = {"rounds": 2, "gradient_images": 64}


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "count"},
        {"criterion": "snip"},
        {"scope": "layer"},
        {"rewind_steps": 4},
        {"schedule": "count", "criterion": "snip", "scope": "layer", "rewind_steps": 12, "epochs": 2},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_every_choice_keeps_the_same_promises(change: dict[str, Any], tiny_data: ImageData, tmp_path: Path) -> None:
    epochs = change.get("epochs", 1)
    rest = {key: value for key, value in change.items() if key != "epochs"}
    config = dataclasses.replace(CONFIG, **SMALL, **rest, train=dataclasses.replace(CONFIG.train, epochs=epochs))
    found = watch(config, tiny_data, tmp_path / "a.h5")
    check_run(found, config)
    if config.scope == "layer":
        for layer in found.run.layers:
            part = found.run.rounds_survived[layer.offset : layer.offset + layer.size]
            for completed in range(config.rounds + 1):
                wanted = config.kept_after(completed, TOTAL) / TOTAL * layer.size
                assert abs((part >= completed).sum() - wanted) <= 2
    initial, rewind = found.run.states["initial_state"], found.run.states.get("rewind_state")
    if config.rewind_steps:
        assert rewind is not None
        assert rewind.keys() == initial.keys()
        assert not torch.equal(initial["classifier.weight"], rewind["classifier.weight"])
        assert int(next(value for name, value in rewind.items() if name.endswith("tracked"))) == config.rewind_steps
    else:
        assert rewind is None
    stored = read_run(tmp_path / "a.h5", NAME)
    assert stored.states.keys() == found.run.states.keys()
    for name, state in stored.states.items():
        assert all(torch.equal(value, found.run.states[name][key]) for key, value in state.items())


def test_criteria_scopes_and_seeds_differ(watched: Watched, tiny_data: ImageData, tmp_path: Path) -> None:
    for index, change in enumerate(({"criterion": "snip"}, {"scope": "layer"}, {"seed": 1})):
        run = generate(dataclasses.replace(CONFIG, **change), tiny_data, tmp_path / f"{index}.h5")  # type: ignore[arg-type]
        assert not np.array_equal(run.rounds_survived, watched.run.rounds_survived)
        assert np.array_equal(run.initial_value, watched.run.initial_value) == (run.config["seed"] == 0)


def test_one_seed_gives_one_file(watched: Watched, tiny_data: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(11)
    rng = torch.get_rng_state()
    generate(CONFIG, tiny_data, tmp_path / "again.h5")
    assert torch.equal(torch.get_rng_state(), rng)
    assert contents(tmp_path / "again.h5") == contents(watched.path)


@pytest.mark.parametrize("schedule", ["fraction", "count"])
@pytest.mark.parametrize("density", [0.01, 0.07, 0.5])
@pytest.mark.parametrize("total", [50, 250, 17_132, 11_164_352])
def test_schedules_fall_from_all_to_the_final_density(schedule: str, density: float, total: int) -> None:
    config = dataclasses.replace(CONFIG, rounds=16, schedule=schedule, final_density=density)
    kept = [config.kept_after(completed, total) for completed in range(17)]
    assert kept[0] == total
    assert kept[-1] == max(1, round(density * total))
    assert all(a >= b for a, b in itertools.pairwise(kept))
    if total > 10_000:
        steps = np.array(kept)
        spread = np.diff(steps) if schedule == "count" else np.diff(np.log(steps))
        assert np.allclose(spread, spread.mean(), rtol=0.02)


def test_schedules_by_hand() -> None:
    fraction = dataclasses.replace(CONFIG, rounds=2, final_density=0.25)
    count = dataclasses.replace(fraction, schedule="count")
    assert [fraction.kept_after(i, 1000) for i in range(3)] == [1000, 500, 250]
    assert [count.kept_after(i, 1000) for i in range(3)] == [1000, 625, 250]


# The file stands on its own -----------------------------------------------------------------------------------------


def test_the_file_opens_without_our_code(watched: Watched) -> None:
    with h5py.File(watched.path, "r") as file:
        assert file.attrs["kind"] == "autosparse-irp"
        assert file.attrs["schema_version"] == 1
        assert list(file["runs"]) == [NAME]
        group = file["runs"][NAME]
        layers, rounds = pd.DataFrame(group["layers"][:]), pd.DataFrame(group["rounds"][:])
        weights = pd.DataFrame({name: column[:] for name, column in group["weights"].items()})
        config, data = json.loads(group.attrs["config"]), json.loads(group.attrs["data"])
        assert (group.attrs["seed"], group.attrs["rounds"]) == (0, 3)
        assert "torch" in json.loads(group.attrs["versions"])
        assert isinstance(group.attrs["source_revision"], str)
    assert config["model"] == "resnet20"
    assert config["model_args"] == {"width": 0.25}
    assert config["train"]["epochs"] == 1
    assert data["name"] == "digits"
    assert list(layers.columns) == ["name", "kind", "shape", "groups", "fan_in", "fan_out", "depth", "offset", "size"]
    assert (len(layers), layers["size"].sum()) == (22, TOTAL)
    assert layers["name"].str.decode("utf-8").iloc[-1] == watched.run.layers[-1].name
    assert layers["shape"].iloc[0] == b"4x3x3x3"
    assert (layers["offset"] == layers["size"].cumsum() - layers["size"]).all()
    assert rounds["kept"].tolist() == [CONFIG.kept_after(i, TOTAL) for i in range(3)]
    assert list(weights.columns) == ["initial_gradient", "initial_value", "rounds_survived"]
    assert weights.notna().all(axis=None)
    assert np.cumsum(weights["rounds_survived"].value_counts().sort_index(ascending=False)).tolist() == [
        CONFIG.kept_after(i, TOTAL) for i in (3, 2, 1, 0)
    ]


def test_network_and_gradient_can_be_rebuilt_from_the_file(watched: Watched, tiny_data: ImageData) -> None:
    run = read_run(watched.path, NAME)
    model = create_model(run.config["model"], num_classes=run.data["num_classes"], **run.config["model_args"])
    model.load_state_dict(dict(run.states["initial_state"]))
    values, gradients = run.by_layer(run.initial_value), run.by_layer(run.initial_gradient)
    for name, weight in prunable(model).items():
        assert torch.equal(weight, values[name])
    batches = score_batches(tiny_data, seed=run.config["seed"], images=run.config["gradient_images"])
    assert sum(len(x) for x, _ in batches) == 200
    found = mean_gradient(model, batches, F.cross_entropy)
    assert all(torch.equal(found[name], gradients[name]) for name in found)


def test_reading_gives_back_what_was_written(watched: Watched) -> None:
    assert list_runs(watched.path) == [NAME]
    run, written = read_run(watched.path, NAME), watched.run
    assert run.name == NAME
    assert run.layers == written.layers
    assert run.config == json.loads(json.dumps(dict(written.config)))
    assert run.data == written.data
    assert run.provenance == written.provenance
    assert run.num_rounds == 3
    for column in ("initial_value", "initial_gradient", "rounds_survived", "rounds"):
        assert np.array_equal(getattr(run, column), getattr(written, column))
    with pytest.raises(UnknownNameError, match="unknown IRP run 'resnet20_digits_seed1': did you mean"):
        read_run(watched.path, "resnet20_digits_seed1")


def test_a_scorer_can_be_fitted_to_the_file(watched: Watched) -> None:
    fitted = fit_scorer([read_run(watched.path, NAME)], FitConfig(epochs=1, refit=False))
    assert fitted.card["sources"][0]["run"] == NAME
    assert fitted.card["sources"][0]["weights"] == TOTAL
    json.dumps(fitted.card, allow_nan=False)


def test_names_are_fit_for_a_file(tiny_data: ImageData) -> None:
    folder = dataclasses.replace(tiny_data, name="imagefolder:/some where/my cats.tar.gz")
    config = dataclasses.replace(CONFIG, model="timm:resnet18.a1/x", seed=7)
    assert run_name(config, folder) == "timm-resnet18.a1-x_my-cats_seed7"
    assert run_name(CONFIG, tiny_data) == NAME


# Several runs in one file -------------------------------------------------------------------------------------------


@pytest.fixture
def copy(watched: Watched, tmp_path: Path) -> Path:
    path = tmp_path / "copy.h5"
    path.write_bytes(watched.path.read_bytes())
    return path


def test_a_second_run_is_appended_and_the_first_stays(copy: Path, watched: Watched, tiny_data: ImageData) -> None:
    config = dataclasses.replace(CONFIG, **SMALL, seed=1)
    generate(config, tiny_data, copy, append=True)
    assert list_runs(copy) == [NAME, "resnet20_digits_seed1"]
    before, after = contents(watched.path), contents(copy)
    assert all(after[key] == value for key, value in before.items())
    assert read_run(copy, "resnet20_digits_seed1").num_rounds == 2


def test_a_run_of_the_same_name_is_refused_before_any_work(
    copy: Path, tiny_data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = copy.read_bytes()

    def never(*args: object, **kwargs: object) -> None:
        pytest.fail("trained in vain")

    monkeypatch.setattr(autosparse.rewinding.loop, "train", never)
    with pytest.raises(OutputExistsError, match=f"already has a run '{NAME}'"):
        generate(CONFIG, tiny_data, copy, append=True)
    with pytest.raises(OutputExistsError, match=r"copy\.h5 exists.*--force"):
        generate(CONFIG, tiny_data, copy)
    copy.with_name("bad.h5").write_text("no HDF5")
    for force in (False, True):
        with pytest.raises(FileFormatError, match=r"bad\.h5 is damaged"):
            generate(CONFIG, tiny_data, copy.with_name("bad.h5"), append=True, force=force)
    assert copy.read_bytes() == before
    assert not work_folder(copy).exists()


def test_append_run_refuses_replaces_or_starts_afresh(copy: Path, watched: Watched) -> None:
    other = dataclasses.replace(watched.run, name="other")
    append_run(copy, other)
    with pytest.raises(OutputExistsError, match="already has a run 'other'"):
        append_run(copy, other)
    changed = dataclasses.replace(other, initial_value=other.initial_value + 1)
    append_run(copy, changed, replace=True)
    assert np.array_equal(read_run(copy, "other").initial_value, changed.initial_value)
    assert np.array_equal(read_run(copy, NAME).initial_value, watched.run.initial_value)
    append_run(copy, other, fresh=True)
    assert list_runs(copy) == ["other"]
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


@pytest.mark.parametrize("append", [False, True])
def test_force_overwrites_the_file_or_with_append_the_run(append: bool, copy: Path, tiny_data: ImageData) -> None:
    append_run(copy, dataclasses.replace(read_run(copy, NAME), name="other"))
    generate(dataclasses.replace(CONFIG, **SMALL), tiny_data, copy, append=append, force=True)
    assert list_runs(copy) == (["other", NAME] if append else [NAME])
    assert read_run(copy, NAME).num_rounds == 2


def test_a_newer_file_is_not_touched(copy: Path, watched: Watched) -> None:
    with h5py.File(copy, "a") as file:
        file.attrs["schema_version"] = 2
    before = copy.read_bytes()
    for replace in (False, True):
        with pytest.raises(FileFormatError, match="schema version 2, newer than 1"):
            append_run(copy, watched.run, replace=replace)
    assert copy.read_bytes() == before


def test_a_full_disk_leaves_the_old_file(copy: Path) -> None:
    before = copy.read_bytes()
    code = """
        import dataclasses, resource, sys
        from pathlib import Path
        from autosparse.errors import AutoSparseError
        from autosparse.scorer.dataset import read_run
        from data_gen import append_run
        path = Path(sys.argv[1])
        run = dataclasses.replace(read_run(path, sys.argv[2]), name="more")
        limit = path.stat().st_size + 50_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            append_run(path, run)
        except AutoSparseError as error:
            print(error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(copy), NAME], capture_output=True, text=True, timeout=60
    )
    assert result.stdout.startswith(f"no space left to write {copy}:"), result.stderr
    assert copy.read_bytes() == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


# Interruption -------------------------------------------------------------------------------------------------------

RESUMED = dataclasses.replace(
    CONFIG, criterion="snip", rewind_steps=3, train=dataclasses.replace(CONFIG.train, epochs=2)
)


@pytest.fixture(scope="module")
def uninterrupted(tiny_data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("whole") / "a.h5"
    generate(RESUMED, tiny_data, path)
    return contents(path)


class Kill(Callback):
    """Stops at a step or an epoch of its round."""

    def __init__(self, step: int | None = None, epoch: int | None = None) -> None:
        self._step, self._epoch = step, epoch

    def on_step(self, step: int, steps: int) -> None:
        if step == self._step:
            raise KilledError

    def on_epoch(self, history: list[EpochRecord]) -> None:
        if history[-1].epoch == self._epoch:
            raise KilledError


def kill_in(round_index: int, callback: Callback) -> Callable[[int], list[Callback]]:
    return lambda index: [callback] if index == round_index else []


def kill_after(rounds: int) -> Callable[[list[dict[str, Any]]], None]:
    def on_round(done: list[dict[str, Any]]) -> None:
        if len(done) == rounds:
            raise KilledError

    return on_round


INTERRUPTIONS: dict[str, dict[str, Any]] = {
    "first step": {"callbacks": kill_in(0, Kill(step=4))},
    "first epoch": {"callbacks": kill_in(1, Kill(epoch=0))},
    "second epoch, in the middle": {"callbacks": kill_in(1, Kill(step=15))},
    "last epoch of a round": {"callbacks": kill_in(1, Kill(epoch=1))},
    "between rounds": {"on_round": kill_after(1)},
    "after the last round": {"on_round": kill_after(3)},
}


@pytest.mark.parametrize("moment", list(INTERRUPTIONS))
def test_a_resumed_run_ends_bit_equal(
    moment: str, uninterrupted: dict[str, Any], tiny_data: ImageData, tmp_path: Path
) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(KilledError):
        generate(RESUMED, tiny_data, path, **INTERRUPTIONS[moment])
    assert not path.exists()
    torch.manual_seed(99)
    generate(RESUMED, tiny_data, path, resume=True)
    assert contents(path) == uninterrupted
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5"]


def interrupt(data: ImageData, path: Path, config: IRPConfig = CONFIG) -> None:
    with pytest.raises(KilledError):
        generate(config, data, path, on_round=kill_after(1))


def test_unfinished_work_is_neither_overwritten_nor_continued_unasked(tiny_data: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    interrupt(tiny_data, path)
    before = {entry.name: entry.read_bytes() for entry in work_folder(path).iterdir()}
    for append in (False, True):
        with pytest.raises(OutputExistsError, match=r"a\.h5\.work holds an unfinished run: continue it with --resume"):
            generate(CONFIG, tiny_data, path, append=append)
    assert {entry.name: entry.read_bytes() for entry in work_folder(path).iterdir()} == before


def test_force_discards_unfinished_work(tiny_data: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    interrupt(tiny_data, path)
    told: list[int] = []
    config = dataclasses.replace(CONFIG, **SMALL, seed=4)
    generate(config, tiny_data, path, force=True, on_round=lambda rounds: told.append(len(rounds)))
    assert told == [1, 2]
    assert list_runs(path) == ["resnet20_digits_seed4"]
    assert not work_folder(path).exists()


def test_resuming_tells_only_of_what_is_left(tiny_data: ImageData, tmp_path: Path, watched: Watched) -> None:
    path = tmp_path / "a.h5"
    interrupt(tiny_data, path)
    told: list[int] = []
    generate(CONFIG, tiny_data, path, resume=True, on_round=lambda rounds: told.append(len(rounds)))
    assert told == [2, 3]
    assert contents(path) == contents(watched.path)


def test_resume_starts_a_run_or_returns_a_finished_one(tiny_data: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    config = dataclasses.replace(CONFIG, **SMALL)
    first = generate(config, tiny_data, path, resume=True)
    assert list_runs(path) == [NAME]
    before = path.read_bytes()
    again = generate(config, tiny_data, path, resume=True)
    assert np.array_equal(first.rounds_survived, again.rounds_survived)
    assert path.read_bytes() == before
    with pytest.raises(OutputExistsError, match="exists"):
        generate(dataclasses.replace(config, seed=9), tiny_data, path, resume=True)


def test_resuming_with_other_settings_names_the_difference(tiny_data: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    interrupt(tiny_data, path)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"rounds": 4}, r"config\.rounds was 3 and is now 4"),
        ({"seed": 1}, r"config\.seed was 0 and is now 1"),
        ({"model_args": {"width": 0.5}}, r"config\.model_args\.width was 0\.25 and is now 0\.5"),
        ({"train": dataclasses.replace(CONFIG.train, lr=0.2)}, r"config\.train\.lr was 0\.1 and is now 0\.2"),
    ]
    for change, message in changes:
        with pytest.raises(AutoSparseError, match=f"cannot resume from .*{message}"):
            generate(dataclasses.replace(CONFIG, **change), tiny_data, path, resume=True)
    other = dataclasses.replace(tiny_data, _provenance={**tiny_data.describe(), "seed": 5})
    with pytest.raises(AutoSparseError, match=r"data\.seed was 0 and is now 5"):
        generate(CONFIG, other, path, resume=True)
    generate(CONFIG, tiny_data, path, resume=True)
    assert list_runs(path) == [NAME]


def test_damaged_work_is_named(tiny_data: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    interrupt(tiny_data, path)
    progress = work_folder(path) / "progress.safetensors"
    progress.write_bytes(progress.read_bytes()[:-3])
    with pytest.raises(FileFormatError, match=r"progress\.safetensors is damaged"):
        generate(CONFIG, tiny_data, path, resume=True)


# What can go wrong --------------------------------------------------------------------------------------------------


def test_divergence_names_the_round_and_can_be_resumed_from(
    tiny_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.h5"
    train = autosparse.rewinding.loop.train

    def poisoned(model: nn.Module, *args: Any, identity: dict[str, Any], **kwargs: Any) -> list[EpochRecord]:
        if identity["round"] == 1:
            with torch.no_grad():
                next(model.parameters()).fill_(torch.nan)
        return train(model, *args, identity=identity, **kwargs)

    monkeypatch.setattr(autosparse.rewinding.loop, "train", poisoned)
    with pytest.raises(DivergedError, match=r"^round 2 of 3: the loss became nan in epoch 1 of 1"):
        generate(CONFIG, tiny_data, path)
    monkeypatch.setattr(autosparse.rewinding.loop, "train", train)
    told: list[int] = []
    generate(CONFIG, tiny_data, path, resume=True, on_round=lambda rounds: told.append(len(rounds)))
    assert told == [2, 3]


@pytest.mark.parametrize(("steps", "epochs"), [(10, 1), (500, 1), (20, 2)])
def test_rewinding_past_the_end_is_refused(steps: int, epochs: int, tiny_data: ImageData, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, rewind_steps=steps, train=dataclasses.replace(CONFIG.train, epochs=epochs))
    with pytest.raises(AutoSparseError, match=f"rewind-steps is {steps}, but a round has {10 * epochs} steps"):
        generate(config, tiny_data, tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"rounds": 65_536}, "rounds is 65536"),
        ({"final_density": 0.0}, "final-density is 0.0"),
        ({"final_density": 1.0}, "final-density is 1.0"),
        ({"final_density": float("nan")}, "final-density is nan"),
        ({"rewind_steps": -1}, "rewind-steps is -1"),
        ({"gradient_images": 0}, "gradient-images is 0"),
        ({"train": TrainConfig(epochs=0)}, "epochs is 0: every round needs"),
        ({"schedule": "counts"}, "unknown IRP schedule 'counts': did you mean count"),
        ({"criterion": "autos"}, "unknown IRP criterion 'autos'"),
        ({"scope": "layers"}, "unknown IRP scope 'layers': did you mean layer"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoSparseError, match=message):
        IRPConfig(**settings)


def alter_version(group: h5py.File) -> None:
    group.attrs["schema_version"] = 2


def alter_kind(group: h5py.File) -> None:
    group.attrs["kind"] = "something"


def drop_kind(group: h5py.File) -> None:
    del group.attrs["kind"]


def drop_column(group: h5py.File) -> None:
    del group[f"runs/{NAME}/weights/initial_value"]


def shorten_column(group: h5py.File) -> None:
    del group[f"runs/{NAME}/weights/initial_value"]
    group[f"runs/{NAME}/weights/initial_value"] = np.zeros(7, np.float32)


def retype_column(group: h5py.File) -> None:
    del group[f"runs/{NAME}/weights/rounds_survived"]
    group[f"runs/{NAME}/weights/rounds_survived"] = np.zeros(TOTAL, np.int64)


def survive_too_long(group: h5py.File) -> None:
    group[f"runs/{NAME}/weights/rounds_survived"][5] = 4


def break_config(group: h5py.File) -> None:
    group[f"runs/{NAME}"].attrs["config"] = "{"


def list_as_config(group: h5py.File) -> None:
    group[f"runs/{NAME}"].attrs["config"] = "[1]"


def numbers_as_layers(group: h5py.File) -> None:
    del group[f"runs/{NAME}/layers"]
    group[f"runs/{NAME}/layers"] = np.arange(5)


def numbers_as_names(group: h5py.File) -> None:
    del group[f"runs/{NAME}/layers"]
    group[f"runs/{NAME}/layers"] = np.array([(1, 2)], dtype=[("name", "i4"), ("kind", "i4")])


def shift_layers(group: h5py.File) -> None:
    table = group[f"runs/{NAME}/layers"][:]
    table["offset"][3] += 1
    group[f"runs/{NAME}/layers"][:] = table


def bomb(group: h5py.File) -> None:
    """A table of a terabyte in a few bytes of file."""
    del group[f"runs/{NAME}/rounds"]
    group.create_dataset(f"runs/{NAME}/rounds", shape=(10**11,), dtype="f8", chunks=(10**6,), compression="gzip")


def bomb_of_layers(group: h5py.File) -> None:
    dtype = group[f"runs/{NAME}/layers"].dtype
    del group[f"runs/{NAME}/layers"]
    group.create_dataset(f"runs/{NAME}/layers", shape=(10**10,), dtype=dtype, chunks=(10**5,), compression="gzip")


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (alter_version, "schema version 2, newer than 1 which this release reads: upgrade"),
        (alter_kind, "no autosparse-irp file .*'something'"),
        (drop_kind, "no autosparse-irp file .*None"),
        (drop_column, "damaged"),
        (shorten_column, r"initial_value is float32\[7\], not float32\[17132\]"),
        (retype_column, "rounds_survived is int64"),
        (survive_too_long, "survived more rounds than there were"),
        (break_config, "damaged"),
        (list_as_config, "damaged"),
        (numbers_as_layers, "damaged"),
        (numbers_as_names, "damaged"),
        (shift_layers, "layers do not lie one after the other"),
        (bomb, "more than the file can hold"),
        (bomb_of_layers, "more than the file can hold"),
    ],
)
def test_altered_files_are_refused(alter: Callable[[h5py.File], None], message: str, copy: Path) -> None:
    with h5py.File(copy, "a") as file:
        alter(file)
    with pytest.raises(FileFormatError, match=rf"copy\.h5.*{message}"):
        read_run(copy, NAME)


def test_truncated_foreign_and_absent_files_are_refused(copy: Path, tmp_path: Path) -> None:
    whole = copy.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], b"PK\x03\x04" + bytes(1000)):
        copy.write_bytes(content)
        for read in (list_runs, lambda path: read_run(path, NAME)):
            with pytest.raises(FileFormatError, match=r"copy\.h5 is damaged, truncated or no IRP file"):
                read(copy)
    with pytest.raises(FileFormatError, match=r"absent\.h5 does not exist"):
        list_runs(tmp_path / "absent.h5")
