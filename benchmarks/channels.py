"""What removing channels takes, and what it gives.

    python benchmarks/channels.py

The first table: seconds to choose the widths of ResNet-50 at 224 pixels, from a plain network to the plan. Tracing,
checking and counting are the same for all methods. "Beyond gradients" is all that a method takes less the scores of
single weights by the same images, which need the same backward passes.

The second: how much faster networks with half of the FLOPs are, dense and small in turn. The share of the FLOPs'
reduction that is found again in the latency is 1 where time falls as FLOPs do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from common import Spread, interleave, options, parse, seconds, table
from torch import Tensor, nn

from autosparse.channels.costs import costs_of
from autosparse.channels.coupling import couple
from autosparse.criteria import mean_gradient, score
from autosparse.measuring import measure
from autosparse.models import create_model, seeded_model
from autosparse.shrinking import plan_shrink

SHARE = 0.5
LARGE = "torchvision:resnet50"
#: Methods with what scores single weights by the same backward passes; None where nothing is differentiated.
METHODS = {
    "precrop": None, "uniform-width": None, "l1": None, "l2": None, "fpgm": None, "bn-scale": None, "afie": None,
    "taylor": "gradients", "snip-s": "gradients", "autos-s": "gradients", "grasp-s": "grasp", "crop-s": "crop",
}  # fmt: skip
SMALL = ("vgg16", "resnet18")
SHRINKERS = ("uniform-width", "precrop", "l1")

Batches = list[tuple[Tensor, Tensor]]


def large() -> nn.Module:
    """The network, with scales of batch norm that differ as in a trained one: there is a method that goes by them."""
    torch.manual_seed(0)
    model = create_model(LARGE, num_classes=1000)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def images(count: int) -> tuple[Tensor, Tensor]:
    """Made-up images: their values do not matter to the cost."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 224, 224, generator=random), torch.randint(1000, (count,), generator=random)


def passes(model: nn.Module, what: str, batches: Batches) -> None:
    """The backward passes of a criterion, as it makes them for single weights."""
    if what == "gradients":
        mean_gradient(model, batches, F.cross_entropy)
    else:
        score(what, model, batches=batches, loss_fn=F.cross_entropy)


def widths(count: int, repeats: int) -> str:
    model, (x, y) = large(), images(count)
    batches = [(x, y)]
    coupling = couple(model, x)
    variants: dict[str, Callable[[], float]] = {
        "tracing and checking": lambda: seconds(lambda: couple(model, x)),
        "counting": lambda: seconds(lambda: costs_of(model, coupling, x)),
    }
    for method, what in METHODS.items():
        call = partial(plan_shrink, model, batches, method=method, flops=SHARE)
        variants[method] = partial(seconds, call)
        if what is not None and f"passes of {what}" not in variants:
            variants[f"passes of {what}"] = partial(seconds, partial(passes, model, what, batches))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = interleave(variants, repeats, warm_up=False)
    rows: list[list[object]] = []
    for name, times in found.items():
        if name.startswith("passes"):
            continue
        what = METHODS.get(name)
        beyond = times if what is None else [a - b for a, b in zip(times, found[f"passes of {what}"], strict=True)]
        rows.append([name, Spread.of(times), Spread.of(beyond)])
    return table(["", "s", "beyond gradients, s"], rows)


def speed(networks: tuple[str, ...], batch: int, length: float) -> str:
    rows: list[list[object]] = []
    for name in networks:
        dense = seeded_model(name, seed=0, num_classes=10)
        for method in SHRINKERS:
            example = torch.zeros(1, 3, 32, 32)
            plan = plan_shrink(dense, example=example, method=method, flops=SHARE)
            small = plan.apply(dense)
            found = measure(
                {"small": small, "dense": dense}, (3, 32, 32), batch_sizes=[1, batch], seconds=length, memory=False
            )
            assert found.speedup is not None
            flops = plan.summary.reached["flops"]
            latency, step = found.speedup.latency[batch], found.speedup.step
            one = found.speedup.latency[1]
            gain = (1 - 1 / latency.median) / (1 - flops)
            speeds = [f"{s.median:.2f} ({s.low:.2f}–{s.high:.2f})" for s in (one, latency, step)]
            rows.append([name, method, f"{flops:.1%}", f"{plan.summary.reached['params']:.1%}", *speeds, f"{gain:.2f}"])
    header = ["network", "method", "FLOPs", "parameters", "times as fast, batch 1", f"batch {batch}"]
    return table([*header, f"training step, batch {batch}", "share of the FLOPs' reduction"], rows)


def main() -> None:
    parser = options(__doc__, repeats=3)
    parser.add_argument("--images", type=int, default=16, help="images that are scored, of 224 pixels")
    parser.add_argument("--batch", type=int, default=128, help="images at a time when speed is measured")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each speed")
    parsed = parse(parser)
    print("## Choosing the widths of ResNet-50 at 224 pixels\n")
    print(f"Half of the FLOPs, {parsed.images} images; {parsed.repeats} repeats in turn.\n")
    print(widths(parsed.images, parsed.repeats), flush=True)
    print("## Half of the FLOPs, and how much faster\n")
    print("Median (10th–90th percentile) over neighbouring repetitions of dense and small.\n")
    print(speed(SMALL, parsed.batch, 1.0 if parsed.quick else parsed.seconds))


if __name__ == "__main__":
    main()
