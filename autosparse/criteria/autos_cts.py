from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from autosparse.connectivity import bypass_for
from autosparse.criteria.autos import logits
from autosparse.criteria.base import Scores, criterion
from autosparse.criteria.cts import Pieces, TicketSearch
from autosparse.criteria.gradients import LossFn
from autosparse.errors import AutoSparseError
from autosparse.layers import layers_of, prunable
from autosparse.masks import Masks
from autosparse.scorer.network import Scorer


@criterion("autos-cts", paper="Arora and Teuscher 2025, arXiv 2512.07142; Liu et al. 2024, arXiv 2408.14757")
def autos_cts(
    model: nn.Module,
    measure_gradients: Callable[[], Mapping[str, Tensor]],
    batches: Pieces,
    loss_fn: LossFn,
    keep: int,
    masks: Masks,
    generator: torch.Generator,
    scorer: Scorer,
    example: Tensor,
    *,
    trust: float = 1.0,
    steps: int = 1600,
    step_images: int = 32,
    lr: float = 0.1,
    warm_steps: int = 320,
) -> Scores:
    """Concrete Ticket Search that starts from the odds that a learned scorer gives each weight.

    As :func:`~autosparse.criteria.cts.cts`, whose logits all start at the same value. Here they start at the scorer's,
    plus the constant that makes the expected count of kept weights the one asked for.

    Args:
        trust: the scorer's logits are multiplied by it; with 0 the search is that of CTS.
        steps, step_images, lr, warm_steps: as in :func:`~autosparse.criteria.cts.cts`.

    Raises:
        AutoSparseError: an option out of range, no images, or a loss that is not finite.
    """
    if not 0 <= trust < math.inf:
        raise AutoSparseError(f"autos-cts has trust {trust}: give 0 or more")
    search = TicketSearch(
        "autos-cts", "kl", steps, step_images, lr, temperature=2 / 3, density_slack=1.1, batch_statistics=True,
        warm_steps=warm_steps, warm_lr=0.1,
    )  # fmt: skip
    bypass = bypass_for(scorer.feature_set, model, example)
    start = logits(scorer, layers_of(model), prunable(model), measure_gradients(), masks, bypass)
    return search.run(
        model, batches, loss_fn, keep, masks, generator, {name: trust * values for name, values in start.items()}
    )
