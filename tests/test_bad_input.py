"""Every mistake is one line on stderr that names it, exit status 2, and leaves everything as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
from commands import TINY, call, error_of, run, snapshot
from PIL import Image

from autosparse.files import save_tensors

Capture = pytest.CaptureFixture[str]
Refuses = Callable[..., str]

MAGNITUDE = ("prune", "--out", "out", *TINY, "--method", "magnitude")


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current directory is the watched one: output in a wrong place is found."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refuses(tmp_path: Path, capsys: Capture) -> Refuses:
    """Runs a command that must fail with one line holding all ``facts`` and change no file; returns the line."""

    def check(arguments: tuple[object, ...], *facts: str) -> str:
        before = snapshot(tmp_path)
        line = error_of(call(capsys, *arguments))
        for fact in facts:
            assert fact in line
        assert snapshot(tmp_path) == before
        return line

    return check


# Names and numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("prune", "--out", "out", "--method", "magnitude", "--model", "resnte20"),
         ["unknown model 'resnte20'", "did you mean", "resnet20"]),
        (("prune", "--out", "out", "--method", "magnitude", "--model", "nonsense"), ["'nonsense'", "vgg16", "timm:"]),
        (("prune", "--out", "out", "--method", "magnitude", "--model", "torchvision:resnet19"), ["resnet18"]),
        ((*MAGNITUDE, "--dataset", "cifar11"), ["unknown data set 'cifar11'", "cifar10", "imagefolder:PATH"]),
        (("prune", "--out", "out", "--method", "magnitud"), ["unknown method 'magnitud'", "did you mean magnitude"]),
        (("generate", "--out", "out.h5", "--criterion", "magnitud"), ["'magnitud'", "did you mean magnitude"]),
        (("generate", "--out", "out.h5", "--criterion", "autos"), ["criterion 'autos'", "known: magnitude, snip"]),
        (("generate", "--out", "out.h5", "--schedule", "fractions"), ["'fractions'", "did you mean fraction?"]),
        (("generate", "--out", "out.h5", "--scope", "layers"), ["'layers'", "did you mean layer?"]),
        (("prune", "--out", "out", "--scorer", "resnet20-cifra10"), ["'resnet20-cifra10'", "resnet20-cifar10", "path"]),
        ((*MAGNITUDE, "--budget", "unifrom"), ["unknown budget 'unifrom'", "did you mean uniform?"]),
        (("train", "--dense", "--out", "out", "--schedule", "one-cylce"), ["'one-cylce'", "did you mean one-cycle?"]),
        (("train", "--dense", "--out", "out", "--precision", "fp16"), ["'fp16'", "fp32"]),
        (("train-scorer", "x.h5", "--out", "s.safetensors", "--features", "scalefree"), ["'scalefree'", "scale-free"]),
        (("train-scorer", "x.h5", "--out", "s.safetensors", "--network", "mpl"), ["'mpl'", "mlp"]),
        (("train-scorer", "x.h5", "--out", "s.safetensors", "--holdout", "runs"), ["'runs'", "did you mean run?"]),
        (("list", "modles"), ["'modles'", "did you mean models"]),
        (("prnue",), ["prnue"]),
    ],
)  # fmt: skip
def test_unknown_names_come_with_the_nearest(arguments: tuple[str, ...], facts: list[str], refuses: Refuses) -> None:
    refuses(arguments, *facts)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ((*MAGNITUDE, "--sparsty", "0.9"), ["--sparsty", "--sparsity"]),
        ((*MAGNITUDE, "--sparsity", "much"), ["--sparsity", "number"]),
        ((*MAGNITUDE, "--seed", "1.5"), ["--seed", "integer"]),
        ((*MAGNITUDE, "--score-images", "0"), ["--score-images"]),
        (("prune", "--method", "magnitude"), ["--out"]),
        (("train", "--dense", "--out"), ["--out"]),
        (("train-scorer", "--out", "s.safetensors"), ["FILE"]),
        (("list",), ["KIND"]),
    ],
)  # fmt: skip
def test_misused_options_are_one_line(arguments: tuple[str, ...], facts: list[str], refuses: Refuses) -> None:
    refuses(arguments, *facts)


@pytest.mark.parametrize("sparsity", ["1", "-0.1", "1.5", "nan"])
def test_a_sparsity_outside_its_range_is_refused(sparsity: str, refuses: Refuses) -> None:
    refuses((*MAGNITUDE, "--sparsity", sparsity), "sparsity", str(float(sparsity)), "[0, 1)")


def test_a_sparsity_that_keeps_nothing_is_refused(refuses: Refuses) -> None:
    refuses((*MAGNITUDE, "--sparsity", "0.9999999"), "sparsity 0.9999999 keeps none of", "the largest useful one is")


def test_a_floor_that_needs_more_than_is_kept_is_refused(refuses: Refuses) -> None:
    refuses((*MAGNITUDE, "--min-layer-density", "0.5"), "at least 0.5 needs", "only", "ask for a sparsity of")


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("train", "--dense", "--out", "out", "--epochs", "-1"), ["epochs is -1"]),
        (("train", "--dense", "--out", "out", "--lr", "0"), ["lr is 0.0"]),
        (("train", "--dense", *TINY, "--out", "out", "--batch-size", "5000"), ["less than one batch of 5000"]),
        (("generate", "--out", "out.h5", "--rounds", "0"), ["rounds is 0"]),
        (("generate", "--out", "out.h5", "--final-density", "1"), ["final-density is 1.0"]),
        (("generate", "--out", "out.h5", "--epochs", "0"), ["epochs is 0"]),
        (("generate", "--out", "out.h5", *TINY, "--rewind-steps", "99"), ["rewind-steps is 99"]),
        (("generate", "--out", "out.h5", *TINY, "--batch-size", "5000"), ["less than one batch of 5000"]),
        ((*MAGNITUDE, "--image-size", "2"), ["image size 2"]),
        (("train-scorer", "x.h5", "--out", "s.safetensors", "--holdout-fraction", "1"), ["holdout-fraction is 1.0"]),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_named(arguments: tuple[str, ...], facts: list[str], refuses: Refuses) -> None:
    refuses(arguments, *facts)


# Models and devices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "facts"),
    [
        ("width", ["'width'", "key=value"]),
        ("widht=0.5", ["widht", "accepted arguments", "width"]),
        ("width=-1", ["width"]),
        ("num_classes=7", ["num_classes"]),
    ],
)
def test_a_bad_model_argument_is_named(argument: str, facts: list[str], refuses: Refuses) -> None:
    refuses(("prune", "--out", "out", "--method", "magnitude", "--model", "resnet20", "--model-arg", argument), *facts)


def test_a_model_without_prunable_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("from torch import nn\n\ndef make(num_classes):\n    return nn.Flatten()\n")
    arguments = ["--model", "bare:make", "--out", "out", "--method", "magnitude"]
    result = run("prune", *arguments, cwd=tmp_path, env={"PYTHONDONTWRITEBYTECODE": "1"})
    assert "Flatten has no prunable weights" in error_of(result)
    assert list(snapshot(tmp_path)) == ["bare.py"]


def test_a_module_that_is_not_there_is_named(refuses: Refuses) -> None:
    line = refuses(("prune", "--out", "out", "--method", "magnitude", "--model", "nowhere.nets:make"))
    assert "there is no module 'nowhere'" in line


@pytest.mark.parametrize(
    "device",
    [
        "foo",
        pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")),
        pytest.param("mps", marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has one")),
    ],
)
def test_a_device_that_cannot_be_used_is_named(device: str, refuses: Refuses) -> None:
    refuses((*MAGNITUDE, "--device", device), f"device '{device}' is not usable here", "--device auto")


# Images ------------------------------------------------------------------------------------------------------------


def image_folder(root: Path) -> Path:
    for index, name in enumerate(f"{part}/{kind}/{i}.png" for part in ("train", "test") for kind in "ab" for i in "01"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (30 * index, 0, 0)).save(path)
    return root


def test_a_missing_image_folder_is_named(refuses: Refuses) -> None:
    refuses((*MAGNITUDE, "--dataset", "imagefolder:nowhere"), "nowhere")


def test_an_empty_image_folder_is_named(tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "empty").mkdir()
    refuses((*MAGNITUDE, "--dataset", "imagefolder:empty"), "empty has no train folder", "train/CLASS/*.jpg")


def test_a_class_without_images_is_named(tmp_path: Path, refuses: Refuses) -> None:
    root = image_folder(tmp_path / "images")
    for path in (root / "train" / "b").iterdir():
        path.unlink()
    refuses((*MAGNITUDE, "--dataset", "imagefolder:images"), "train/b holds no images")


def test_an_unreadable_image_is_named(
    tmp_path: Path, refuses: Refuses, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = image_folder(tmp_path / "images")
    broken = root / "train" / "b" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    cache = tmp_path_factory.mktemp("cache")
    refuses((*MAGNITUDE, "--dataset", "imagefolder:images", "--data-dir", cache), f"cannot read the image {broken}")
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_without_a_network_the_ways_on_are_told(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"  # nothing listens on the discard port
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), closed)
    arguments = ["--dataset", "cifar10", "--data-dir", tmp_path / "data", "--method", "magnitude"]
    result = run("prune", "--out", "out", *arguments, cwd=tmp_path, env={**proxies, "no_proxy": "", "NO_PROXY": ""})
    line = error_of(result)
    assert "data set cifar10 could not be downloaded" in line
    assert "--dataset digits" in line
    assert "imagefolder:PATH" in line
    assert list(snapshot(tmp_path)) == ["data"]  # made for the download, and empty


# Losses ------------------------------------------------------------------------------------------------------------

DIVERGING = ("--lr", "1e30", "--precision", "fp32", "--weight-decay", "0")


def test_a_loss_that_is_not_finite_in_generate_names_round_and_epoch(refuses: Refuses) -> None:
    arguments = ("generate", "--out", "out.h5", *TINY, *DIVERGING, "--rounds", "3", "--epochs", "2")
    refuses(arguments, "round 1 of 3", "epoch 1 of 2", "the loss became", "--lr", "--precision fp32")


def test_a_loss_that_is_not_finite_in_train_names_the_epoch(refuses: Refuses) -> None:
    arguments = ("train", "--dense", "--out", "out", *TINY, *DIVERGING, "--epochs", "2")
    refuses(arguments, "the loss became", "epoch 1 of 2", "--lr (now 1e+30)", "--precision fp32")


# IRP files ---------------------------------------------------------------------------------------------------------


def cut_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def plain_text(path: Path) -> None:
    path.write_text("not HDF5 at all\n")


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["temperature"] = [1.0, 2.0]


def from_the_future(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["schema_version"] = 99


def without_weights(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["runs/resnet20_digits_seed0/weights"]


@pytest.mark.parametrize(
    ("damage", "facts"),
    [
        (cut_file, ["damaged, truncated or no IRP file", "autosparse generate"]),
        (plain_text, ["damaged, truncated or no IRP file", "autosparse generate"]),
        (foreign, ["is no autosparse-irp file", "give the right file"]),
        (from_the_future, ["schema version 99", "newer than 1", "upgrade"]),
        (without_weights, ["damaged", "weights"]),
        (Path.unlink, ["does not exist", "autosparse generate"]),
    ],
)
def test_irp_files_that_cannot_be_used(
    damage: Callable[[Path], None], facts: list[str], irp_file: Path, tmp_path: Path, refuses: Refuses
) -> None:
    path = tmp_path / "damaged.h5"
    shutil.copyfile(irp_file, path)
    damage(path)
    refuses(("train-scorer", irp_file, "damaged.h5", "--out", "s.safetensors"), "damaged.h5", *facts)


def test_a_scorer_file_needs_its_suffix(irp_file: Path, refuses: Refuses) -> None:
    refuses(("train-scorer", irp_file, "--out", "scorer.pt"), "--out scorer.pt must end in .safetensors")


# Scorer files ------------------------------------------------------------------------------------------------------


def scorer_of(features: str, network: str = "mlp") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save_tensors(path, "scorer", {"mean": torch.zeros(3)}, {"features": features, "network": network})

    return write


def renamed(old: bytes, new: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        content = path.read_bytes()
        assert len(old) == len(new)
        assert old in content
        path.write_bytes(content.replace(old, new))

    return write


@pytest.mark.parametrize(
    ("damage", "facts"),
    [
        (cut_file, ["damaged or no safetensors file"]),
        (plain_text, ["damaged or no safetensors file"]),
        (lambda path: save_tensors(path, "masks", {}, {}), ["is no scorer file", "'masks'"]),
        (renamed(b'"schema_version":"1"', b'"schema_version":"9"'), ["schema version 9", "newer than 1", "upgrade"]),
        (scorer_of("futuristic"), ["feature set 'futuristic'", "known: paper, scale-free", "upgrade"]),
        (scorer_of("paper", "transformer"), ["scorer network 'transformer'", "known: cnn, linear, mlp"]),
        (scorer_of("paper"), ["does not hold the", "'mlp' scorer"]),
        (Path.unlink, ["does not exist"]),
    ],
)
def test_scorer_files_that_cannot_be_used(
    damage: Callable[[Path], None], facts: list[str], scorer_file: Path, tmp_path: Path, refuses: Refuses
) -> None:
    path = tmp_path / "damaged.safetensors"
    shutil.copyfile(scorer_file, path)
    damage(path)
    refuses(("prune", "--out", "out", *TINY, "--scorer", "damaged.safetensors"), "damaged.safetensors", *facts)


# Masks and summaries -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [(), ("--dense", "--masks", "pruned")])
def test_train_wants_either_masks_or_dense(choice: tuple[str, ...], refuses: Refuses) -> None:
    refuses(("train", "--out", "out", *choice), "either --masks DIR", "or --dense")


@pytest.mark.parametrize(
    ("model", "facts"),
    [
        (("--model", "resnet20"), ["'conv.weight' has shape [16, 3, 3, 3]", "mask [4, 3, 3, 3]"]),
        (("--model", "vgg11"), ["VGG", "conv.weight", "mask [4, 3, 3, 3]"]),
        (
            ("--model", "resnet32", "--model-arg", "width=0.25"),
            ["blocks.3.conv1.weight", "[8, 4, 3, 3]", "[4, 4, 3, 3]"],
        ),
    ],
)
def test_masks_of_another_model_are_refused(
    model: tuple[str, ...], facts: list[str], pruned_folder: Path, refuses: Refuses
) -> None:
    refuses(("train", "--masks", pruned_folder, "--out", "out", *model), "masks do not fit", *facts)


def edited(**changes: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        summary = json.loads(path.read_text())
        path.write_text(json.dumps({**summary, **changes}))

    return write


@pytest.mark.parametrize(
    ("damage", "facts"),
    [
        (lambda path: path.write_text(path.read_text()[:-50]), ["not readable JSON"]),
        (lambda path: path.write_text("[]"), ["holds no JSON object"]),
        (lambda path: path.write_text("{}"), ["no autosparse-pruning file"]),
        (edited(kind="autosparse-training"), ["no autosparse-pruning file", "'autosparse-training'"]),
        (edited(schema_version=99), ["schema version 99", "newer than 1", "upgrade"]),
        (edited(network={"model": "resnet20"}), ["'network.model_args' is None"]),
        (edited(network=3), ["'network.model' is None"]),
        (
            edited(network={"model": "os:abort", "model_args": {}, "seed": 0}),
            ["os:abort, code of your own that is not run because a file says so", "--model os:abort"],
        ),
        (edited(data={"image_size": "8"}), ["'data.image_size' is '8'"]),
        (edited(density=None), ["'density' is None"]),
        (Path.unlink, ["holds no summary.json", "autosparse prune"]),
    ],
)
def test_damaged_summaries_are_named(
    damage: Callable[[Path], None], facts: list[str], pruned_folder: Path, tmp_path: Path, refuses: Refuses
) -> None:
    shutil.copytree(pruned_folder, tmp_path / "copy")
    damage(tmp_path / "copy" / "summary.json")
    refuses(("train", "--masks", "copy", "--out", "out"), "copy", *facts)


@pytest.mark.parametrize("name", ["masks.safetensors", "init.safetensors"])
@pytest.mark.parametrize("damage", [cut_file, Path.unlink])
def test_damaged_masks_and_states_are_named(
    name: str, damage: Callable[[Path], None], pruned_folder: Path, tmp_path: Path, refuses: Refuses
) -> None:
    shutil.copytree(pruned_folder, tmp_path / "copy")
    damage(tmp_path / "copy" / name)
    refuses(("train", "--masks", "copy", "--out", "out"), f"copy/{name}")


# Existing output ---------------------------------------------------------------------------------------------------


def commands_for(folder: Path, irp_file: Path) -> dict[str, tuple[object, ...]]:
    return {
        "prune": ("prune", "--out", folder, *TINY, "--method", "random"),
        "train": ("train", "--dense", "--out", folder, *TINY, "--epochs", 1),
        "generate": ("generate", "--out", folder / "runs.h5", *TINY, "--rounds", 1, "--score-images", 128),
        "train-scorer": ("train-scorer", irp_file, "--out", folder / "s.safetensors", "--epochs", 1),
    }


@pytest.mark.parametrize("command", ["prune", "train", "generate", "train-scorer"])
def test_existing_output_is_only_overwritten_by_force(
    command: str, irp_file: Path, tmp_path: Path, refuses: Refuses, capsys: Capture
) -> None:
    arguments = commands_for(tmp_path / "out", irp_file)[command]
    assert call(capsys, *arguments).status == 0
    before = snapshot(tmp_path)
    other_seed = (*arguments, "--seed", 1)
    refuses(other_seed, "exists", "another --out", "--force")
    assert call(capsys, *other_seed, "--force").status == 0
    after = snapshot(tmp_path)
    assert after.keys() == before.keys()
    assert all(after[name] != content for name, content in before.items() if name.endswith(("safetensors", "h5")))


@pytest.mark.parametrize("command", ["prune", "train", "generate"])
def test_somebody_elses_folder_is_left_alone(command: str, irp_file: Path, tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "out" / "runs.h5").mkdir(parents=True)
    (tmp_path / "out" / "runs.h5" / "thesis.txt").write_text("years of work")
    resume = ["--resume"] if command == "train" else []
    refuses((*commands_for(tmp_path / "out", irp_file)[command], *resume), "out")


@pytest.mark.parametrize("place", [".", "..", "/"])
@pytest.mark.parametrize("command", ["prune", "train", "generate"])
def test_output_needs_a_name_of_its_own(place: str, command: str, refuses: Refuses) -> None:
    what = {"prune": ("--method", "magnitude"), "train": ("--dense",), "generate": ()}[command]
    refuses((command, *what, *TINY, "--out", place, "--force"), "cannot write", place)


def test_output_below_a_file_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "file").write_text("")
    refuses((*MAGNITUDE, "--out", "file/out"), "cannot write file/out")


def test_damaged_results_are_not_returned_by_resume(tmp_path: Path, refuses: Refuses, capsys: Capture) -> None:
    arguments = ("train", "--dense", "--out", "out", *TINY, "--epochs", 1)
    assert call(capsys, *arguments).status == 0
    path = tmp_path / "out" / "summary.json"
    refuses((*arguments, "--resume", "--lr", 0.05), "cannot resume from out: config.lr was 0.1 and is now 0.05")
    for changes in ({"test_accuracy": "high"}, {"history": [{"epoch": 0}]}):
        edited(**changes)(path)
        refuses((*arguments, "--resume"), "summary.json is damaged")


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    result = run("prune", "--model", "resnte20", "--out", "out", "--method", "magnitude", cwd=tmp_path)
    assert "did you mean resnet20" in error_of(result)
    assert result.out == ""
    assert snapshot(tmp_path) == {}
