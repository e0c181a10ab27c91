"""Cells of real methods, and which methods are refused for which networks before anything is run."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_results import cell_file, write_cells
from torch import Tensor, nn

from autosparse.bench.cell_run import check_cell, run_cell, trainings_of
from autosparse.bench.cells import Cell
from autosparse.bench.results import read_results
from autosparse.bench.shared import Shared
from autosparse.cli import main
from autosparse.data import ImageData
from autosparse.errors import AutoSparseError
from autosparse.files import load_tensors, save_tensors
from autosparse.models.registry import MODELS

BASE = Cell(
    model="resnet20",
    model_args={"width": 0.25},
    dataset="digits",
    image_size=8,
    method="snip",
    density=0.1,
    seed=1,
    score_images=128,
    train={**Cell("", "", "", 1, 1).train, "epochs": 1},
)


BATCH = BASE.train["batch_size"]
STEPS = 10  # of 128 images: an epoch


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run(cell: Cell, folder: Path, test: bool = True) -> dict[str, Any]:
    work = folder / "work" / cell.hash
    work.mkdir(parents=True, exist_ok=True)
    return run_cell(cell, data_dir=folder, device="cpu", work=work, shared=Shared(folder / "shared"), test=test)


@pytest.mark.parametrize(
    "method", ["snip", "autos", "gmp", "granet", "rigl", "earlycrop", "ltr", "sap", "magnitude-after-training"]
)
def test_every_moment_of_pruning_gives_a_result_of_exact_size(method: str, tmp_path: Path) -> None:
    result = run(replace(BASE, method=method), tmp_path)
    assert result["kept"] == round(0.1 * result["total"]) == sum(layer["kept"] for layer in result["layers"])
    assert 0 <= result["test_accuracy"] <= 1
    assert len(result["history"]) == 1
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(("method", "when"), [("l1", None), ("precrop", None), ("l1", "epoch")])
def test_a_cell_that_removes_channels_tells_what_is_left(method: str, when: str | None, tmp_path: Path) -> None:
    cell = replace(BASE, method=method, density=0.5, measure="flops")
    if when is not None:
        cell = replace(cell, when=when, options={"epoch": 1}, train={**BASE.train, "epochs": 2})
    result = run(cell, tmp_path)
    reached, training = result["channels"]["reached"], result["training"]
    assert 0.3 < reached["flops"] <= 0.5
    assert training["dense_epochs"] == (1 if when else 0)
    expected = (1 + reached["flops"]) / 2 if when else reached["flops"]
    assert training["flops"] / training["dense_flops"] == pytest.approx(expected)
    assert 0 < result["latency"]["low"] <= result["latency"]["share"] <= result["latency"]["high"]
    assert sum(layer["kept"] for layer in result["layers"]) == result["kept"] < result["total"]
    write_cells(tmp_path, {**cell_file("l1"), "status": "done", "cell": cell.as_dict(), "result": result})
    (read,) = read_results(tmp_path).done
    assert read.outcome is not None
    assert read.outcome.smaller is not None
    assert read.outcome.smaller.flops == reached["flops"]
    assert read.setting.measure == "flops"


def test_shares_of_channels_that_cannot_be_reached_are_refused(tiny_data: ImageData) -> None:
    with pytest.raises(AutoSparseError, match=r"l1 does not apply to resnet20: FLOPs of 0.0001 cannot be reached"):
        check_cell(replace(BASE, method="l1", density=1e-4, measure="flops"), tiny_data)


def test_a_dense_cell_keeps_everything_and_is_shared_with_pruning_after_training(tmp_path: Path) -> None:
    dense = run(replace(BASE, method="dense", density=1.0, score_images=0), tmp_path)
    assert dense["kept"] == dense["total"] == 17132
    folders = {path.name for path in (tmp_path / "shared").iterdir() if path.is_dir()}
    pruned = run(replace(BASE, method="magnitude-after-training"), tmp_path)
    assert {path.name for path in (tmp_path / "shared").iterdir() if path.is_dir()} == folders
    assert pruned["prune_seconds"] >= dense["train_seconds"]  # what was shared is counted all the same
    assert pruned["prune_images"] == STEPS * BATCH


def test_shared_gradients_give_the_masks_of_a_run_of_its_own(tmp_path: Path) -> None:
    """A cell repeats ``autosparse train --method``, which shares nothing, to the bit."""
    cell = BASE
    first = run(cell, tmp_path)
    command = cell.command(tmp_path / "alone").split()
    assert main([*command[1:], "--device", "cpu"]) == 0
    alone = json.loads((tmp_path / "alone" / "summary.json").read_text())
    assert alone["test_accuracy"] == first["test_accuracy"]
    assert [layer["kept"] for layer in alone["pruned"]["layers"]] == [layer["kept"] for layer in first["layers"]]
    assert [path.name for path in (tmp_path / "shared").glob("*/gradients.safetensors")] == ["gradients.safetensors"]


def test_a_shared_gradient_counts_for_every_method_that_uses_it(tmp_path: Path) -> None:
    run(BASE, tmp_path)
    (file,) = (tmp_path / "shared").glob("*/gradients.safetensors")
    gradients, _ = load_tensors(file, "initial-gradients")
    save_tensors(file, "initial-gradients", gradients, {"cost": {"seconds": 1e6, "peak_bytes": 2**50}})
    again = run(replace(BASE, density=0.2), tmp_path)
    assert again["prune_seconds"] > 1e6
    assert again["prune_peak_bytes"] == 2**50


def test_rounds_are_shared_by_densities(tmp_path: Path) -> None:
    ltr = replace(BASE, method="ltr", options={"fraction": 0.5})
    half, eighth = (run(replace(ltr, density=density), tmp_path) for density in (0.5, 0.125))
    assert [len(half["rounds"]), len(eighth["rounds"])] == [1, 3]
    assert half["rounds"] == eighth["rounds"][:1]  # trained once: the seconds agree too
    assert [half["prune_images"], eighth["prune_images"]] == [STEPS * BATCH, 3 * STEPS * BATCH]


@pytest.mark.parametrize(
    ("method", "options", "images"),
    [("random", {}, 0), ("snip", {}, 128), ("iter-snip", {"rounds": 3}, 3 * 128), ("synflow", {"rounds": 5}, 5)],
)
def test_images_that_a_method_looks_at_are_counted(
    method: str, options: dict[str, Any], images: int, tmp_path: Path
) -> None:
    cell = replace(BASE, method=method, options=options)
    assert run(cell, tmp_path)["prune_images"] == images
    assert run(replace(cell, density=0.2), tmp_path)["prune_images"] == images  # with gradients that are shared


def test_a_candidate_is_not_shown_test_images(tmp_path: Path) -> None:
    assert run(BASE, tmp_path, test=False)["test_accuracy"] is None


def test_what_a_method_costs() -> None:
    def cost(method: str, options: dict[str, Any], density: float = 0.1) -> float:
        return trainings_of(method, options, density, 25_600)

    assert [cost(name, {}) for name in ("dense", "snip", "rigl", "autos")] == [1, 1, 1, 1]
    assert cost("magnitude-after-training", {}) == 2
    assert cost("ltr", {"fraction": 0.5}, 0.5) == 2
    assert cost("ltr", {"fraction": 0.5}) == 5
    assert cost("ltr", {"fraction": 0.1}, 0.01) == 3
    assert cost("autos", {"steps": 100}) == 1.5  # of 128 images
    assert cost("scout", {}) == 3.5


class TwoHeads(nn.Module):
    """Returns two tensors."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.head(x.mean((2, 3)))
        return y, y


class OnceOnly(torch.autograd.Function):
    """Twice x, differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class Once(nn.Module):
    """Has no second derivatives."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return OnceOnly.apply(self.head(x.mean((2, 3))))


class Mixing(nn.Module):
    """Normalises over its channels, which then all depend on each other."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x.mean((2, 3)))))


@pytest.mark.parametrize(
    ("network", "method", "reason"),
    [
        (TwoHeads, "synflow", "is tuple, not one tensor"),
        (TwoHeads, "snip", "is tuple, not one tensor"),
        (Once, "grasp", "needs second derivatives"),
        (Once, "prospr", "needs second derivatives"),
        (Once, "snip", None),
        (Mixing, "phew", "LayerNorm|mix"),
        (Mixing, "synflow", None),
    ],
)
def test_a_method_that_does_not_apply_is_refused_by_name(
    network: type[nn.Module],
    method: str,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tiny_data: ImageData,
) -> None:
    monkeypatch.setitem(MODELS._entries, "test-network", network)
    cell = replace(BASE, model="test-network", model_args={}, method=method)
    if reason is None:
        check_cell(cell, tiny_data)
        return
    with pytest.raises(AutoSparseError, match=f"^{method} does not apply to test-network: .*({reason})"):
        check_cell(cell, tiny_data)


def test_settings_that_a_moment_cannot_honour_are_refused(tiny_data: ImageData) -> None:
    for sanity in ("shuffle", "rewire"):
        with pytest.raises(AutoSparseError, match=rf"rigl.*takes no sanity {sanity}"):
            check_cell(replace(BASE, method="rigl", sanity=sanity), tiny_data)
    check_cell(replace(BASE, method="ltr", sanity="rewire"), tiny_data)
    with pytest.raises(AutoSparseError, match=r"ltr.*takes no budget"):
        check_cell(replace(BASE, method="ltr", budget="erk"), tiny_data)
