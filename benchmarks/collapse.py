"""Does a method leave every network connected, with exactly as many weights as asked for?

    python benchmarks/collapse.py --density 0.001
    python benchmarks/collapse.py --models vgg16 timm:convnext_atto --method synflow

Without training, at full width, on digits as images of 32 pixels. A layer without weights is no harm where a shortcut
leads around it.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch

from autosparse.data import load_data
from autosparse.models import list_models, seeded_model
from autosparse.pruning import prune, score_batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list_models())
    parser.add_argument("--method", default="autos")
    parser.add_argument("--density", type=float, default=0.001)
    parser.add_argument("--images", type=int, default=80, help="that are scored")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parsed = parser.parse_args()
    data = load_data("digits", image_size=parsed.image_size, device=parsed.device)
    batches = score_batches(data, seed=parsed.seed, images=parsed.images)
    print("| network | weights kept | asked for | connected | on paths | layers without weights | seconds |")
    print("|---|---:|---:|---|---:|---:|---:|")
    for name in parsed.models:
        model = seeded_model(name, seed=parsed.seed, num_classes=data.num_classes, in_channels=data.channels)
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they would say is in the table
            pruned = prune(
                model.to(parsed.device), batches, sparsity=1 - parsed.density, method=parsed.method, num_batches=None,
                seed=parsed.seed,
            ).summary  # fmt: skip
        on_paths = None if pruned.effective_density is None else pruned.effective_density / pruned.density
        row = (
            name,
            f"{pruned.kept:,}",
            f"{round(parsed.density * pruned.total):,}",
            {True: "yes", False: "**no**", None: "cannot be told"}[pruned.connected],
            "" if on_paths is None else f"{on_paths:.1%}",
            str(sum(layer.kept == 0 for layer in pruned.layers)),
            f"{time.perf_counter() - began:.1f}",
        )
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
