"""Channels by the scores of their weights: aggregation, magnitude, the learned scorer, and SynFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from criteria_networks import RESIDUAL, blank, coupled, images, linear, randomised
from torch import nn

from autosparse.channels.criteria import CHANNEL_CRITERIA, score_channels
from autosparse.channels.criteria.aggregate import aggregate
from autosparse.criteria import score
from autosparse.errors import AutoSparseError
from autosparse.layers import prunable
from autosparse.scorer.network import Scorer
from autosparse.seeding import global_stream

F64 = torch.float64


def numbered(model: nn.Module) -> dict[str, torch.Tensor]:
    """Scores 1, 2, 3, ... in every layer."""
    return {
        name: torch.arange(1, weight.numel() + 1, dtype=F64).reshape(weight.shape)
        for name, weight in prunable(model).items()
    }


# ---------------------------------------------------------------------------------------------------- aggregation


def test_aggregates_by_hand() -> None:
    model, coupling = linear([[1, 1, 1], [1, 1, 1]], [[1, 1], [1, 1]])  # weights are numbered 1..6, and 1..4
    scores = numbered(model)

    def found(how: str, **options: Any) -> list[float]:
        return aggregate(model, coupling, scores, how, **options)["0"].tolist()

    assert found("mean") == [2, 5]
    assert found("sum") == [6, 15]
    assert found("top-share", top_share=0.5) == [2.5, 5.5]  # two of three
    assert found("top-share", top_share=0.01) == [3, 6]  # one at least
    assert found("top-share", top_share=1.0) == [2, 5]
    # Columns (1, 3) and (2, 4) of the next layer read the channels.
    assert found("sum", with_readers=True) == [10, 21]
    assert found("mean", with_readers=True) == [2, 21 / 5]
    assert found("top-share", with_readers=True, top_share=0.4) == [3, 5.5]


def test_a_channel_owns_its_weights_in_all_layers_and_at_all_places() -> None:
    model = blank("flattened")  # conv 3 -> 2, whose 64 positions each are columns of hidden
    scores = numbered(model)
    conv, hidden = scores["conv.weight"], scores["hidden.weight"]
    expected = [float(conv[i].sum() + hidden[:, 64 * i : 64 * i + 64].sum()) for i in range(2)]
    found = aggregate(model, coupled(model), scores, "sum", with_readers=True)
    assert found["conv"].tolist() == expected

    model = RESIDUAL()
    scores = numbered(model)
    found = aggregate(model, coupled(model), scores, "sum", with_readers=True)
    expected = [
        float(
            scores["stem.weight"][i].sum()
            + scores["back.weight"][i].sum()
            + scores["inner.weight"][:, i].sum()
            + scores["head.weight"][:, i].sum()
        )
        for i in range(4)
    ]
    assert found["stem"].tolist() == expected


@pytest.mark.parametrize("network", ["flattened", "grouped", "depthwise", "gated"])
def test_every_weight_of_the_layers_between_counts_once_for_each_side(network: str) -> None:
    model = blank(network)
    scores = {name: torch.ones_like(weight) for name, weight in prunable(model).items()}
    coupling = coupled(model)
    computed = aggregate(model, coupling, scores, "sum")
    assert sum(values.sum() for values in computed.values()) == sum(
        scores[f"{name}.weight"].numel()
        for name in {m.module for group in coupling for m in group.members if m.side != "in"}
        if f"{name}.weight" in scores
    )


def test_settings_out_of_range_are_refused() -> None:
    model, coupling = linear([[1], [2]], [[1, 1]])
    with pytest.raises(AutoSparseError, match="unknown aggregate 'average'"):
        aggregate(model, coupling, numbered(model), "average")
    for share in (0.0, 1.5):
        with pytest.raises(AutoSparseError, match=rf"top-share is {share}: give a number in \(0, 1\]"):
            aggregate(model, coupling, numbered(model), "top-share", top_share=share)
    with pytest.raises(AutoSparseError, match=r"no weight of channel group '0' has a score: .* --keep 0"):
        aggregate(model, coupling, {})


def test_magnitude_is_the_mean_of_absolute_values() -> None:
    model, coupling = linear([[1, -3], [2, 0]], [[-1, 5]])
    assert score_channels("magnitude", model, coupling)["0"].tolist() == [2, 1]
    options = {"aggregate": "top-share", "top_share": 0.5, "with_readers": True}
    assert score_channels("magnitude", model, coupling, options=options)["0"].tolist() == [2, 3.5]


# ------------------------------------------------------------------------------------------------- learned scorer


def test_autos_is_the_sum_of_the_survivals_that_the_scorer_predicts() -> None:
    with global_stream(0, "scorer"):
        scorer = Scorer("scale-free").eval()
    model = RESIDUAL()
    coupling = coupled(model)
    batches = [(x.float(), y) for x, y in images(4)]
    given: dict[str, Any] = {"batches": batches, "loss_fn": F.cross_entropy, "scorer": scorer}
    search: dict[str, Any] = {
        "keep": 1,
        "generator": torch.Generator(),
    }  # of which scores of initial weights have no use
    logits = {name: values.double() for name, values in score("autos", model, **given, **search).items()}
    found = score_channels("autos", model, coupling, **given)
    survival = logits["inner.weight"].sigmoid().flatten(1).sum(1)
    np.testing.assert_allclose(found["inner"], survival, rtol=1e-12)
    both = torch.cat([logits["stem.weight"].flatten(1), logits["back.weight"].flatten(1)], dim=1)
    np.testing.assert_allclose(found["stem"], both.sigmoid().sum(1), rtol=1e-12)
    raw = score_channels("autos", model, coupling, options={"scale": "logit", "aggregate": "mean"}, **given)
    np.testing.assert_allclose(raw["stem"], both.mean(1), rtol=1e-12)
    with pytest.raises(AutoSparseError, match="unknown scale of autos 'logits': did you mean logit"):
        score_channels("autos", model, coupling, options={"scale": "logits"}, **given)


# -------------------------------------------------------------------------------------------------------- SynFlow


def flow(model: nn.Module, gates: str, *shape: int) -> dict[str, np.ndarray]:
    example = torch.zeros(2, *shape, dtype=next(model.parameters()).dtype)
    batches = [(example, torch.zeros(2, dtype=torch.int64))]
    coupling = coupled(model) if len(shape) == 3 else linear_coupling(model, example)
    return score_channels("synflow", model, coupling, batches=batches, options={"gates": gates})


def linear_coupling(model: nn.Module, example: torch.Tensor) -> Any:
    from autosparse.channels.coupling import couple

    return couple(model, example)


def test_the_flow_by_hand() -> None:
    # Hidden channels carry |1| + |-2| = 3 and |-3| + |4| = 7, of which 5 · 3 and 6 · 7 flow on; 42 is the largest.
    model, _ = linear([[1, -2], [-3, 4]], [[5, -6]])
    for gates in ("reads", "writes"):
        np.testing.assert_allclose(flow(model, gates, 2)["0"], [15 / 42, 1])


@pytest.mark.parametrize("network", ["residual", "concatenation and sum", "flattened", "grouped", "twice", "depthwise"])
def test_without_biases_what_is_written_is_what_is_read(network: str) -> None:
    model = randomised(blank(network))
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                tensor.zero_()
    reads, writes = flow(model, "reads", 3, 8, 8), flow(model, "writes", 3, 8, 8)
    for group, values in reads.items():
        assert values.min() > 0
        np.testing.assert_allclose(values, writes[group], rtol=1e-9)


def test_biases_are_read_but_not_written() -> None:
    model = randomised(blank("flattened"))  # its biases are positive
    reads, writes = flow(model, "reads", 3, 8, 8), flow(model, "writes", 3, 8, 8)
    assert all((reads[group] > writes[group]).all() for group in reads)


def test_the_check_of_synflow_is_for_one_output() -> None:
    class Two(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x), x

    check = CHANNEL_CRITERIA.get("synflow").check
    check(nn.Linear(2, 2), torch.zeros(2, 2))
    with pytest.raises(AutoSparseError, match="synflow needs a network that returns one tensor"):
        check(Two(2, 2), torch.zeros(2, 2))
