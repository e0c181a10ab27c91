"""``autosparse shrink`` and ``autosparse train`` with methods that remove channels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY, call, error_of, snapshot
from torch import nn

from autosparse.channels.criteria import CHANNEL_CRITERIA
from autosparse.channels.recipes import CHANNEL_RECIPES, list_channel_methods
from autosparse.channels.store import load
from autosparse.files import load_tensors
from autosparse.triggers.init import AtInit

Capture = pytest.CaptureFixture[str]

SMALL = (*TINY, "--score-images", "64")
QUICK = ("--epochs", "1", "--batch-size", "256", "--precision", "fp32")


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("model", ["resnet20", "mobilenetv2"])
@pytest.mark.parametrize(
    "method",
    [name for name in list_channel_methods() if isinstance(CHANNEL_RECIPES.get(name).when, AtInit)],
)
def test_every_method_at_initialisation_by_its_command(
    model: str, method: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    budget = ("--flops", "1.0", "--params", "0.5") if method == "preconfig" else ("--flops", "0.5")
    result = call(capsys, "shrink", *SMALL, "--model", model, "--method", method, *budget, "--out", out)
    if method == "bn-scale":  # says nothing of a network that was not trained
        assert "gives every channel the same score here" in error_of(result)
        assert not out.exists()
        return
    assert result.status == 0, result.err
    summary = read(out)
    limit = 1.0 if method == "preconfig" else 0.5
    assert summary["reached"]["flops"] <= limit
    assert summary["reached"]["flops"] > 0.98 * limit or summary["note"] or method == "preconfig"
    assert f"next: autosparse train --masks {out}" in result.out
    small = load(out)
    assert parameters(small) == summary["params"][1]
    assert small(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert {path.name for path in out.iterdir()} == {"manifest.json", "model.safetensors", "summary.json", "widths.png"}


def test_a_shrunk_network_is_trained_from_the_weights_that_it_has(tmp_path: Path, capsys: Capture) -> None:
    shrunk, trained = tmp_path / "shrunk", tmp_path / "trained"
    assert call(capsys, "shrink", *SMALL, "--method", "l1", "--flops", "0.5", "--out", shrunk).status == 0
    result = call(capsys, "train", "--masks", shrunk, *QUICK, "--device", "cpu", "--out", trained)
    assert result.status == 0, result.err
    summary = read(trained)
    pruned = summary["pruned"]
    assert pruned["channels"]["asked"] == {"flops": 0.5}
    assert pruned["kept"] == sum(layer["kept"] for layer in pruned["layers"]) < pruned["total"]
    assert pruned["training"]["dense_epochs"] == 0
    dense, small = pruned["channels"]["flops"]
    assert pruned["training"]["flops"] / pruned["training"]["dense_flops"] == pytest.approx(small / dense)
    before, after = load(shrunk), load(trained)
    assert parameters(before) == parameters(after)
    assert not torch.equal(next(before.parameters()), next(after.parameters()))
    # the same in one command
    again = tmp_path / "again"
    words = ("train", *SMALL, "--method", "l1", "--flops", "0.5", *QUICK, "--out", again)
    assert call(capsys, *words).status == 0
    for name, value in load_tensors(trained / "model.safetensors", "state")[0].items():
        assert torch.equal(value, load_tensors(again / "model.safetensors", "state")[0][name])


def test_parts_put_together_prune_at_their_moment(tmp_path: Path, capsys: Capture) -> None:
    words = ("--when", "epi", "--what", "taylor", "--where", "channels", "--flops", "0.5", "--method-arg", "cap=1")
    result = call(capsys, "train", *SMALL, *words, *QUICK, "--epochs", "2", "--out", tmp_path / "out")
    assert result.status == 0, result.err
    assert "of the FLOPs kept after epoch 1: test accuracy" in result.out
    pruned = read(tmp_path / "out")["pruned"]
    assert (pruned["trigger"]["pruned_at_epoch"], pruned["trigger"]["settled"]) == (1, False)
    assert pruned["trigger"]["threshold"] == 0.944
    assert pruned["channels"]["criterion"] == "taylor"
    training, (dense, small) = pruned["training"], pruned["channels"]["flops"]
    assert training["flops"] / training["dense_flops"] == pytest.approx((dense + small) / (2 * dense))
    load(tmp_path / "out")


@pytest.mark.parametrize("model", ["resnet20", "mobilenetv2"])
@pytest.mark.parametrize("method", ["epi", "epi-taylor", "early-bird", "earlycrop-s"])
def test_every_early_method_by_its_command(method: str, model: str, tmp_path: Path, capsys: Capture) -> None:
    words = ("--method", method, "--flops", "0.5", "--method-arg", "cap=1", *QUICK, "--epochs", "2")
    result = call(capsys, "train", *SMALL, "--model", model, *words, "--out", tmp_path / "out")
    assert result.status == 0, result.err
    channels = read(tmp_path / "out")["pruned"]["channels"]
    assert channels["reached"]["flops"] <= 0.5
    assert channels["reached"]["flops"] >= 0.98 * 0.5 or "below the budget" in channels["note"]


MISTAKES = {
    "no budget": (("--method", "l1"), "no budget was given: 0.5 of the FLOPs"),
    "a share above 1": (("--method", "l1", "--flops", "2"), "flops of 2.0 is outside (0, 1]"),
    "out of reach": (("--method", "l1", "--flops", "0.0001"), "the narrowest network has"),
    "a method for weights": (("--method", "granet", "--flops", "0.5"), "unknown method for channels 'granet'"),
    "a method for later": (("--method", "epi", "--flops", "0.5"), "run it with 'autosparse train --method epi'"),
    "a module that is not there": (("--flops", "0.5", "--keep", "stem"), "cannot keep 'stem'"),
    "everything kept": (
        ("--flops", "0.5", "--keep", "blocks", "--keep", "conv"),
        "has no channels that could be removed",
    ),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_shrink_refuses(words: tuple[str, ...], message: str, tmp_path: Path, capsys: Capture) -> None:
    assert message in error_of(call(capsys, "shrink", *SMALL, *words, "--out", tmp_path / "out"))
    assert snapshot(tmp_path) == {}


TRAIN_MISTAKES = {
    "parts without channels": (("--when", "epi", "--flops", "0.5"), "add --where channels"),
    "a kind of thing": (("--method", "l1", "--where", "chanels", "--flops", "0.5"), "did you mean channels"),
    "weights and FLOPs": (
        ("--method", "snip", "--flops", "0.5"),
        "--flops does not go with a method that removes single",
    ),
    "channels and sparsity": (("--method", "l1", "--flops", "0.5", "--sparsity", "0.9"), "--sparsity does not go"),
    "channels called weights": (
        ("--method", "l1", "--where", "weights", "--flops", "0.5"),
        "leave out --where weights",
    ),
    "fresh weights later": (
        ("--method", "precrop", "--where", "channels", "--when", "epi", "--flops", "0.5"),
        "draws fresh weights",
    ),
    "too short": (("--method", "epi", "--flops", "0.5"), "prunes after epoch 11 at the earliest"),
    "a cap behind the end": (("--method", "epi", "--flops", "0.5", "--method-arg", "cap=7"), "give an earlier cap"),
}


@pytest.mark.parametrize(("words", "message"), TRAIN_MISTAKES.values(), ids=TRAIN_MISTAKES)
def test_what_train_refuses(words: tuple[str, ...], message: str, tmp_path: Path, capsys: Capture) -> None:
    assert message in error_of(call(capsys, "train", *SMALL, *words, *QUICK, "--out", tmp_path / "out"))
    assert snapshot(tmp_path) == {}


def test_methods_and_criteria_are_listed_with_what_they_remove(capsys: Capture) -> None:
    listed = call(capsys, "list", "methods").out
    for name in list_channel_methods():
        assert f"  {name}" in listed
    assert (
        listed.index("weights at init") < listed.index("channels at init") < listed.index("channels early in training")
    )
    assert all(name in call(capsys, "list", "criteria").out for name in CHANNEL_CRITERIA.names())
    explained = call(capsys, "list", "epi").out
    assert "removes channels early in training" in explained
    assert "threshold=0.983" in explained
