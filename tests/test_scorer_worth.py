"""What scorers are for: to rank weights of networks they have not seen, and to prune these better than chance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autosparse.cli import main

pytestmark = pytest.mark.slow


def test_a_scorer_of_a_tiny_irp_file_ranks_a_held_out_run_better_than_magnitude_and_snip(tmp_path: Path) -> None:
    runs, scorer = tmp_path / "irp.h5", tmp_path / "scorer.safetensors"
    for seed in (1, 2):
        generate = ["generate", "--model", "resnet20", "--model-arg", "width=0.25", "--dataset", "digits", "--rounds",
                    "4", "--final-density", "0.1", "--epochs", "3", "--lr", "0.5", "--batch-size", "64",
                    "--score-images", "256", "--seed", str(seed), "--device", "cpu", "--out", str(runs)]  # fmt: skip
        assert main(generate + ["--append"] * (seed > 1)) == 0
    assert main(["train-scorer", str(runs), "--holdout", "run", "--out", str(scorer)]) == 0
    held_out = json.loads(scorer.with_suffix(".json").read_text())["held_out"]
    assert held_out["kind"] == "run"
    ranks = {name: figures["spearman"] for name, figures in held_out["figures"].items()}
    assert ranks["scorer"] > max(ranks["magnitude"], ranks["snip"])
