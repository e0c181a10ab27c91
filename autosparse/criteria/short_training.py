"""Gradual pruning in one short training of a copy, which is then forgotten: what it leaves at its initial values."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autosparse import seeding
from autosparse.budget import select
from autosparse.criteria.base import Scores, Stream
from autosparse.criteria.floors import Floors
from autosparse.criteria.gradients import FEWEST_IMAGES, LossFn
from autosparse.criteria.gradual import budget_of, squeezed
from autosparse.errors import AutoSparseError, DivergedError, UnknownNameError
from autosparse.layers import Layer, layers_of, prunable
from autosparse.masks import Masks
from autosparse.training.config import PRECISIONS
from autosparse.training.precision import autocast, resolve_precision
from autosparse.triggers.init import AtInit

_WARM_UP = 0.2  # of the steps, in which the learning rate rises; it falls along half a cosine after them
_LEAST = 0.02  # of the peak learning rate


@dataclass(frozen=True)
class Moment:
    """A network that is about to be pruned.

    Attributes:
        weights: its weights; zero where they were removed.
        gradients: root mean squares of their gradients over the last batches; empty where no rule looks at them.
        masks: what is left.
    """

    layers: Sequence[Layer]
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    masks: Masks


#: Scores of a moment, of any size: their order decides which weights the next pruning removes.
Rule = Callable[[Moment], Scores]


@dataclass(frozen=True)
class ShortTraining:
    """How a copy is trained and pruned.

    Args:
        owner: the criterion, for messages.
        steps: batches of the training; with 0 the copy is scored as it is.
        split: steps of SGD that a batch is divided among, as far as there are eight images for each. From as many
            images a copy learns more in smaller steps, at the price of some speed.
        updates: prunings on the way, each after a batch.
        until: share of the steps after which the final density is reached.
        lr: peak learning rate of SGD with Nesterov momentum. It rises for a fifth of the batches and then falls along
            half a cosine.
        momentum, weight_decay: of SGD.
        same_sign: a weight that crosses zero is put back to zero. What survives is then large with the sign that it
            starts from.
        precision: of the copy's training, as in :class:`~autosparse.training.config.TrainConfig`. With ``auto`` masks
            depend on what the hardware gains from.
        memory: decay a batch of the gradients' moving average; ``None`` when no rule looks at it.

    Raises:
        AutoSparseError: a value out of range.
    """

    owner: str
    steps: int
    split: int
    updates: int
    until: float
    lr: float
    momentum: float
    weight_decay: float
    same_sign: bool
    precision: str = "auto"
    memory: float | None = None

    def __post_init__(self) -> None:
        ranges = {
            "steps": (self.steps >= 0, "0 or more"),
            "split": (self.split >= 1, "1 or more"),
            "updates": (self.updates >= 1, "1 or more"),
            "until": (0 < self.until <= 1, "a share in (0, 1]"),
            "lr": (0 < self.lr < math.inf, "a positive number"),
            "momentum": (0 <= self.momentum < 1, "a number in [0, 1)"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "memory": (self.memory is None or 0 <= self.memory < 1, "a number in [0, 1)"),
        }
        for name, (fits, wanted) in ranges.items():
            if not fits:
                raise AutoSparseError(f"{self.owner} has {name} {getattr(self, name)}: give {wanted}")
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)

    def pieces(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A batch, divided among its steps of SGD."""
        count = max(1, min(self.split, len(x) // FEWEST_IMAGES))
        return list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))

    def rate(self, step: float) -> float:
        """The learning rate when ``step`` batches are done, half of one included."""
        x = step / self.steps
        falling = 0.5 * (1 + math.cos(math.pi * (x - _WARM_UP) / (1 - _WARM_UP)))
        return self.lr * max(_LEAST, x / _WARM_UP if x < _WARM_UP else falling)

    def path(self, first: int, last: int) -> dict[int, int]:
        """Batch (from 1) -> how many weights are left after it, on an exponential from ``first`` to ``last``."""
        updates = max(1, min(self.updates, round(self.until * self.steps)))
        return {
            max(1, round(index * self.until * self.steps / updates)): max(last, round(first * share))
            for index, share in enumerate(AtInit(updates).densities(last / first), 1)
        }


def survival(
    training: ShortTraining,
    rule: Rule,
    model: nn.Module,
    stream: Stream,
    loss_fn: LossFn,
    keep: int,
    counts: Mapping[str, int] | None,
    masks: Masks,
    generator: torch.Generator,
    floors: Floors,
) -> Scores:
    """How long each weight survived in a copy of ``model`` that was trained and pruned on the way.

    A score counts the prunings that a weight survived; what was said of it at its last decides among equals. The
    arguments between ``rule`` and ``floors`` are the ingredients of these names
    (:data:`autosparse.criteria.base.INGREDIENTS`).

    Args:
        floors: for prunings by one threshold; under a budget of layers they have no say.

    Raises:
        DivergedError: a loss is not finite.
    """
    network = copy.deepcopy(model).train().requires_grad_(True)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights, layers = prunable(network), layers_of(network)
    budget = budget_of(counts, layers, keep)
    due = training.path(masks.kept, keep) if training.steps else {}
    device = next(network.parameters()).device
    precision = resolve_precision(training.precision, device)
    lasting, masks = _Lasting(weights), masks.to(device)
    recent = _Recent(weights, training.memory)
    with seeding.global_stream(int(torch.randint(2**62, (), generator=generator)), training.owner):
        optimizer = torch.optim.SGD(
            network.parameters(),
            training.lr,
            training.momentum,
            weight_decay=training.weight_decay,
            nesterov=training.momentum > 0,
        )
        signs = {name: weight.detach().sign() for name, weight in weights.items()} if training.same_sign else {}
        handle = masks.hold(network, optimizer)
        # The steps come first: an endless stream would be asked for a batch that nobody takes.
        for step, batch in zip(range(1, training.steps + 1), stream(), strict=False):
            pieces = training.pieces(*batch)
            for index, (x, y) in enumerate(pieces):
                with autocast(precision, device):
                    output = network(x.to(device))
                loss = loss_fn(output.float(), y.to(device))
                for group in optimizer.param_groups:
                    group["lr"] = training.rate(step - 1 + index / len(pieces))
                optimizer.zero_grad()
                loss.backward()
                recent.add(1 / len(pieces))
                optimizer.step()
                _put_back(weights, signs)
            if step not in due and step != training.steps:
                continue
            if not bool(loss.detach().isfinite()):
                raise DivergedError(
                    f"{training.owner}'s loss is {float(loss.detach())} at step {step} of {training.steps}: "
                    f"lower its option lr ({training.lr})"
                )
            if due.get(step, masks.kept) < masks.kept:
                said = _said(rule, layers, weights, recent, masks)
                least = floors.of(due[step]) if budget == "global" else None
                left = select(said, layers, due[step], budget=budget, least=least, within=masks)
                lasting.pruned(said, masks, left)
                masks = left
                handle.remove()
                handle = masks.hold(network, optimizer)
    return lasting.ended(_said(rule, layers, weights, recent, masks), masks)


class _Lasting:
    """A score a weight: the prunings that it survived; what was said of it at its last decides among equals."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._scores = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
        self._prunings = 0

    def pruned(self, said: Scores, before: Masks, after: Masks) -> None:
        """A pruning by the scores ``said`` (any that :func:`squeezed` gave) has left ``after`` of ``before``."""
        for name, score in self._scores.items():
            torch.where(before[name] & ~after[name], said[name] + self._prunings, score, out=score)
        self._prunings += 1

    def ended(self, said: Scores, masks: Masks) -> Scores:
        """The scores, when ``masks`` is what is left and nothing more will be removed."""
        self.pruned(said, masks, Masks({name: torch.zeros_like(mask) for name, mask in masks.items()}))
        return self._scores


class _Recent:
    """The root mean square of each weight's gradient over the last batches, without the start's bias towards zero."""

    def __init__(self, weights: Mapping[str, nn.Parameter], memory: float | None) -> None:
        self._weights = weights
        self._memory = memory
        self._squares = {} if memory is None else {name: torch.zeros_like(w) for name, w in weights.items()}
        self._unseen = 1.0  # weight of the zeros that the average began with

    @torch.no_grad()
    def add(self, batches: float) -> None:
        """Take in what was found on so much of a batch."""
        if self._memory is None:
            return
        decay = self._memory**batches
        self._unseen *= decay
        for name, square in self._squares.items():
            gradient = self._weights[name].grad
            if gradient is not None:
                square.mul_(decay).addcmul_(gradient, gradient, value=1 - decay)

    def values(self) -> Scores:
        return {name: (square / max(1 - self._unseen, 1e-12)).sqrt() for name, square in self._squares.items()}


def _said(
    rule: Rule, layers: Sequence[Layer], weights: Mapping[str, nn.Parameter], recent: _Recent, masks: Masks
) -> Scores:
    """The rule's scores in [0, 1/2]."""
    now = {name: weight.detach() for name, weight in weights.items()}
    found = rule(Moment(layers, now, recent.values(), masks))
    return dict(zip(found, squeezed(list(found.values())), strict=True))


@torch.no_grad()
def _put_back(weights: Mapping[str, nn.Parameter], signs: Mapping[str, Tensor]) -> None:
    """Weights whose sign is no longer that of ``signs`` become zero; one that began at zero is free."""
    for name, sign in signs.items():
        weights[name].masked_fill_(weights[name] * sign < 0, 0.0)
