"""Masks: exact zeros, now and after every step of an optimizer; and files that are checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from autosparse.errors import FileFormatError, MaskMismatchError
from autosparse.files import save_tensors
from autosparse.layers import prunable
from autosparse.masks import Masks

Net = Callable[[], nn.Module]


def half(model: nn.Module) -> Masks:
    """Every second weight of each layer."""
    return Masks(
        {
            name: (torch.arange(weight.numel()) % 2 == 0).reshape(weight.shape)
            for name, weight in prunable(model).items()
        }
    )


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().view(torch.int32)


def test_masks_are_a_mapping_that_counts() -> None:
    masks = Masks({"a": torch.tensor([[True, False], [False, False]]), "b": torch.tensor([True, True])})
    assert list(masks) == ["a", "b"]
    assert len(masks) == 2
    assert (masks.total, masks.kept, masks.density) == (6, 3, 0.5)
    assert masks.layer_densities() == {"a": 0.25, "b": 1.0}


def test_dense_masks_keep_everything(conv_net: Net) -> None:
    model = conv_net()
    before = [weight.clone() for weight in prunable(model).values()]
    masks = Masks.dense(model)
    masks.apply(model)
    assert masks.density == 1
    assert all(torch.equal(a, b) for a, b in zip(before, prunable(model).values(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_a_mask_must_be_boolean(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"mask of layer\.weight is torch\..*, not bool"):
        Masks({"layer.weight": torch.ones(2, dtype=dtype)})


def test_apply_makes_positive_zeros_and_leaves_the_rest_bit_equal() -> None:
    layer = nn.Linear(3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[float("nan"), -2.0, -3.0]]))
    bias = layer.bias.clone()
    Masks({"weight": torch.tensor([[False, False, True]])}).apply(layer)
    assert bits(layer.weight).tolist() == [[0, 0, bits(torch.tensor(-3.0)).item()]]
    assert torch.equal(layer.bias, bias)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_held_weights_stay_exactly_zero_while_the_others_move(conv_net: Net, kind: str) -> None:
    model = conv_net()
    model.train()
    masks = half(model)
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    # One step before the hold, so that momentum of removed weights is not zero when it begins.
    x, y = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    step()
    handle = masks.hold(model, optimizer)
    start = {name: weight.detach().clone() for name, weight in prunable(model).items()}
    for _ in range(4):
        step()
        for name, weight in prunable(model).items():
            assert not bits(weight)[~masks[name]].any(), name
    for name, weight in prunable(model).items():
        assert (weight != start[name])[masks[name]].float().mean() > 0.9
    handle.remove()
    step()
    assert any(bool(weight[~masks[name]].any()) for name, weight in prunable(model).items())


def test_hold_applies_at_once(conv_net: Net) -> None:
    model = conv_net()
    masks = half(model)
    masks.hold(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(not weight[~masks[name]].any() for name, weight in prunable(model).items())


def test_a_mask_of_another_shape_names_the_layer_and_both_shapes(conv_net: Net) -> None:
    masks = Masks({**Masks.dense(conv_net()), "classifier.weight": torch.ones(10, 9, dtype=torch.bool)})
    with pytest.raises(
        MaskMismatchError, match=r"ConvNet: 'classifier\.weight' has shape \[10, 8\], its mask \[10, 9\]"
    ):
        masks.apply(conv_net())


def test_a_mask_too_many_names_the_layer_and_its_shape(conv_net: Net) -> None:
    masks = Masks({**Masks.dense(conv_net()), "extra.weight": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(MaskMismatchError, match=r"no prunable weight 'extra\.weight' \(mask \[2, 2\]\)"):
        masks.check(conv_net())


def test_a_missing_mask_names_the_layer_and_its_shape(conv_net: Net) -> None:
    masks = dict(Masks.dense(conv_net()))
    del masks["depthwise.weight"]
    with pytest.raises(MaskMismatchError, match=r"no mask for 'depthwise\.weight' of shape \[8, 1, 3, 3\]"):
        Masks(masks).check(conv_net())


def test_masks_that_do_not_fit_change_nothing(conv_net: Net) -> None:
    model = conv_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = dict(half(model))
    del masks["classifier.weight"]
    with pytest.raises(MaskMismatchError):
        Masks(masks).apply(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_save_and_load_round_trip(conv_net: Net, tmp_path: Path) -> None:
    masks = half(conv_net())
    masks.save(tmp_path / "m.safetensors", {"method": "half"})
    found = Masks.load(tmp_path / "m.safetensors")
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    found.check(conv_net())


def test_files_that_are_no_masks_are_refused(conv_net: Net, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    half(conv_net()).save(path, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FileFormatError, match="damaged"):
        Masks.load(path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(FileFormatError, match="damaged or no safetensors file"):
        Masks.load(path)
    header = {"kind": "masks", "schema_version": "99", "metadata": "{}"}
    safetensors.torch.save_file({"a": torch.ones(2, dtype=torch.bool)}, str(path), metadata=header)
    with pytest.raises(FileFormatError, match="schema version 99"):
        Masks.load(path)
    save_tensors(path, "checkpoint", {"a": torch.ones(2, dtype=torch.bool)}, {})
    with pytest.raises(FileFormatError, match="no masks file"):
        Masks.load(path)
    save_tensors(path, "masks", {"a": torch.ones(2)}, {})
    with pytest.raises(FileFormatError, match=r"'a' is torch\.float32, not a mask"):
        Masks.load(path)
    with pytest.raises(FileFormatError, match="does not exist"):
        Masks.load(tmp_path / "absent.safetensors")
