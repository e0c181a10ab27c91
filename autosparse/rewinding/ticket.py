"""What pruning of trained weights gives: masks, and the state from which the pruned network is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.criteria import CRITERIA, Batches, Scores, score
from autosparse.errors import BudgetError
from autosparse.masks import Masks
from autosparse.training import TrainConfig

#: Is told the records of all rounds so far.
OnRound = Callable[[list[dict[str, Any]]], None]
#: The images that a criterion looks at; the same ones whenever they are asked for.
BatchSource = Callable[[], Batches]

#: The budget rule under which the weights of a scope are compared.
BUDGET_OF = {"global": "global", "layer": "uniform"}


@dataclass(frozen=True)
class Ticket:
    """A pruned network that is ready for its final training.

    ``train(model, data, ticket.train, masks=ticket.masks, start_step=ticket.start_step)`` after :meth:`load`.

    Args:
        state: the whole ``state_dict()`` to start from, on the CPU; removed weights are in it too.
        masks: what is kept, on the CPU.
        train: settings of the final training.
        start_step: the step at which the final training begins, that of the rewound state.
        records: one JSON-able record a round that led here: ``round``, ``density`` and ``kept`` while it trained,
            ``train_loss``, ``val_accuracy``, ``kept_after`` (of the round as such, not of the ticket), ``images`` (that
            it trained on), ``seconds``.
    """

    state: Mapping[str, Tensor]
    masks: Masks
    train: TrainConfig
    start_step: int
    records: list[dict[str, Any]]

    @property
    def rounds(self) -> int:
        """How many networks were trained for it."""
        return len(self.records)

    def load(self, model: nn.Module) -> None:
        """Put ``model`` into the state to start from, its removed weights at zero."""
        model.load_state_dict(dict(self.state))
        self.masks.apply(model)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the whole state on the CPU: weights, biases, norm parameters and buffers."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def fingerprint(model: nn.Module) -> str:
    """A digest of the whole state: two networks with the same one are equal bit for bit."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{value.dtype}{list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_keep(keep: int, total: int) -> None:
    """BudgetError unless ``keep`` of ``total`` weights can be kept."""
    if not 1 <= keep <= total:
        raise BudgetError(f"cannot keep {keep} of {total} weights: give 1 to {total}")


def trained_scores(criterion: str, model: nn.Module, batches: BatchSource | None = None, **given: Any) -> Scores:
    """Scores of trained weights, with the cross-entropy over ``batches()`` where the criterion looks at data.

    Args:
        given: further ingredients, as for :func:`autosparse.criteria.score`.
    """
    if not CRITERIA.get(criterion).needs_data:
        return score(criterion, model, **given)
    return score(criterion, model, batches=batches() if batches else None, loss_fn=F.cross_entropy, **given)
