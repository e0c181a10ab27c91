"""Scorers that lack something: a feature, a task of the search, all tasks but one; or fitted to tickets instead.

    python benchmarks/leave_one_out.py --scorer pretrained/cifar10-digits.json --out runs/leave-one-out \
        --irp runs/resnet20-cifar10.h5 runs/short.h5
    autosparse bench benchmarks/grids/cifar10-leave-one-out.yaml --out runs/cifar10-leave-one-out --jobs 2

The first command takes seconds for scorers of trials and minutes for those of IRP files; the second trains what they
prune. ``without-FEATURE`` has the lowest prediction of all scorers of the same trials that ignore the feature,
``without-task-N`` that of the trials on the other tasks, ``only-task-N`` that of the trials on this one.
``FILE-LOSS`` is fitted to the runs of an IRP file, on the features of ``state``, by each loss of ``autosparse
train-scorer``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autosparse.provenance import provenance
from autosparse.scorer.dataset import list_runs, read_run
from autosparse.scorer.fit import FitConfig, fit_scorer
from autosparse.scorer.losses import LOSSES
from autosparse.scorer.search import SearchConfig, Surrogate, Trial, scorer_of
from autosparse.scorer.store import save_scorer
from autosparse.scorer.trial_file import TrialFile
from autosparse.scorer.trials import Task


def search_of(card: Path) -> tuple[SearchConfig, list[Trial]]:
    """The search that a card tells of, and its trials in order, from the file beside it."""
    settings: dict[str, Any] = json.loads(card.read_text(encoding="utf-8"))["search"]
    tasks = tuple(Task(**task) for task in settings.pop("tasks"))
    config = SearchConfig(tasks, **settings)
    return config, TrialFile(card.with_suffix(".jsonl"), config).in_order()


def from_trials(config: SearchConfig, trials: Sequence[Trial], out: Path) -> None:
    surrogate = Surrogate(trials, config.names, config.seed)
    found = {f"without-{slug(name)}": surrogate.best(without=name) for name in config.names}
    for task in range(len(config.tasks)):
        parts = {"without": [t for t in trials if t.task != task], "only": [t for t in trials if t.task == task]}
        for name, part in parts.items():
            found[f"{name}-task-{task + 1}"] = Surrogate(part, config.names, config.seed).best()
    for name, weights in found.items():
        save_scorer(
            out / f"{name}.safetensors", scorer_of(weights.tolist(), config.features), {"provenance": provenance()}
        )
        print(name)


def from_tickets(path: Path, out: Path) -> None:
    runs = [read_run(path, name) for name in list_runs(path)]
    for loss in LOSSES.names():
        fitted = fit_scorer(runs, replace(FitConfig(features="state"), loss=loss))
        save_scorer(out / f"{path.stem}-{loss}.safetensors", fitted.scorer, fitted.card)
        print(f"{path.stem}-{loss}")


def slug(name: str) -> str:
    """``log|z|`` -> ``log-z``."""
    return re.sub(r"[^a-z]+", "-", name.replace("network's", "").lower()).strip("-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorer", type=Path, required=True, help="card of a search; its trials are beside it")
    parser.add_argument("--irp", type=Path, nargs="*", default=[], help="HDF5 files of autosparse generate")
    parser.add_argument("--out", type=Path, required=True, help="folder for the scorers")
    parsed = parser.parse_args()
    parsed.out.mkdir(parents=True, exist_ok=True)
    from_trials(*search_of(parsed.scorer), parsed.out)
    for path in parsed.irp:
        from_tickets(path, parsed.out)


if __name__ == "__main__":
    main()
