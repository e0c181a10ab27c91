"""How good the networks are that a scorer prunes: short trainings of small ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from autosparse.data import ImageData
from autosparse.models import seeded_model
from autosparse.pruning import prune, score_batches, training_stream
from autosparse.scorer.network import Scorer
from autosparse.training import TrainConfig, evaluate_loss, train


@dataclass(frozen=True)
class Task:
    """A network to be pruned and trained on a data set.

    Args:
        density: share of the weights that is kept.
        train_images: how many images the network is trained on.
        score_images: how many images the scorer sees gradients of.
        options: of the method ``autos``, such as ``steps``.
        epochs: how often each of them is seen.
    """

    model: str
    density: float
    model_args: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = "cifar10"
    image_size: int | None = None
    train_images: int = 32_000
    score_images: int = 1280
    batch_size: int = 128
    lr: float = 0.1
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 1


def trial(task: Task, scorer: Scorer, seed: int, data: ImageData, device: torch.device | str = "cpu") -> float:
    """The validation loss of ``task``'s network, pruned at initialisation by ``scorer`` and trained.

    Args:
        seed: of the initial weights, the images, their order and the draws.

    Raises:
        DivergedError: the training's loss is not finite. Others as :func:`autosparse.prune`.
    """
    model = seeded_model(
        task.model, seed=seed, num_classes=data.num_classes, in_channels=data.channels, **task.model_args
    ).to(device)
    batches = score_batches(data, seed=seed, images=task.score_images)
    pruned = prune(
        model, batches, sparsity=1 - task.density, options=task.options, scorer=scorer, on_paths=True,
        num_batches=None, seed=seed, stream=partial(training_stream, data, seed=seed),
    )  # fmt: skip
    config = TrainConfig(epochs=task.epochs, batch_size=task.batch_size, lr=task.lr, seed=seed)
    train(model, data.with_less(task.train_images, seed), config, masks=pruned.masks, device=device, validate=False)
    return evaluate_loss(model, data.val)
