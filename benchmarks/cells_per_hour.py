"""How many cells of a benchmark are done in an hour: one at a time with all cores, and several at once.

    python benchmarks/cells_per_hour.py

Runs ``autosparse bench`` on a small grid of its own, start of the processes included. On a GPU the processes of
``--jobs`` share it; on the CPU each has its share of the cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from common import Spread, interleave, options, parse, ratios, seconds, table

GRID = """
models: [{{name: {model}, args: {{width: {width}}}}}]
datasets: [{{name: digits, image_size: {size}}}]
methods: [random, snip]
densities: [0.1, 0.02]
seeds: [1, 2]
train: {{epochs: {epochs}}}
score_images: 256
"""
CELLS = 8


def rate(jobs: int, grid: str, device: str) -> float:
    """Cells an hour."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grid.yaml"
        path.write_text(grid)
        command = [sys.executable, "-m", "autosparse", "bench", str(path), "--out", f"{folder}/results"]
        command += ["--jobs", str(jobs), "--device", device, "--data-dir", f"{folder}/data"]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        taken = seconds(lambda: subprocess.run(command, check=True, capture_output=True, env=environment))
    return 3600 * CELLS / taken


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = options(__doc__, repeats=3)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2, 4, 8, 16] if cuda else [1, 2])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4 if cuda else 2)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parsed = parse(parser)
    grid = GRID.format(model=parsed.model, width=parsed.width, size=parsed.image_size, epochs=parsed.epochs)
    variants = {str(jobs): partial(rate, jobs, grid, parsed.device) for jobs in parsed.jobs}
    rates = interleave(variants, parsed.repeats, warm_up=False)
    print("## Cells per hour\n")
    print(
        f"{CELLS} cells of {parsed.model} (width {parsed.width:g}) on digits of {parsed.image_size} pixels, "
        f"{parsed.epochs} epochs each, on {parsed.device}; {parsed.repeats} repeats in turn.\n"
    )
    first = str(parsed.jobs[0])
    rows = [[jobs, Spread.of(rates[jobs]), ratios(rates[jobs], rates[first])] for jobs in rates]
    print(table(["jobs", "cells/h", f"over {first}"], rows))


if __name__ == "__main__":
    main()
