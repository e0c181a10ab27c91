"""Exported files compute what the network does, at any number of images, or are not there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import call, error_of, snapshot
from torch import Tensor, nn

from autosparse import exporting
from autosparse.channels.coupling import couple
from autosparse.channels.store import load, save_shrunk
from autosparse.channels.surgery import shrink_
from autosparse.errors import AutoSparseError
from autosparse.experiment.stored import open_network
from autosparse.exporting import Exported, export_onnx, export_program
from autosparse.masks import Masks
from autosparse.models import seeded_model
from autosparse.training import load_state

Capture = pytest.CaptureFixture[str]
Export = Callable[[nn.Module, Tensor, Path], Exported]

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")), reason="ONNX is not installed"
)
EXPORTS = [pytest.param(export_program, id="program"), pytest.param(export_onnx, id="onnx", marks=needs_onnx)]
IMAGE = (3, 8, 8)


def run(path: Path, images: Tensor) -> list[Tensor]:
    """What a file computes, with nothing of ours."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return [torch.from_numpy(found) for found in session.run(None, {"images": images.numpy()})]
    found = torch.export.load(path).module()(images)
    return [found] if isinstance(found, Tensor) else list(found)


def file_of(export: Export, folder: Path) -> Path:
    return folder / ("network.onnx" if export is export_onnx else "network.pt2")


def noise(batch: int, *shape: int) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(7))


def lively(model: nn.Module) -> nn.Module:
    """Outputs that depend on the images as much as on biases, as a trained network's do."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("bias"):
                tensor.zero_()
    return model


def shrunk(name: str, size: int, **options: Any) -> nn.Module:
    model = lively(seeded_model(name, seed=0, num_classes=10, **options))
    coupling = couple(model, torch.zeros(1, 3, size, size))
    shrink_(model, coupling, {group.name: np.arange(group.width) % 2 == 0 for group in coupling})
    return model


# In Python ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("vgg16", 32, {"width": 0.25}),
        pytest.param("vgg16", 32, {}, marks=pytest.mark.slow),
        pytest.param("mobilenetv2", 32, {}, marks=pytest.mark.slow),
        pytest.param("torchvision:resnet50", 64, {}, marks=pytest.mark.slow),
    ],
    ids=["vgg16-narrow", "vgg16", "mobilenetv2", "resnet50"],
)
def test_a_shrunk_network_computes_the_same_elsewhere(
    name: str, size: int, options: dict[str, Any], export: Export, tmp_path: Path
) -> None:
    model = shrunk(name, size, **options)
    path = file_of(export, tmp_path)
    found = export(model, torch.zeros(1, 3, size, size), path)
    assert (found.path, found.bytes, found.tolerance) == (path, path.stat().st_size, 1e-4)
    assert found.bytes > 4 * sum(parameter.numel() for parameter in model.parameters())  # the weights are inside
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    for batch in (1, 3):
        images = noise(batch, 3, size, size)
        with torch.no_grad():
            expected = model.eval()(images)
        assert float(expected.std(0).max() if batch > 1 else 1) > 1e-3 * float(expected.abs().max())
        torch.testing.assert_close(run(path, images)[0], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("export", EXPORTS)
def test_several_outputs_keep_their_order(export: Export, tmp_path: Path) -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(192, 4), nn.Linear(192, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.second(x.flatten(1)), self.first(x.flatten(1))

    model, path = TwoHeads(), file_of(export, tmp_path)
    export(model, torch.zeros(1, *IMAGE), path)
    found = run(path, noise(2, *IMAGE))
    assert [tuple(output.shape) for output in found] == [(2, 6), (2, 4)]
    torch.testing.assert_close(found[1], model(noise(2, *IMAGE))[1].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("export", EXPORTS)
def test_the_model_is_left_as_it_was(export: Export, conv_net: Callable[[int], nn.Module], tmp_path: Path) -> None:
    model = conv_net(0).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    export(model, torch.zeros(1, *IMAGE), file_of(export, tmp_path))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Counting(nn.Module):
    """Every call computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.calls = nn.Linear(192, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.calls * self.head(x.flatten(1))


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.mean() > 0 else -x.flatten(1)


class ForTwoImages(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Counting, r"the exported Counting computes something else: its outputs differ by .* nothing was written"),
        (Deciding, r"Deciding cannot be exported for images of \[3, 8, 8\] \(.*\): check"),
        (ForTwoImages, r"ForTwoImages cannot be exported for images of \[3, 8, 8\] \(.*\): check"),
    ],
)
def test_a_file_that_would_be_wrong_does_not_stay(
    model: type[nn.Module], message: str, export: Export, tmp_path: Path
) -> None:
    path = file_of(export, tmp_path)
    path.write_text("what was there")
    with pytest.raises(AutoSparseError, match=message) as caught:
        export(model(), torch.zeros(1, *IMAGE), path)
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == {path.name: b"what was there"}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(AutoSparseError, match=r"needs onnxscript; run: pip install 'autosparse\[onnx\]'"):
        export_onnx(Counting(), torch.zeros(1, *IMAGE), tmp_path / "network.onnx")


def test_images_of_another_shape_are_refused(conv_net: Callable[[int], nn.Module], tmp_path: Path) -> None:
    with pytest.raises(AutoSparseError, match=r"ConvNet cannot be exported for images of \[1, 8, 8\]"):
        export_program(conv_net(0), torch.zeros(1, 1, 8, 8), tmp_path / "network.pt2")
    assert snapshot(tmp_path) == {}


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def shrunk_folder(tmp_path: Path) -> Path:
    dense = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    small = copy.deepcopy(dense)
    coupling = couple(dense, torch.zeros(1, *IMAGE))
    shrink_(small, coupling, {group.name: np.arange(group.width) % 2 == 0 for group in coupling})
    network = {"model": "resnet20", "model_args": {"width": 0.25}, "num_classes": 10, "in_channels": 3}
    save_shrunk(tmp_path / "shrunk", small, dense, network=network, image_shape=IMAGE, facts={})
    return tmp_path / "shrunk"


def assert_computes(path: Path, model: nn.Module, image_shape: tuple[int, ...] = IMAGE) -> None:
    images = noise(2, *image_shape)
    with torch.no_grad():
        torch.testing.assert_close(run(path, images)[0], model.eval()(images), rtol=1e-4, atol=1e-4)


@needs_onnx
def test_both_files_of_a_shrunk_network(shrunk_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    onnx, program = tmp_path / "new" / "network.onnx", tmp_path / "network.pt2"
    result = call(capsys, "export", shrunk_folder, "--onnx", onnx, "--program", program)
    assert (result.status, result.err) == (0, "")
    assert f"resnet20, shrunk: wrote {onnx}" in result.out
    assert f"resnet20, shrunk: wrote {program}" in result.out
    assert [file.name for file in onnx.parent.iterdir()] == [onnx.name]
    for path in (onnx, program):
        assert_computes(path, load(shrunk_folder))
    again = call(capsys, "export", shrunk_folder, "--program", program)
    assert "network.pt2 exists: choose another file, or give --force" in error_of(again)
    assert call(capsys, "export", shrunk_folder, "--program", program, "--force").status == 0


def test_a_pruned_network_is_exported_with_its_zeros(pruned_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "network.pt2"
    result = call(capsys, "export", pruned_folder, "--program", path)
    assert (result.status, result.err) == (0, "")
    model = seeded_model("resnet20", seed=1, num_classes=10, width=0.25)
    load_state(pruned_folder / "init.safetensors", model)
    Masks.load(pruned_folder / "masks.safetensors").apply(model)
    assert_computes(path, model)


def test_a_trained_network_is_exported(pruned_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    trained, path = tmp_path / "trained", tmp_path / "network.pt2"
    assert (
        call(capsys, "train", "--masks", pruned_folder, "--epochs", 1, "--device", "cpu", "--out", trained).status == 0
    )
    assert call(capsys, "export", trained, "--program", path).status == 0
    model = seeded_model("resnet20", seed=1, num_classes=10, width=0.25)
    load_state(trained / "model.safetensors", model)
    assert_computes(path, model)
    assert open_network(trained).image_shape == IMAGE


def test_code_of_the_users_own_is_run_only_when_named(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))\n"
    (tmp_path / "export_own.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    network = {"model": "export_own:make", "model_args": {}, "num_classes": 10, "in_channels": 3}
    save_shrunk(Path("own"), model, copy.deepcopy(model), network=network, image_shape=IMAGE, facts={})
    refused = error_of(call(capsys, "export", "own", "--program", "network.pt2"))
    assert "names export_own:make, code of your own that is not run because a file says so" in refused
    assert "--model export_own:make" in refused
    error_of(call(capsys, "export", "own", "--program", "network.pt2", "--model", "os:getcwd"))
    result = call(capsys, "export", "own", "--program", "network.pt2", "--model", "export_own:make")
    assert (result.status, result.err) == (0, "")
    assert_computes(Path("network.pt2"), model)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("shrunk",), ["nothing to write", "--onnx", "--program"]),
        (("shrunk", "--onnx", "same", "--program", "./same"), ["both say same"]),
        (("nowhere", "--program", "x.pt2"), ["nowhere holds no manifest.json and no summary.json"]),
        (("shrunk", "--program", "shrunk"), ["shrunk exists"]),
        (("shrunk", "--program", "shrunk/manifest.json/x.pt2"), ["cannot write shrunk/manifest.json/x.pt2"]),
        ((), ["DIR"]),
    ],
    ids=["nothing", "same", "nowhere", "taken", "below a file", "no folder"],
)
def test_mistakes_are_one_line_and_change_nothing(
    arguments: tuple[str, ...],
    facts: list[str],
    shrunk_folder: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    line = error_of(call(capsys, "export", *arguments))
    assert all(fact in line for fact in facts), line
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("{}", "is no autosparse-pruning file"),
        ("[]", "holds no JSON object"),
        ('{"kind": "autosparse-training", "schema_version": 1, "network": {}}', "'data.image_size' is None"),
        (
            '{"kind": "autosparse-training", "schema_version": 1, "network": {"model": "os:getcwd", "model_args": {}, '
            '"num_classes": 10, "in_channels": 3}, "data": {"image_size": 8}}',
            "os:getcwd, code of your own",
        ),
    ],
)
def test_summaries_are_not_trusted(text: str, fact: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "summary.json").write_text(text)
    assert fact in error_of(call(capsys, "export", tmp_path, "--program", tmp_path / "network.pt2"))
    assert not (tmp_path / "network.pt2").exists()
