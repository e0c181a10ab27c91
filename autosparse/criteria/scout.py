from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from autosparse import seeding
from autosparse.budget import Allocation, following, select
from autosparse.criteria.base import Scores, Stream, criterion
from autosparse.criteria.gradients import LossFn
from autosparse.errors import AutoSparseError, DivergedError
from autosparse.layers import Layer, layers_of, prunable, total_weights
from autosparse.masks import Masks
from autosparse.training.precision import autocast, resolve_precision
from autosparse.triggers.init import AtInit

_WARM_UP = 0.2  # of the steps, in which the learning rate rises; it falls along half a cosine after them
_LEAST = 0.02  # of the peak learning rate


@criterion("scout", paper="Zhu and Gupta 2017, arXiv 1710.01878, rewound")
def scout(
    model: nn.Module,
    stream: Stream,
    loss_fn: LossFn,
    keep: int,
    counts: Mapping[str, int] | None,
    masks: Masks,
    generator: torch.Generator,
    *,
    steps: int = 500,
    updates: int = 50,
    until: float = 0.8,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    same_sign: bool = True,
) -> Scores:
    """Survival in one short training that prunes step by step and is then forgotten.

    A copy of the network is trained by SGD for ``steps`` batches. Meanwhile its smallest weights are removed: the
    density falls along an exponential from 1 to the one asked for, which it reaches after ``until`` of the steps. The
    survivors are kept at their initial values. Lottery-ticket rewinding does the same in many trainings.

    A weight that crosses zero is put back to zero. What survives is then large with the sign that it starts from.

    A score counts the prunings that a weight survived; its magnitude at the next one, or in the end, decides among
    equals. Later rounds (``rounds``) forget what the copy of the round before has learnt.

    Args:
        steps: batches of the training; 0 scores the magnitudes.
        updates: prunings on the way.
        until: share of the steps after which the final density is reached.
        lr: peak learning rate of SGD with Nesterov momentum. It rises for a fifth of the steps and then falls along
            half a cosine.
        momentum, weight_decay: of SGD.
        same_sign: as above; otherwise weights may change their signs.

    Raises:
        AutoSparseError: an option out of range. DivergedError: a loss is not finite.
    """
    _check(steps, updates, until, lr, momentum, weight_decay)
    network = copy.deepcopy(model).train().requires_grad_(True)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights, layers = prunable(network), layers_of(network)
    budget = "global" if counts is None else _of_counts(counts, layers, keep)
    due = _path(masks.kept, keep, steps, updates, until)
    device = next(network.parameters()).device
    precision = resolve_precision("auto", device)
    scores = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    masks, prunings = masks.to(device), 0
    with seeding.global_stream(int(torch.randint(2**62, (), generator=generator)), "scout"):
        optimizer = torch.optim.SGD(
            network.parameters(), lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0
        )
        signs = {name: weight.detach().sign() for name, weight in weights.items()} if same_sign else {}
        handle = masks.hold(network, optimizer)
        # The steps come first: an endless stream would be asked for a batch that nobody takes.
        for step, (x, y) in zip(range(1, steps + 1), stream(), strict=False):
            with autocast(precision, device):
                output = network(x.to(device))
            loss = loss_fn(output.float(), y.to(device))
            _descend(optimizer, loss, lr * _rate(step - 1, steps))
            _put_back(weights, signs)
            if step not in due and step != steps:
                continue
            if not bool(loss.detach().isfinite()):
                raise DivergedError(
                    f"scout's loss is {float(loss.detach())} at step {step} of {steps}: lower its option lr ({lr})"
                )
            if due.get(step, masks.kept) < masks.kept:
                magnitudes = _magnitudes(weights)
                left = select(magnitudes, layers, due[step], budget=budget, within=masks)
                for name, score in scores.items():
                    gone = masks[name] & ~left[name]
                    score[gone] = prunings + magnitudes[name][gone]
                masks, prunings = left, prunings + 1
                handle.remove()
                handle = masks.hold(network, optimizer)
    for name, magnitude in _magnitudes(weights).items():
        scores[name][masks[name]] = prunings + magnitude[masks[name]]
    return scores


def _magnitudes(weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """|w|, with 1/2 for the largest of the network."""
    values = {name: weight.detach().float().abs() for name, weight in weights.items()}
    largest = max(float(value.max()) for value in values.values())
    return {name: value / (2 * largest) if largest > 0 else value for name, value in values.items()}


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def _put_back(weights: Mapping[str, nn.Parameter], signs: Mapping[str, Tensor]) -> None:
    """Weights whose sign is no longer that of ``signs`` become zero; one that began at zero is free."""
    for name, sign in signs.items():
        weights[name].masked_fill_(weights[name] * sign < 0, 0.0)


def _rate(step: int, steps: int) -> float:
    """The learning rate at ``step`` (from 0) as a share of its peak."""
    x = step / steps
    return max(
        _LEAST, x / _WARM_UP if x < _WARM_UP else 0.5 * (1 + math.cos(math.pi * (x - _WARM_UP) / (1 - _WARM_UP)))
    )


def _path(first: int, last: int, steps: int, updates: int, until: float) -> dict[int, int]:
    """Step -> how many weights are left after it, on an exponential from ``first`` to ``last``."""
    updates = max(1, min(updates, round(until * steps)))
    return {
        max(1, round(index * until * steps / updates)): max(last, round(first * share))
        for index, share in enumerate(AtInit(updates).densities(last / first), 1)
    }


def _of_counts(counts: Mapping[str, int], layers: Sequence[Layer], keep: int) -> Allocation:
    return following(np.array([counts[layer.name] / layer.size for layer in layers]), keep / total_weights(layers))


def _check(steps: int, updates: int, until: float, lr: float, momentum: float, weight_decay: float) -> None:
    """AutoSparseError naming the first option that is out of range."""
    ranges = {
        "steps": (steps, steps >= 0, "0 or more"),
        "updates": (updates, updates >= 1, "1 or more"),
        "until": (until, 0 < until <= 1, "a share in (0, 1]"),
        "lr": (lr, 0 < lr < math.inf, "a positive number"),
        "momentum": (momentum, 0 <= momentum < 1, "a number in [0, 1)"),
        "weight_decay": (weight_decay, 0 <= weight_decay < math.inf, "0 or more"),
    }
    for name, (value, fits, wanted) in ranges.items():
        if not fits:
            raise AutoSparseError(f"scout has {name} {value}: give {wanted}")
