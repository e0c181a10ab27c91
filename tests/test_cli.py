"""What the commands do when all is well."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY, call, error_of, interrupt, run, snapshot, start, stop_at

from autosparse import __version__
from autosparse.data import load_data
from autosparse.masks import Masks
from autosparse.models import list_models, seeded_model
from autosparse.recipes import list_methods, recipe_of
from autosparse.training import evaluate, load_state
from autosparse.triggers.init import AtInit

Capture = pytest.CaptureFixture[str]

# Help --------------------------------------------------------------------------------------------------------------

OPTIONS = {
    "prune": "out model model-arg sparsity method method-arg scorer budget granularity min-layer-density "
    "keep-connected on-paths no-on-paths sanity dataset score-images image-size split-seed data-dir seed device "
    "micro-batch force steps",
    "explain": "out model model-arg sparsity scorer against on-paths no-on-paths dataset score-images image-size "
    "split-seed data-dir seed device micro-batch force",
    "bench": "out jobs ray dry-run device data-dir retry-failed",
    "shrink": "out model model-arg flops params channels method method-arg spread keep round-to scorer dataset "
    "score-images image-size split-seed data-dir seed device micro-batch force",
    "export": "onnx program",
    "measure": "against alone batch-sizes threads seconds device json",
    "train": "out masks dense method where when what flops params channels spread keep round-to sparsity method-arg "
    "model model-arg epochs batch-size lr schedule "
    "momentum weight-decay precision no-augment "
    "dataset image-size split-seed data-dir seed device resume force",
    "generate": "out model model-arg rounds final-density schedule criterion scope rewind-steps name epochs batch-size "
    "lr lr-schedule weight-decay precision dataset score-images image-size split-seed data-dir seed device resume "
    "append force",
    "train-scorer": "out features network holdout holdout-fraction no-refit epochs batch-size lr max-weights seed "
    "force",
    "search-scorer": "trials out jobs data-dir device force",
    "list": "help",
    "demo": "out device",
}


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.usefixtures("wide")
def test_help_of_the_whole_names_every_command(tmp_path: Path) -> None:
    result = run("--help", cwd=tmp_path)
    assert (result.status, result.err) == (0, "")
    for command in OPTIONS:
        assert re.search(rf"^│ {command} ", plain(result.out), re.MULTILINE)
    assert "autosparse prune --model vgg16 --sparsity 0.98 --out runs/vgg16" in result.out
    assert snapshot(tmp_path) == {}


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("command", OPTIONS)
def test_help_of_a_command_names_its_options(command: str, capsys: Capture) -> None:
    result = call(capsys, command, "--help")
    assert (result.status, result.err) == (0, "")
    for option in OPTIONS[command].split():
        assert re.search(rf"--{option}\s", plain(result.out)), option


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    ("command", "default"),
    [
        ("prune", "the method's own"),
        ("prune", "the set's own"),
        ("prune", "cifar10-digits, or guide with --steps"),
        ("shrink", "resnet20-cifar10"),
        ("train", "the one the masks were made for, or vgg16"),
        ("generate", "MODEL_DATASET_seedN"),
    ],
)
def test_defaults_that_depend_are_told(command: str, default: str, capsys: Capture) -> None:
    told = re.sub(r"[│\s]+", " ", plain(call(capsys, command, "--help").out))  # it may go on in the next line
    assert f"[default: ({default})]" in told


def test_without_a_command_the_help_is_shown(capsys: Capture) -> None:
    result = call(capsys)
    assert result.status == 2
    assert "Usage: autosparse" in result.out
    assert result.err == ""


def test_version(tmp_path: Path) -> None:
    result = run("--version", cwd=tmp_path)
    assert (result.status, result.out, result.err) == (0, f"autosparse {__version__}\n", "")


# list --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("models", [*list_models(), "torchvision:NAME", "timm:NAME", "package.module:factory"]),
        ("datasets", ["digits", "fashion-mnist", "cifar10", "cifar100", "imagefolder:PATH"]),
        ("criteria", ["autos", "magnitude", "random", "snip"]),
        ("methods", list_methods()),
        ("scorers", ["cifar10-digits", "cifar10-flow", "cifar10-long", "cifar10-search", "resnet20-cifar10"]),
    ],
)
def test_list_has_a_line_for_every_name(kind: str, names: list[str], capsys: Capture) -> None:
    result = call(capsys, "list", kind)
    assert (result.status, result.err) == (0, "")
    first_words = [line.split()[0] for line in result.out.splitlines() if line.strip()]
    for name in names:
        assert name in first_words


def test_brackets_in_a_list_are_told(capsys: Capture) -> None:
    assert "autosparse[timm]" in call(capsys, "list", "models").out


def test_a_method_is_explained_with_its_options(capsys: Capture) -> None:
    result = call(capsys, "list", "grasp")
    assert (result.status, result.err) == (0, "")
    assert "arXiv 2002.07376" in result.out
    assert "Options: temperature=200.0, batch_statistics=True" in result.out
    assert "Options: rounds=1, path=exponential, regrow=False" in result.out
    assert "did you mean grasp" in error_of(call(capsys, "list", "grsp"))


# prune -------------------------------------------------------------------------------------------------------------


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def test_prune_writes_four_files_that_agree(tmp_path: Path, scorer_file: Path) -> None:
    out = tmp_path / "deep" / "out"
    result = run("prune", "--out", out, *TINY, "--scorer", scorer_file, "--keep-connected", cwd=tmp_path)
    assert (result.status, result.err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == [
        "init.safetensors",
        "layers.png",
        "masks.safetensors",
        "summary.json",
    ]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    summary, masks = summary_of(out), Masks.load(out / "masks.safetensors")
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    masks.check(model)
    total = sum(mask.numel() for mask in masks.values())
    kept = round(0.02 * total)
    assert sum(int(mask.sum()) for mask in masks.values()) == kept
    assert {key: summary[key] for key in ("kept", "total", "density", "sparsity", "method", "budget")} == {
        "kept": kept,
        "total": total,
        "density": kept / total,
        "sparsity": 0.98,
        "method": "autos",
        "budget": "global",
    }
    assert summary["scorer"] == str(scorer_file)
    assert summary["connected"] is True
    assert summary["dataset"] == "digits"
    assert summary["network"]["model_args"] == {"width": 0.25}
    assert [layer["name"] for layer in summary["layers"]] == list(masks)
    assert [layer["kept"] for layer in summary["layers"]] == [int(mask.sum()) for mask in masks.values()]
    assert (out / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert f"kept {kept:,} of {total:,} weights" in result.out
    assert f"autosparse train --masks {out}" in result.out
    initial = model.state_dict()
    load_state(out / "init.safetensors", model)  # the saved initial state is that of the seed
    assert all(torch.equal(initial[name], value) for name, value in model.state_dict().items())


AT_INIT = [name for name in list_methods() if isinstance(recipe_of(name).when, AtInit)]
QUICK = {
    "synflow": ["rounds=10"],
    "cts": ["steps=5", "warm_steps=2"],
    "autos-cts": ["steps=5", "warm_steps=2"],
    "scout": ["steps=5"],
}  # the search and the rounds are tested elsewhere


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", AT_INIT)
def test_every_method_prunes_and_repeats_itself(
    method: str, tmp_path: Path, scorer_file: Path, capsys: Capture
) -> None:
    scorer = ["--scorer", scorer_file] if method.startswith("autos") else []
    contents = []
    for name, seed in (("first", 5), ("second", 5), ("other", 6)):
        arguments = [*TINY, "--method", method, *scorer, "--sparsity", 0.98, "--seed", seed, "--score-images", 128]
        arguments += [word for option in QUICK.get(method, []) for word in ("--method-arg", option)]
        result = call(capsys, "prune", "--out", tmp_path / name, *arguments)
        assert result.status == 0, result.err
        summary = summary_of(tmp_path / name)
        assert summary["kept"] == round(0.02 * summary["total"])
        contents.append((tmp_path / name / "masks.safetensors").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]
    assert summary_of(tmp_path / "first")["scorer"] == (str(scorer_file) if scorer else None)


def test_new_initial_weights_under_the_same_mask(tmp_path: Path, capsys: Capture) -> None:
    for name, sanity in (("plain", ()), ("reinit", ("--sanity", "reinit"))):
        arguments = [*TINY, "--method", "snip", "--sparsity", 0.9, "--score-images", 128, *sanity]
        assert call(capsys, "prune", "--out", tmp_path / name, *arguments).status == 0
    masks = [Masks.load(tmp_path / name / "masks.safetensors") for name in ("plain", "reinit")]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    models = [seeded_model("resnet20", seed=seed, num_classes=10, width=0.25) for seed in (0, 0)]
    for model, name in zip(models, ("plain", "reinit"), strict=True):
        load_state(tmp_path / name / "init.safetensors", model)
    stems = [model.get_parameter("conv.weight") for model in models]
    assert not torch.equal(*stems)
    assert summary_of(tmp_path / "reinit")["sanity"] == "reinit"


def test_a_pattern_fixes_the_sparsity(tmp_path: Path, capsys: Capture) -> None:
    arguments = [*TINY, "--method", "magnitude", "--granularity", "2:4", "--score-images", 128]
    assert call(capsys, "prune", "--out", tmp_path / "out", *arguments).status == 0
    masks = Masks.load(tmp_path / "out" / "masks.safetensors")
    mask = masks["classifier.weight"]
    assert (mask.reshape(10, 4, 4).sum(dim=2) == 2).all()
    assert masks["conv.weight"].all()  # three input channels


def test_survivors_at_the_edge_of_chaos_are_what_is_trained(tmp_path: Path, capsys: Capture) -> None:
    arguments = [*TINY, "--method", "sbp-sr", "--sparsity", 0.5, "--score-images", 128]
    assert call(capsys, "prune", "--out", tmp_path / "out", *arguments).status == 0
    model = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    load_state(tmp_path / "out" / "init.safetensors", model)
    weight = model.get_parameter("conv.weight").detach()
    assert weight.square().mean() * 27 == pytest.approx(2, rel=1e-4)  # variance of the weights times fan-in


def test_prune_with_the_default_scorer(tmp_path: Path, capsys: Capture) -> None:
    result = call(capsys, "prune", "--out", tmp_path / "out", *TINY)
    assert result.status == 0
    summary = summary_of(tmp_path / "out")
    assert (summary["method"], summary["scorer"]) == ("autos", "cifar10-digits")
    assert summary["kept"] == round(0.02 * summary["total"])


def test_steps_buy_a_mask_and_the_summary_says_what_it_cost(tmp_path: Path, capsys: Capture) -> None:
    method = ("--method", "scout", "--sparsity", "0.5", "--score-images", "64")
    result = call(capsys, "prune", *TINY, *method, "--steps", "3", "--out", tmp_path / "pruned")
    assert result.status == 0, result.err
    assert "from 384 images" in result.out  # three batches of 128
    summary = summary_of(tmp_path / "pruned")
    assert (summary["options"], summary["images"]) == ({"steps": 3}, 384)
    twice = call(capsys, "prune", *TINY, *method, "--steps", "3", "--method-arg", "steps=4", "--out", tmp_path / "not")
    assert "'steps' is given twice" in error_of(twice)
    none = call(capsys, "prune", *TINY, "--method", "snip", "--steps", "3", "--out", tmp_path / "not")
    assert "unknown option of snip 'steps'" in error_of(none)
    assert not (tmp_path / "not").exists()


def test_a_collapsed_network_is_warned_about(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["prune", *TINY, "--method", "magnitude", "--sparsity", 0.998, "--score-images", 128]
    result = call(capsys, *arguments, "--out", tmp_path / "loose")
    assert result.status == 0
    warned = result.err.splitlines()
    assert len(warned) == 2
    assert re.match(r"autosparse: warning: \d+ of \d+ layers have no weight left: .*--keep-connected", warned[0])
    assert re.match(r"autosparse: warning: the output no longer depends on the input.*--keep-connected", warned[1])
    assert summary_of(tmp_path / "loose")["connected"] is False

    result = call(capsys, *arguments, "--out", tmp_path / "tied", "--keep-connected")
    assert (result.status, result.err) == (0, "")
    loose, tied = summary_of(tmp_path / "loose"), summary_of(tmp_path / "tied")
    assert tied["connected"] is True
    assert all(layer["kept"] >= 1 for layer in tied["layers"])
    assert tied["kept"] == loose["kept"] == round(0.002 * tied["total"])


# train -------------------------------------------------------------------------------------------------------------


def test_train_keeps_removed_weights_at_zero(pruned_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    result = run(
        "train", "--masks", pruned_folder, "--epochs", 2, "--batch-size", 64, "--out", out, "--device", "cpu",
        cwd=tmp_path,
    )  # fmt: skip
    assert (result.status, result.err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == [
        "curve.png",
        "log.jsonl",
        "masks.safetensors",
        "model.safetensors",
        "summary.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # not even the work folder
    summary, masks = summary_of(out), Masks.load(pruned_folder / "masks.safetensors")
    model = seeded_model("resnet20", seed=9, num_classes=10, width=0.25)
    load_state(out / "model.safetensors", model)
    weights = dict(model.named_parameters())
    for name, mask in masks.items():
        assert torch.equal(weights[name][~mask], torch.zeros(int((~mask).sum())))
    assert summary["nonzero_weights"] == masks.kept == summary["pruning"]["kept"]

    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in log] == [0, 1]
    assert log == summary["history"]
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    accuracy = evaluate(model, load_data("digits", image_size=8).test)
    assert summary["test_accuracy"] == accuracy
    assert f"test accuracy {accuracy:.2%} after 2 epochs" in result.out

    before = snapshot(out)
    again = call(capsys, "train", "--masks", pruned_folder, "--epochs", 2, "--batch-size", 64, "--out", out,
                 "--device", "cpu", "--resume")  # fmt: skip
    assert (again.status, again.err) == (0, "")
    assert f"test accuracy {accuracy:.2%}" in again.out
    assert snapshot(out) == before


def test_train_dense_without_any_epoch_evaluates_the_initial_network(tmp_path: Path, capsys: Capture) -> None:
    result = call(capsys, "train", "--dense", *TINY, "--epochs", 0, "--seed", 3, "--out", tmp_path / "out")
    assert (result.status, result.err) == (0, "")
    model = seeded_model("resnet20", seed=3, num_classes=10, width=0.25)
    assert summary_of(tmp_path / "out")["test_accuracy"] == evaluate(model, load_data("digits", image_size=8).test)
    assert (tmp_path / "out" / "log.jsonl").read_text() == ""


# generate and train-scorer -----------------------------------------------------------------------------------------


def test_generate_appends_only_when_told(irp_file: Path, tmp_path: Path, capsys: Capture) -> None:
    from autosparse.scorer.dataset import list_runs

    out = tmp_path / "all.h5"
    out.write_bytes(irp_file.read_bytes())
    rounds = ["--rounds", 2, "--score-images", 128]
    result = call(capsys, "generate", "--out", out, *TINY, *rounds, "--seed", 1, "--append")
    assert (result.status, result.err) == (0, "")
    assert re.search(r"^round 1/2  density +100.000%", result.out, re.MULTILINE)
    assert f"autosparse train-scorer {out}" in result.out
    assert list_runs(out) == ["resnet20_digits_seed0", "resnet20_digits_seed1"]
    assert call(capsys, "generate", "--out", out, *TINY, *rounds, "--name", "mine", "--force").status == 0
    assert list_runs(out) == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["all.h5"]


def test_train_scorer_prints_held_out_figures(irp_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "own.safetensors"
    result = run("train-scorer", irp_file, "--out", out, "--epochs", 1, cwd=tmp_path)
    assert (result.status, result.err) == (0, "")
    for row in ("scorer", "magnitude", "snip"):
        assert re.search(rf"^│ {row} +│ +-?\d\.\d+ +│ +-?\d\.\d+", result.out, re.MULTILINE)
    assert "held out: " in result.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.json", "own.safetensors"]
    card = json.loads((tmp_path / "own.json").read_text())
    assert card["features"] == "scale-free"
    assert [source["run"] for source in card["sources"]] == ["resnet20_digits_seed0"]


def test_a_resumed_method_must_be_the_one_that_was_begun(tmp_path: Path) -> None:
    """What an interrupted command has pruned is not taken for what another method would prune."""
    out = tmp_path / "out"
    command = ["train", "--out", out, *TINY, "--epochs", 30, "--score-images", 128, "--sparsity", 0.9]
    process = start(*command, "--method", "snip", cwd=tmp_path)
    stop_at(process, lambda: (tmp_path / "out.work" / "pruning" / "summary.json").exists())
    interrupt(process, signal.SIGKILL)
    (tmp_path / "out.work" / "checkpoint.safetensors").unlink(missing_ok=True)
    line = error_of(run(*command, "--method", "magnitude", "--resume", cwd=tmp_path))
    assert "settings.method was 'snip' and is now 'magnitude'" in line
