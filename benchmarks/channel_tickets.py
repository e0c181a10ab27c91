"""Is there anything to learn about single channels? Structured rewind pruning against other channels of its widths.

    python benchmarks/channel_tickets.py --dataset imagefolder:cifar10-jpeg.tar.gz --out runs/channel-tickets

Rounds of training and pruning by the L2 norm of filters, each from the initial weights of the channels that are left,
give tickets: what a scorer of channels that has learned such rounds could hope for at best. Beside a ticket, two more
networks of its widths are trained: one of random channels of the same initial network, and one of fresh weights. Where
all three end alike, it does not matter which channels stay, and learning it gains nothing.

Finished networks are not trained again. ``--table`` prints the Markdown table of what is there.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from common import table
from torch import nn

from autosparse import plan_shrink
from autosparse.bench.statistics import estimate, paired_difference
from autosparse.channels.coupling import couple
from autosparse.channels.groups import Coupling
from autosparse.channels.plan import Selection
from autosparse.data import ImageData, load_data
from autosparse.files import write_json
from autosparse.models import seeded_model
from autosparse.seeding import generator
from autosparse.shrinking import apply_selection
from autosparse.training import TrainConfig, evaluate, train

KINDS = ("ticket", "random channels", "fresh weights")


def path_of(out: Path, seed: int, share: float, kind: str) -> Path:
    return out / f"seed{seed}" / f"{share:.3f}-{kind.replace(' ', '-')}.json"


def trained(model: nn.Module, data: ImageData, epochs: int, seed: int, path: Path) -> nn.Module:
    """A copy of ``model`` after training; its test accuracy is in ``path``, its state beside it."""
    model = copy.deepcopy(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = path.with_suffix(".safetensors")  # a finished one is read
    train(model, data, TrainConfig(epochs=epochs, seed=seed), checkpoint=checkpoint, validate=False)
    if not path.exists():
        write_json(path, {"test_accuracy": evaluate(model, data.test)})
    return model


def random_channels(coupling: Coupling, widths: Mapping[str, int], seed: int) -> Selection:
    """Random channels of a network, ``widths`` of each group."""
    stream = generator(seed, "random channels")
    kept = {}
    for group in coupling:
        kept[group.name] = np.zeros(group.width, dtype=bool)
        kept[group.name][torch.randperm(group.width, generator=stream)[: widths[group.name]].numpy()] = True
    return Selection(widths, kept)


def run(options: argparse.Namespace, data: ImageData, seed: int) -> None:
    """All rounds of one seed, and the other networks of the widths in question."""
    initial = seeded_model(
        options.model, seed=seed, num_classes=data.num_classes, in_channels=data.channels, width=options.width
    )
    example = next(iter(data.train.batches(1, limit=1)))[0]
    coupling = couple(initial, example)
    small = initial  # at the initial weights of what is left
    network = trained(small, data, options.epochs, seed, path_of(options.out, seed, 1.0, "ticket"))
    left = 1.0
    for share in shares_of(options):
        plan = plan_shrink(network, example=example, method="l2", flops=min(1.0, share / left))
        left *= plan.summary.reached["flops"]
        small, widths = plan.apply(small), plan.selection.widths
        network = trained(small, data, options.epochs, seed, path_of(options.out, seed, share, "ticket"))
        if share in options.shares:
            others = {"random channels": random_channels(coupling, widths, seed)}
            others["fresh weights"] = Selection(widths, None)
            for kind, selection in others.items():
                other = apply_selection(initial, coupling, selection, seed)
                trained(other, data, options.epochs, seed, path_of(options.out, seed, share, kind))


def shares_of(options: argparse.Namespace) -> list[float]:
    """The shares after each round: those in question, and one between two of them."""
    found, before = [], 1.0
    for share in sorted(options.shares, reverse=True):
        found += [(before * share) ** 0.5, share]
        before = share
    return found


def summary(options: argparse.Namespace) -> str:
    """Test accuracies, and how much better the ticket is."""
    rows: list[list[object]] = []
    for share in sorted(options.shares, reverse=True):
        found = {
            kind: {
                seed: json.loads(path.read_text())["test_accuracy"]
                for seed in options.seeds
                if (path := path_of(options.out, seed, share, kind)).exists()
            }
            for kind in KINDS
        }
        for kind, accuracies in found.items():
            if accuracies:
                mean = estimate(list(accuracies.values()))
                rows.append([f"{share:.0%}", kind, _points(mean.mean, mean.half_width), ""])
                difference = paired_difference(found["ticket"], accuracies) if kind != "ticket" else None
                if difference is not None:
                    rows[-1][3] = _points(difference.estimate.mean, difference.estimate.half_width, "+")
    return table(["FLOPs", "channels", "test accuracy", "ticket less this"], rows)


def _points(mean: float, half_width: float | None, sign: str = "") -> str:
    return f"{100 * mean:{sign}.2f}" + ("" if half_width is None else f" ± {100 * half_width:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("runs/channel-tickets"))
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25], help="of the FLOPs, in question")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=6, help="of every training")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args()
    if not options.table:
        data = load_data(options.dataset, data_dir=options.data_dir)
        for seed in options.seeds:
            run(options, data, seed)
    print(summary(options))


if __name__ == "__main__":
    main()
