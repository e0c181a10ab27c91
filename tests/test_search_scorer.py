"""``autosparse search-scorer``: a scorer from trials, which are kept, resumed and never trusted."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call, error_of, finish, interrupt, run, start, stop_at

from autosparse.errors import AutoSparseError, FileFormatError
from autosparse.features import NetworkFeatures, feature_set
from autosparse.layers import layers_of, prunable
from autosparse.models import seeded_model
from autosparse.scorer.search import SCALES, SearchConfig, Surrogate, Trial, proposed, scorer_of, search
from autosparse.scorer.store import load_scorer
from autosparse.scorer.trial_file import TrialFile
from autosparse.scorer.trials import Task

TASKS = (Task("resnet20", 0.05), Task("vgg11", 0.02))
CONFIG = SearchConfig(TASKS, (1, 2), generations=3, candidates=4)
NAMES = CONFIG.names
IMAGES: list[dict[str, Any]] = [{"name": "digits"}, {"name": "digits"}]


def bowl(trial: Trial) -> float:
    """A loss that is lowest where the weight of log|z| is 1 and that of log|h| 0.5; tasks and seeds differ."""
    z, h = trial.weights[NAMES.index("log|z|")], trial.weights[NAMES.index("log|h|")]
    return (z - 1) ** 2 + 2 * (h - 0.5) ** 2 + 10 * trial.task + 3 * trial.seed


def measured(wanted: Sequence[Trial]) -> Iterator[tuple[Trial, float]]:
    for trial in reversed(wanted):  # in any order
        yield trial, bowl(trial)


def searched(config: SearchConfig, known: Sequence[Trial] = ()) -> tuple[list[Trial], list[Trial]]:
    """All trials, and the new ones."""
    new: list[Trial] = []
    return search(config, known, measured, new.append)[0], new


@pytest.mark.parametrize("features", ["state", "flow"])
def test_the_scorer_is_the_sum_of_its_features_by_their_slopes(features: str) -> None:
    names = feature_set(features).names
    slopes = np.linspace(-1, 1, len(names))
    weights = slopes * [SCALES[name] for name in names]
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    gradients = {name: torch.ones_like(weight) for name, weight in prunable(model).items()}
    layer = layers_of(model)[3]
    bypass = {name: index / 40 for index, name in enumerate(gradients)}
    seen = NetworkFeatures(features, layers_of(model), prunable(model), gradients, bypass=bypass).layer(layer)
    found = scorer_of(weights.tolist(), features).score(seen)
    expected = (seen.matrix() @ torch.tensor(slopes, dtype=torch.float32)).reshape(layer.shape)
    assert torch.allclose(found, expected, atol=1e-4)


def test_every_candidate_is_tried_on_every_task_with_one_seed() -> None:
    trials = proposed(CONFIG, 0, None)
    assert [(trial.candidate, trial.task, trial.seed) for trial in trials] == [
        (0, 0, 1), (0, 1, 1), (1, 0, 2), (1, 1, 2), (2, 0, 1), (2, 1, 1), (3, 0, 2), (3, 1, 2),
    ]  # fmt: skip
    centre = np.mean([trial.weights for trial in proposed(replace(CONFIG, candidates=400), 0, None)], axis=0)
    assert np.allclose(centre, CONFIG.centre, atol=0.1)


@pytest.fixture(scope="module")
def long_search() -> Surrogate:
    trials, _ = searched(replace(CONFIG, generations=6, candidates=12))
    return Surrogate(trials, NAMES, CONFIG.seed)


def test_trials_close_in_on_the_lowest_loss_whatever_tasks_and_seeds_cost(long_search: Surrogate) -> None:
    best = dict(zip(NAMES, long_search.best(), strict=True))
    assert best["log|z|"] == pytest.approx(1, abs=0.15)
    assert best["log|h|"] == pytest.approx(0.5, abs=0.15)


def test_networks_that_cannot_learn_do_not_set_the_scale() -> None:
    def dead(wanted: Sequence[Trial]) -> Iterator[tuple[Trial, float]]:
        for trial in wanted:
            yield trial, 1e6 if trial.weights[0] < 0.3 else bowl(trial)

    trials, _ = search(replace(CONFIG, generations=6, candidates=12), [], dead, lambda _: None)
    best = dict(zip(NAMES, Surrogate(trials, NAMES, CONFIG.seed).best(), strict=True))
    assert best["log|z|"] == pytest.approx(1, abs=0.2)
    assert best["log|h|"] == pytest.approx(0.5, abs=0.2)


def test_what_a_feature_is_worth_is_the_loss_without_it(long_search: Surrogate) -> None:
    lowest = long_search.at(long_search.best())[0]
    without = {name: long_search.best(without=name) for name in ("log|z|", "relative depth")}
    assert all(weights[NAMES.index(name)] == 0 for name, weights in without.items())
    worth = {name: long_search.at(weights)[0] - lowest for name, weights in without.items()}
    assert worth["log|z|"] > 5 * abs(worth["relative depth"])


def test_a_search_that_was_stopped_makes_the_missing_trials_alone_and_ends_the_same() -> None:
    whole, _ = searched(CONFIG)
    for known in (whole[:3], whole[:8], whole[4:13]):
        again, new = searched(CONFIG, known)
        assert again == whole
        assert len(new) == len(whole) - len(known)
    longer, new = searched(replace(CONFIG, generations=4), whole)
    assert longer[:24] == whole
    assert len(new) == 8


def test_a_task_that_is_added_is_tried_on_the_candidates_that_there_are() -> None:
    whole, _ = searched(CONFIG)
    wider = replace(CONFIG, tasks=(*TASKS, Task("wrn-16-2", 0.02)))
    trials, new = searched(wider, whole)
    assert [trial for trial in trials if trial.task < 2] == whole
    assert sorted((trial.generation, trial.candidate) for trial in new) == [(g, c) for g in range(3) for c in range(4)]
    weights = {(trial.generation, trial.candidate): trial.weights for trial in whole}
    assert all(trial.weights == weights[trial.generation, trial.candidate] for trial in new)


def written(path: Path, trials: int = 5) -> list[Trial]:
    found = [replace(trial, loss=bowl(trial)) for trial in proposed(CONFIG, 0, None)]
    with TrialFile(path, CONFIG).growing(IMAGES) as file:
        for trial in found[:trials]:
            file.append(trial)
    return found[:trials]


def test_trials_come_back_from_their_file(tmp_path: Path) -> None:
    trials = written(tmp_path / "trials.jsonl")
    assert TrialFile(tmp_path / "trials.jsonl", CONFIG).trials == trials
    assert TrialFile(tmp_path / "trials.jsonl", replace(CONFIG, generations=9)).trials == trials


def test_a_file_takes_tasks_that_are_added_and_is_then_of_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    trials = written(path)
    wider = replace(CONFIG, tasks=(*TASKS, Task("wrn-16-2", 0.02)))
    images = [*IMAGES, {"name": "fashion"}]
    before = path.read_bytes()
    with pytest.raises(AutoSparseError, match="trials on other images"), TrialFile(path, wider).growing(images[::-1]):
        pass
    assert path.read_bytes() == before
    with TrialFile(path, wider).growing(images) as file:
        file.append(replace(trials[0], task=2))
    with TrialFile(path, wider).growing(images) as file:
        assert file.trials == [*trials, replace(trials[0], task=2)]
    with pytest.raises(AutoSparseError, match="trials of another search, whose tasks differ"):
        TrialFile(path, CONFIG)


def test_a_file_from_before_a_setting_holds_trials_of_its_usual_value(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    trials = written(path)
    path.write_text(path.read_text().replace(', "epochs": 1', ""))
    assert TrialFile(path, CONFIG).trials == trials
    with pytest.raises(AutoSparseError, match="trials of another search, whose tasks differ"):
        TrialFile(path, replace(CONFIG, tasks=(replace(TASKS[0], epochs=2), TASKS[1])))


def test_a_line_that_a_kill_cut_off_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    trials = written(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    file = TrialFile(path, CONFIG)
    assert file.trials == trials[:-1]
    with file.growing(IMAGES):
        file.append(trials[-1])
    assert path.read_bytes() == whole


def test_trials_of_another_search_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    written(path)
    with pytest.raises(AutoSparseError, match="trials of another search, whose seeds and spread differ"):
        TrialFile(path, replace(CONFIG, seeds=(3,), spread=1.0))
    with pytest.raises(AutoSparseError, match="holds trials on other images"), TrialFile(path, CONFIG).growing([]):
        pass


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        (1, "[]"),
        (1, "{}"),
        (3, "nonsense"),
        (3, json.dumps({"generation": 0, "candidate": 0, "task": 5, "seed": 1, "weights": [0.0] * 12, "loss": 1.0})),
        (3, json.dumps({"generation": 0, "candidate": 0, "task": 0, "seed": 1, "weights": [0.0], "loss": 1.0})),
        (
            3,
            '{"generation": 0, "candidate": 0, "task": 0, "seed": 1, "weights": ['
            + "0.0, " * 11
            + '0.0], "loss": NaN}',
        ),
    ],
)
def test_a_damaged_file_is_named_with_its_line(line: int, becomes: str, tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    written(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[: line - 1], becomes, *lines[line:]]) + "\n")
    with pytest.raises(FileFormatError, match=rf"trials\.jsonl(:{line}: no|.*no autosparse-trials file)"):
        TrialFile(path, CONFIG)


SEARCH = """
tasks:
  - model: {name: resnet20, args: {width: 0.25}}
    dataset: {name: digits, image_size: 8}
    density: 0.1
    train_images: 512
    score_images: 128
seeds: [1, 2]
generations: 2
candidates: 2
"""


@pytest.mark.slow
def test_killed_and_started_again_the_command_writes_the_same_scorer(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(SEARCH)

    def command(name: str) -> tuple[object, ...]:
        return ("search-scorer", "search.yaml", "--trials", f"{name}.jsonl", "--out", f"{name}.safetensors",
                "--jobs", 2, "--device", "cpu")  # fmt: skip

    whole = finish(start(*command("whole"), cwd=tmp_path))
    assert whole.status == 0, whole.err
    process = start(*command("killed"), cwd=tmp_path)
    file = tmp_path / "killed.jsonl"
    stop_at(process, lambda: file.exists() and len(file.read_text().splitlines()) > 1)
    interrupt(process, signal.SIGKILL)
    assert not (tmp_path / "killed.safetensors").exists()
    again = finish(start(*command("killed"), cwd=tmp_path))
    assert again.status == 0, again.err
    assert (tmp_path / "killed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    refitted = run(*command("whole"), "--force", cwd=tmp_path)  # no trial is made again
    assert refitted.status == 0, refitted.err
    scorer = load_scorer(tmp_path / "whole.safetensors")
    assert scorer.scorer.feature_set == "flow"
    assert set(scorer.card["slopes"]) == set(scorer.card["worth"]) == set(NAMES)
    assert all(math.isfinite(value) for value in scorer.card["worth"].values())
    pruned = run("prune", "--model", "vgg11", "--model-arg", "width=0.125", "--scorer", "whole.safetensors",
                 "--sparsity", "0.98", "--on-paths", "--out", "pruned", "--device", "cpu", cwd=tmp_path)  # fmt: skip
    assert pruned.status == 0, pruned.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds: [1, 2]", "sedes: [1, 2]"), "search.yaml:8: unknown key 'sedes'"),
        (("density: 0.1", "density: 2"), "search.yaml:5: tasks[0].density is 2"),
        (("name: resnet20", "name: resnet21"), "search.yaml:3: tasks[0].model.name: unknown model 'resnet21'"),
        (("density: 0.1", "density: 0.1\n    options: {step: 3}"), "search.yaml:6: tasks[0].options: unknown option"),
        (("candidates: 2", "candidates: 2\nstart: {z: 1}"), "search.yaml:11: start: unknown feature 'z'"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_line(
    change: tuple[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search.yaml").write_text(SEARCH.replace(*change))
    command = ("search-scorer", "search.yaml", "--trials", "t.jsonl", "--out", "s.safetensors")
    assert message in error_of(call(capsys, *command))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["search.yaml"]
