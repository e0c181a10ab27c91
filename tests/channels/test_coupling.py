"""Which channels stand or fall together, and which must stay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from small_networks import (
    CONCATENATION_AND_SUM,
    FLATTENED,
    GATED,
    GROUPED,
    INPUT_ADDED,
    PIXEL_SHUFFLE,
    RESIDUAL,
    RETURNS_FEATURES,
    SHUFFLED,
    TWICE,
    Small,
)
from torch import nn

from autosparse.channels.coupling import couple
from autosparse.channels.groups import ChannelGroup, Coupling
from autosparse.errors import AutoSparseError
from autosparse.models import create_model

IMAGE = torch.zeros(1, 3, 8, 8)


def members(group: ChannelGroup) -> dict[tuple[str, str], list[list[int]]]:
    return {(member.module, member.side): member.positions.tolist() for member in group.members}


def coupled(build: Callable[[], nn.Module], *keep: str) -> Coupling:
    return couple(build(), IMAGE, keep)


def test_additions_tie_what_they_add() -> None:
    coupling = coupled(RESIDUAL)
    assert coupling.widths == {"stem": 4, "inner": 6}
    assert list(members(coupling["stem"])) == [
        ("stem", "out"),
        ("back", "out"),
        ("norm", "channel"),
        ("inner", "in"),
        ("head", "in"),
    ]
    assert list(members(coupling["inner"])) == [("inner", "out"), ("back", "in")]


def test_a_concatenation_keeps_its_parts_apart_and_an_addition_behind_it_ties_both() -> None:
    coupling = coupled(CONCATENATION_AND_SUM)
    assert coupling.widths == {"a": 2, "b": 3, "conv": 4}
    assert members(coupling["a"])["total", "out"] == [[0], [1]]
    assert members(coupling["b"])["total", "out"] == [[2], [3], [4]]
    assert members(coupling["b"])["conv", "in"] == [[2], [3], [4]]


def test_a_flattened_image_repeats_a_channel() -> None:
    group = coupled(FLATTENED)["conv"]
    assert members(group)["hidden", "in"] == [list(range(64)), list(range(64, 128))]


def test_a_gate_ties_two_halves_of_one_layer() -> None:
    group = coupled(GATED)["conv"]
    assert (group.width, group.unit) == (4, 2)
    assert members(group)["conv", "out"] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_a_group_of_a_grouped_convolution_goes_as_a_whole() -> None:
    group = coupled(GROUPED)["stem"]
    assert group.width == 2
    assert members(group) == {
        ("stem", "out"): [[0, 1], [2, 3]],
        ("grouped", "out"): [[0, 1, 2], [3, 4, 5]],
        ("grouped", "in"): [[0, 1], [2, 3]],
        ("head", "in"): [[0, 1, 2], [3, 4, 5]],
    }


def test_a_depthwise_convolution_belongs_to_the_channels_that_it_reads() -> None:
    coupling = couple(create_model("mobilenetv2"), torch.zeros(1, 3, 32, 32))
    assert ("blocks.0.layers.0", "channel") in members(coupling["conv"])


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_heads_are_whole_and_tie_queries_keys_and_values() -> None:
    coupling = couple(create_model("timm:vit_tiny_patch16_224", img_size=32), torch.zeros(1, 3, 32, 32))
    heads = coupling["blocks.0.attn.qkv"]
    assert (heads.width, heads.attention) == (3, "blocks.0.attn")
    assert members(heads)["blocks.0.attn.qkv", "out"][1] == [
        *range(64, 128),
        *range(192 + 64, 192 + 128),
        *range(384 + 64, 384 + 128),
    ]
    assert members(heads)["blocks.0.attn.proj", "in"][1] == list(range(64, 128))
    assert coupling["blocks.0.mlp.fc1"].width == 768
    assert len(coupling) == 24
    assert coupling.fixed["patch_embed.proj"] == "they meet the parameter pos_embed"


def test_the_classifier_and_what_else_the_network_returns_stay() -> None:
    coupling = coupled(RETURNS_FEATURES)
    assert coupling.widths == {"second": 6}
    assert dict(coupling.fixed) == dict.fromkeys(["first", "head"], "the network returns them")


def test_channels_that_a_layer_norm_sees_stay() -> None:
    coupling = couple(create_model("torchvision:convnext_tiny"), torch.zeros(1, 3, 32, 32))
    assert {group.name.rpartition(".")[2] for group in coupling} == {"3"}  # the hidden layers of its blocks
    assert "(LayerNorm) normalises them together" in coupling.fixed["features.0.0"]


def test_a_layer_that_is_used_twice_is_one_layer() -> None:
    assert coupled(TWICE).widths == {"first": 4, "conv": 6}


def test_what_is_kept_takes_what_it_is_tied_to_along() -> None:
    coupling = coupled(RESIDUAL, "back")
    assert coupling.widths == {"inner": 6}
    assert coupling.fixed["stem"] == "back is to be kept"
    assert coupled(RESIDUAL, "").widths == {}


def test_a_name_to_keep_must_exist() -> None:
    with pytest.raises(AutoSparseError, match=r"cannot keep 'bakc': .* has no module of that name"):
        coupled(RESIDUAL, "bakc")


@pytest.mark.parametrize(
    ("build", "culprit", "why"),
    [
        (PIXEL_SHUFFLE, "conv", "they pass PixelShuffleBackward0, which cannot be followed"),
        (SHUFFLED, "conv", "the output changes"),
        (INPUT_ADDED, "back", "must match the size"),
    ],
    ids=["pixel shuffle", "channel shuffle", "added to the input"],
)
def test_what_cannot_be_traced_is_named_and_can_be_left_alone(
    build: Callable[[], nn.Module], culprit: str, why: str
) -> None:
    with pytest.raises(AutoSparseError, match=rf"cannot be removed from {culprit} .*{why}.* --keep {culprit}"):
        coupled(build)
    coupling = coupled(build, culprit)
    assert coupling.fixed[culprit] == f"{culprit} is to be kept"
    assert len(coupling) > 0


def test_a_network_that_cannot_be_evaluated_is_refused() -> None:
    with pytest.raises(AutoSparseError, match=r"Small cannot be traced on images of \(1, 8, 8\) \(.*\): check"):
        couple(RESIDUAL(), torch.zeros(1, 1, 8, 8))


def test_the_model_is_left_as_it_was() -> None:
    model = RESIDUAL()
    model.train()
    model.stem.weight.requires_grad_(False)  # type: ignore[union-attr]
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    couple(model, IMAGE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not model.stem.weight.requires_grad  # type: ignore[union-attr]
    assert torch.equal(torch.get_rng_state(), state)


def test_every_position_of_a_side_is_in_one_group_or_none() -> None:
    coupling = couple(create_model("torchvision:densenet121"), torch.zeros(1, 3, 32, 32))
    seen: dict[tuple[str, str], list[int]] = {}
    for group in coupling:
        for member in group.members:
            seen.setdefault((member.module, member.side), []).extend(member.positions.ravel().tolist())
    assert all(len(positions) == len(set(positions)) for positions in seen.values())
    # the second layer of a dense block reads what the stem and the first one wrote, side by side
    assert sorted(seen["features.denseblock1.denselayer2.conv1", "in"]) == list(range(96))


def test_small_networks_are_what_their_names_say() -> None:
    assert isinstance(RESIDUAL(), Small)
    assert np.isfinite(RESIDUAL()(torch.ones(2, 3, 8, 8)).detach().numpy()).all()
