"""Survival in a short training, against steps that can be followed by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autosparse import prune
from autosparse.budget import select
from autosparse.criteria import score
from autosparse.errors import AutoSparseError, DivergedError, UnknownNameError
from autosparse.layers import layers_of, total_weights
from autosparse.models import seeded_model

X, Y = torch.ones(1, 3), torch.tensor([[1.0]])
#: Constant learning rate, no momentum, no decay: w goes down by lr times the gradient.
PLAIN: dict[str, Any] = {"momentum": 0.0, "weight_decay": 0.0, "updates": 1, "until": 1.0}


def line(*weights: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(len(weights), 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([weights]))  # type: ignore[operator]
    return model


def slope(output: Tensor, target: Tensor) -> Tensor:
    """A loss whose gradient by each weight is its input: 1."""
    return (output * target).sum()


def scores_of(model: nn.Module, keep: int, **options: Any) -> list[float]:
    found = score(
        "scout", model, batches=[(X[:, : model[0].in_features], Y)], loss_fn=slope, keep=keep,  # type: ignore[index]
        generator=torch.Generator().manual_seed(0), options={**PLAIN, **options},
    )  # fmt: skip
    return found["0.weight"].flatten().tolist()


def test_without_steps_scores_are_magnitudes() -> None:
    assert scores_of(line(-0.4, 0.1, 0.2), 1, steps=0) == pytest.approx([0.5, 0.125, 0.25])


def test_a_weight_that_crosses_zero_is_put_back_to_zero() -> None:
    # The rate of a first step is its least, 0.02: with lr 50 every weight goes down by 1.
    signed = scores_of(line(0.3, 1.5, -0.2), 2, steps=1, lr=50.0)
    assert signed == pytest.approx([0.0, 1 + 0.5 * 0.5 / 1.2, 1.5])  # 0, 0.5 and -1.2: the last two survive
    free = scores_of(line(0.3, 1.5, -0.2), 2, steps=1, lr=50.0, same_sign=False)
    assert free == pytest.approx([1 + 0.5 * 0.7 / 1.2, 0.5 * 0.5 / 1.2, 1.5])  # -0.7, 0.5 and -1.2


def test_a_batch_is_divided_among_steps_of_eight_images_or_more() -> None:
    def moved(images: int, split: int) -> float:
        """How far a weight of 9 went down, told from what is said of it beside one of 10 without a gradient."""
        found = score(
            "scout", line(9.0, 10.0), batches=[(torch.tensor([1.0, 0.0]).expand(images, 2), torch.ones(images, 1))],
            loss_fn=lambda output, target: (output * target).mean(), keep=1,
            generator=torch.Generator().manual_seed(0), options={**PLAIN, "steps": 1, "lr": 1.0, "split": split},
        )  # fmt: skip
        return 9.0 - 20.0 * found["0.weight"].flatten().tolist()[0]

    # Rates at the beginning of the batch and in the middle of it: 0.02, and half a cosine at (0.5 - 0.2) / 0.8.
    first, second = 0.02, 0.5 * (1 + math.cos(math.pi * 0.375))
    assert moved(16, 1) == pytest.approx(first, abs=1e-5)
    assert moved(16, 2) == pytest.approx(first + second, abs=1e-5)
    assert moved(16, 3) == pytest.approx(first + second, abs=1e-5)
    assert moved(15, 2) == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize(("precision", "moved"), [("fp32", 0.001), ("bf16", 0.0)])
def test_a_copy_is_trained_in_the_precision_asked_for(precision: str, moved: float) -> None:
    # In bfloat16 an image of 1.001 is 1, and so is the weight's gradient; the first rate, 0.02, times lr is 1.
    found = score(
        "scout", line(9.0, 10.0), batches=[(torch.tensor([[1.001, 0.0]]), torch.ones(1, 1))],
        loss_fn=lambda output, target: (output * target).mean(), keep=1, generator=torch.Generator().manual_seed(0),
        options={**PLAIN, "steps": 1, "lr": 50.0, "precision": precision},
    )  # fmt: skip
    assert 9.0 - 20.0 * found["0.weight"].flatten().tolist()[0] == pytest.approx(1 + moved, abs=1e-4)


def test_a_weight_that_begins_at_zero_is_free() -> None:
    assert scores_of(line(0.0, 0.5), 1, steps=1, lr=50.0) == pytest.approx([1.5, 0.0])


def narrow() -> nn.Module:
    return seeded_model("resnet20", seed=0, num_classes=10, width=0.25)


def digits_like() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, 8, 8, generator=draw), torch.arange(8) % 10) for _ in range(3)]


def test_the_density_falls_along_an_exponential_and_ends_exactly() -> None:
    model = narrow()
    total = total_weights(layers_of(model))
    keep = round(0.1 * total)
    pruned = prune(model, digits_like(), sparsity=1 - keep / total, method="scout", options={"steps": 10, "updates": 4})
    survived = torch.cat([values.flatten() for values in pruned.scores.values()]).floor()
    left = [int((survived >= update).sum()) for update in range(5)]
    assert left[0] == total
    assert left[1:] == [round(total * (keep / total) ** (update / 4)) for update in range(1, 5)]
    assert pruned.masks.kept == keep
    assert all(bool((pruned.scores[name] >= 4)[mask].all()) for name, mask in pruned.masks.items())


def test_layer_counts_are_those_of_a_budget() -> None:
    pruned = prune(
        narrow(), digits_like(), sparsity=0.9, method="scout", budget="synexp",
        options={"steps": 6, "updates": 3},
    )  # fmt: skip
    other = prune(narrow(), sparsity=0.9, method="random", budget="synexp")
    counts = [{layer.name: layer.kept for layer in found.summary.layers} for found in (pruned, other)]
    assert counts[0] == counts[1]
    survivors = {name: int((values >= 3).sum()) for name, values in pruned.scores.items()}
    assert survivors == counts[0]  # the copy was pruned to them, too


def test_a_stream_is_asked_for_as_many_batches_as_there_are_steps() -> None:
    taken = itertools.count()

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in itertools.cycle(digits_like()):
            next(taken)
            yield batch

    pruned = prune(
        narrow(), digits_like(), sparsity=0.9, method="scout",
        options={"steps": 5}, stream=stream,
    )  # fmt: skip
    assert next(taken) == 5
    assert pruned.summary.images == 5 * 8


def test_a_layer_that_all_must_pass_has_a_floor_where_one_is_asked_for() -> None:
    def kept(**options: Any) -> list[int]:
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
        with torch.no_grad():
            model[0].weight.fill_(1.0)  # type: ignore[operator]
            model[1].weight.copy_(torch.arange(1.0, 9.0).reshape(2, 4) / 100)  # type: ignore[operator]
        given: dict[str, Any] = {"batches": [(torch.ones(1, 4), torch.ones(1, 2))], "keep": 8}
        found = score(
            "scout", model, loss_fn=lambda output, target: (output * target).mean(),
            generator=torch.Generator().manual_seed(0), options={**PLAIN, "steps": 1, "lr": 1e-3, **options}, **given,
        )  # fmt: skip
        return select(found, layers_of(model), 8)["1.weight"].flatten().nonzero().flatten().tolist()

    assert kept() == []
    assert kept(least=0.25) == [7]  # a quarter of the mean layer's four, and its highest
    assert kept(least=1.0) == [6, 7]  # one for each output


def test_a_data_loader_is_gone_through_again_and_again_beyond_the_batches_that_are_scored() -> None:
    images: list[int] = []

    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for number, batch in enumerate(digits_like()):
                images.append(number)
                yield batch

    model = narrow()
    prune(model, Loader(), sparsity=0.9, method="scout", options={"steps": 5}, num_batches=1)
    assert images[-5:] == [0, 1, 2, 0, 1]


def test_micro_batches_are_the_batches_of_the_training() -> None:
    pruned = prune(narrow(), digits_like(), sparsity=0.9, method="scout", options={"steps": 5}, micro_batch=4)
    assert pruned.summary.images == 5 * 4


def test_data_that_can_be_gone_through_only_once_is_told() -> None:
    class Once:
        batches = iter(digits_like())

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from self.batches

    with pytest.raises(AutoSparseError, match="no batch when it is gone through again: pass a list"):
        prune(narrow(), Once(), sparsity=0.9, method="scout", options={"steps": 5})


def test_a_generator_is_trained_on_as_far_as_it_was_scored_on() -> None:
    pruned = prune(narrow(), iter(digits_like()), sparsity=0.9, method="scout", options={"steps": 5})
    assert pruned.summary.images == 5 * 8


def test_the_same_seed_gives_the_same_mask_on_any_day() -> None:
    def masks(seed: int) -> Tensor:
        model = narrow()
        pruned = prune(model, digits_like(), sparsity=0.9, method="scout", options={"steps": 4}, seed=seed)
        return torch.cat([mask.flatten() for mask in pruned.masks.values()])

    assert torch.equal(masks(1), masks(1))


def test_what_cannot_be_is_told_in_a_line() -> None:
    for name, value in {
        "until": 1.5,
        "steps": -1,
        "split": 0,
        "updates": 0,
        "lr": 0.0,
        "momentum": 1.0,
        "weight_decay": -1.0,
    }.items():
        with pytest.raises(AutoSparseError, match=f"scout has {name} {value}: give"):
            scores_of(line(1.0, 2.0), 1, **{name: value})
    with pytest.raises(UnknownNameError, match=r"unknown precision 'fp16': did you mean bf16"):
        scores_of(line(1.0, 2.0), 1, precision="fp16")
    with pytest.raises(DivergedError, match=r"loss is inf at step 1 of 1: lower its option lr"):
        score(
            "scout", line(1.0, 2.0), batches=[(X[:, :2], Y)], loss_fn=lambda output, target: output.sum() * math.inf,
            keep=1, generator=torch.Generator().manual_seed(0), options={**PLAIN, "steps": 1},
        )  # fmt: skip
