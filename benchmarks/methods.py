"""Seconds and peak memory to prune with every method that prunes at initialisation, beside SNIP and a training step.

    python benchmarks/methods.py

Each measurement is a process of its own: it builds the network, reads the images and prunes once. Seconds are those of
scoring and selecting; "memory" is the rise of the process's peak resident memory meanwhile (on a GPU, of the
allocator's peak), over that of one training step with a batch of as many images as are scored. Methods take turns, so
that a machine that slows down for a while slows all alike.

The last table is about micro-batches: what it takes to score ResNet-50 at 224 pixels by second derivatives, over a
training step with the batch that is scored.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from functools import partial

import torch
import torch.nn.functional as F
from common import Spread, interleave, options, parse, ratios, table
from torch import Tensor, nn

from autosparse.cost import Cost, measured
from autosparse.models import create_model, seeded_model
from autosparse.pruning import prune
from autosparse.recipes import list_methods, recipe_of
from autosparse.triggers.init import AtInit

NETWORKS = ("resnet18", "vgg16")
SPARSITY = 0.98
STEP = "training step"
LARGE = "torchvision:resnet50"
#: CTS is a search whose cost is proportional to its steps: a sixteenth of them tells it.
OPTIONS = {name: {"steps": 100, "warm_steps": 20} for name in ("cts", "autos-cts")}


def methods() -> list[str]:
    return [name for name in list_methods() if isinstance(recipe_of(name).when, AtInit)]


def network(name: str, device: str) -> nn.Module:
    if ":" in name:
        torch.manual_seed(0)
        return create_model(name, num_classes=1000).to(device)
    return seeded_model(name, seed=0, num_classes=10).to(device)


def images(name: str, count: int, device: str) -> tuple[Tensor, Tensor]:
    """Made-up images: their values do not matter to the cost."""
    size, classes = (224, 1000) if ":" in name else (32, 10)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, size, size, generator=random)
    return x.to(device), torch.randint(classes, (count,), generator=random).to(device)


def cost_here(name: str, method: str, count: int, micro_batch: int, device: str) -> Cost:
    """The cost of ``method``, or of a step of training, in this process; needs one without a past."""
    model, (x, y) = network(name, device), images(name, count, device)
    F.cross_entropy(model.eval()(x[:2]), y[:2])  # what is loaded and allocated once
    model.train()
    if method == STEP:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with measured(device) as cost:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return cost
    with warnings.catch_warnings(), measured(device) as cost:
        warnings.simplefilter("ignore")
        prune(model, [(x, y)], sparsity=SPARSITY, method=method, options=OPTIONS.get(method), micro_batch=micro_batch)
    return cost


def cost(name: str, method: str, count: int, micro_batch: int, threads: int, device: str) -> tuple[float, float]:
    """Seconds and MiB, in a process of its own."""
    given = ["--one", name, method, "--images", str(count), "--micro-batch", str(micro_batch)]
    command = [sys.executable, __file__, *given, "--threads", str(threads), "--device", device, "--bare"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak / 2**20


def costs(
    name: str, chosen: list[str], count: int, micro_batch: int, repeats: int, threads: int, device: str
) -> dict[str, list[tuple[float, float]]]:
    """Per method the repeats' seconds and MiB."""
    found: dict[str, list[tuple[float, float]]] = {method: [] for method in chosen}

    def one(method: str) -> float:
        found[method].append(cost(name, method, count, micro_batch, threads, device))
        return found[method][-1][0]

    interleave({method: partial(one, method) for method in chosen}, repeats, warm_up=False)
    return found


def rows_of(found: dict[str, list[tuple[float, float]]]) -> list[list[object]]:
    seconds = {method: [each[0] for each in values] for method, values in found.items()}
    memory = {method: [each[1] for each in values] for method, values in found.items()}
    return [
        [
            f"{method}, 1/16 of its steps" if method in OPTIONS else method,
            Spread.of(seconds[method]),
            ratios(seconds[method], seconds["snip"]) if "snip" in found else "",
            Spread.of(memory[method]),
            ratios(memory[method], memory[STEP]),
        ]
        for method in found
    ]


def main() -> None:
    parser = options(__doc__, repeats=3)
    parser.add_argument("--images", type=int, default=128, help="images that are scored, in one batch")
    parser.add_argument("--micro-batch", type=int, default=128, help="images of one backward pass")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--methods", nargs="+", default=methods(), choices=methods())
    parser.add_argument("--large-images", type=int, default=64, help="images of ResNet-50's batch")
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "METHOD"), help="only measure this, in this process")
    parsed = parse(parser)
    if parsed.one:
        network_name, method = parsed.one
        result = cost_here(network_name, method, parsed.images, parsed.micro_batch, parsed.device)
        print(json.dumps([result.seconds, result.peak_bytes]))
        return
    columns = ["", "s", "over SNIP", "memory, MiB", "over a training step"]
    common = (parsed.repeats, parsed.threads, parsed.device)
    for name in parsed.networks:
        found = costs(name, [STEP, *parsed.methods], parsed.images, parsed.micro_batch, *common)
        print(f"## Pruning {name} with every method\n")
        print(f"Sparsity {SPARSITY}, {parsed.images} images of 32x32 pixels; {parsed.repeats} repeats in turn.\n")
        print(table(columns, rows_of(found)), flush=True)
    count = parsed.large_images
    print("## Scoring ResNet-50 at 224 pixels\n")
    print(f"{count} images in micro-batches; {parsed.repeats} repeats in turn.\n")
    rows: list[list[object]] = []
    for micro_batch in (count // 4, count // 16):
        found = costs(LARGE, [STEP, "snip", "grasp", "prospr"], count, micro_batch, *common)
        for what, seconds, _, memory, over in rows_of(found):
            if what != STEP:
                rows.append([f"{what}, micro-batches of {micro_batch}", seconds, memory, over])
            elif not rows:
                rows.append([f"{STEP}, {count} images", seconds, memory, over])
    print(table(["", "s", "memory, MiB", "over a training step"], rows))


if __name__ == "__main__":
    main()
