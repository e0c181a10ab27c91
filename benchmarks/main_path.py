"""The table of docs/results.md: scorers from IRP data, pruning of unseen networks, training, test accuracy.

    python benchmarks/main_path.py --dataset imagefolder:cifar10-jpeg.tar.gz --irp irp.h5 --out runs/main-path

Runs the commands that a user would type (they are printed) and writes a folder for each cell; finished cells are
skipped, unfinished ones resumed. ``--table`` prints the Markdown table of what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from autosparse.report.tables import markdown_table

NETWORKS: dict[str, list[str]] = {
    "vgg16-w0.25": ["--model", "vgg16", "--model-arg", "width=0.25"],
    "resnet18-w0.25": ["--model", "resnet18", "--model-arg", "width=0.25"],
}
DENSITIES = (0.05, 0.02, 0.01)
METHODS: dict[str, list[str]] = {
    "AutoS, scale-free": ["--method", "autos", "--scorer", "{scale-free}"],
    "AutoS, paper": ["--method", "autos", "--scorer", "{paper}"],
    "AutoS, scale-free, ERK": ["--method", "autos", "--scorer", "{scale-free}", "--budget", "erk"],
    "SNIP": ["--method", "snip"],
    "magnitude": ["--method", "magnitude"],
    "random, ERK": ["--method", "random", "--budget", "erk"],
}


@dataclass(frozen=True)
class Cell:
    """One trained network; ``density`` 1 is the dense one."""

    network: str
    method: str
    density: float
    seed: int

    def folder(self, out: Path) -> Path:
        slug = self.method.replace(", ", "-").lower()
        return out / self.network / f"{slug}-{self.density:g}-seed{self.seed}"


def cells(options: argparse.Namespace) -> list[Cell]:
    """All cells that were asked for: a seed after the other, dense first."""
    found = []
    for seed in options.seeds:
        for network in options.networks:
            if "dense" in options.methods:
                found.append(Cell(network, "dense", 1.0, seed))
            pruned = [method for method in options.methods if method != "dense"]
            found += [Cell(network, method, density, seed) for density in options.densities for method in pruned]
    return found


def command(*arguments: str) -> None:
    print("autosparse", " ".join(arguments), flush=True)
    subprocess.run([sys.executable, "-m", "autosparse", *arguments], check=True)


def run_cell(cell: Cell, options: argparse.Namespace) -> None:
    """Prune and train one cell, unless its result is there."""
    folder = cell.folder(options.out)
    images = ["--dataset", options.dataset, "--data-dir", str(options.data_dir)]
    if (folder / "trained" / "summary.json").exists():
        return
    training = ["--epochs", str(options.epochs), "--seed", str(cell.seed), "--data-dir", str(options.data_dir)]
    training += ["--out", str(folder / "trained"), "--resume"]
    if cell.method == "dense":
        command("train", "--dense", *NETWORKS[cell.network], "--dataset", options.dataset, *training)
        return
    scorers = {name: str(options.out / f"{name}.safetensors") for name in ("scale-free", "paper")}
    method = [scorers.get(part.strip("{}"), part) if part.startswith("{") else part for part in METHODS[cell.method]]
    if not (folder / "pruned" / "summary.json").exists():
        sparsity = ["--sparsity", f"{1 - cell.density:.6g}", "--seed", str(cell.seed)]
        pruned = ["--out", str(folder / "pruned")]
        connected = ["--keep-connected"] if options.keep_connected else []
        command("prune", *NETWORKS[cell.network], *method, *sparsity, *connected, *images, *pruned)
    command("train", "--masks", str(folder / "pruned"), *training)


def table(options: argparse.Namespace) -> str:
    """Mean ± standard deviation of the test accuracy in percent, with the number of seeds."""
    tables = []
    for network in options.networks:
        rows = []
        for method in options.methods:
            columns = [1.0] * len(options.densities) if method == "dense" else options.densities
            groups = [[Cell(network, method, density, seed) for seed in options.seeds] for density in columns]
            rows.append([method, *(_summary(options.out, group) for group in groups)])
        tables.append(markdown_table([network, *(f"{density:.0%} density" for density in options.densities)], rows))
    return "\n".join(tables)


def _summary(out: Path, group: list[Cell]) -> str:
    files = [cell.folder(out) / "trained" / "summary.json" for cell in group]
    values = [100 * json.loads(file.read_text())["test_accuracy"] for file in files if file.exists()]
    if not values:
        return "not run"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} ({len(values)})"


def main() -> None:
    """Parse, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--irp", type=Path, nargs="+", default=[], help="files of 'autosparse generate'")
    parser.add_argument("--out", type=Path, default=Path("runs/main-path"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--methods", nargs="+", default=["dense", *METHODS], choices=["dense", *METHODS])
    parser.add_argument("--densities", type=float, nargs="+", default=list(DENSITIES))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--keep-connected", action="store_true", help="prune with that option; use another --out")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args()
    if not options.table:
        for features in ("scale-free", "paper"):
            scorer = options.out / f"{features}.safetensors"
            if not scorer.exists():
                files = [str(path) for path in options.irp]
                command("train-scorer", *files, "--features", features, "--out", str(scorer))
        for cell in cells(options):
            run_cell(cell, options)
    print(table(options))


if __name__ == "__main__":
    main()
