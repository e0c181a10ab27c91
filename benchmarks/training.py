"""Training images a second of ResNet-20 and VGG-16 in each memory layout and number format.

    python benchmarks/training.py

The channels_last rows run :func:`autosparse.training.train`, data pipeline included; the loop has no contiguous
layout, so the plain row is a minimal step of its own over the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice

import torch
import torch.nn.functional as F
from common import Spread, interleave, options, parse, ratios, table

from autosparse.data import ImageData, load_data
from autosparse.models import seeded_model
from autosparse.training import TrainConfig, resolve_precision, train

BATCH = 128
STEPS = {"resnet20": 10, "vgg16": 4}  # in one timing; an epoch of digits has ten
PLAIN = "fp32, contiguous"


def plain_rate(network: str, data: ImageData, steps: int) -> float:
    """Images a second of SGD with Nesterov momentum in float32 and contiguous memory."""
    model = seeded_model(network, seed=0, num_classes=data.num_classes).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True)
    batches = islice(data.train.batches(BATCH, shuffle_seed=0, augment=True, drop_last=True), steps)
    began = time.perf_counter()
    for x, y in batches:
        loss = F.cross_entropy(model(x.contiguous()), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return BATCH * steps / (time.perf_counter() - began)


def loop_rate(network: str, data: ImageData, steps: int, precision: str) -> float:
    """Images a second of the package's loop: the time of the epoch as it reports it."""
    model = seeded_model(network, seed=0, num_classes=data.num_classes)
    config = TrainConfig(epochs=1, batch_size=BATCH, lr=0.01, precision=precision)
    (record,) = train(model, data, config, validate=False, stop_step=steps)
    return BATCH * steps / record.seconds


def variants(network: str, data: ImageData, steps: int) -> dict[str, Callable[[], float]]:
    return {
        PLAIN: lambda: plain_rate(network, data, steps),
        "fp32, channels_last": lambda: loop_rate(network, data, steps, "fp32"),
        "bf16, channels_last": lambda: loop_rate(network, data, steps, "bf16"),
    }


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--networks", nargs="+", default=list(STEPS), choices=list(STEPS))
    parsed = parse(parser)
    data = load_data("digits")
    rows = []
    for network in parsed.networks:
        steps = 2 if parsed.quick else STEPS[network]
        rates = interleave(variants(network, data, steps), parsed.repeats)
        rows += [[network, name, Spread.of(each), ratios(each, rates[PLAIN])] for name, each in rates.items()]
    print("## Training\n")
    chosen = resolve_precision("auto", torch.device("cpu"))
    print(f"Batches of {BATCH} images of 32x32 pixels; {parsed.repeats} repeats in turn. auto picks {chosen} here.\n")
    print(table(["network", "format", "images/s", "over plain fp32"], rows))


if __name__ == "__main__":
    main()
