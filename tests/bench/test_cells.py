"""Cells: what a grid stands for, what names a result, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from autosparse.arguments import parse_arguments
from autosparse.bench import Cell, Grid, cells_of
from autosparse.budget.selection import density_of
from autosparse.criteria import CRITERIA
from autosparse.errors import AutoSparseError
from autosparse.scorer.store import DEFAULT_SCORERS
from autosparse.training import TrainConfig

TRAIN = {
    "epochs": 3,
    "batch_size": 64,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "one-cycle",
    "precision": "auto",
    "augment": True,
}
CELL = Cell(
    model="resnet20",
    model_args={"width": 0.5},
    dataset="digits",
    image_size=8,
    split_seed=0,
    method="synflow",
    options={"rounds": 50, "path": "linear"},
    budget="erk",
    granularity=None,
    sanity="shuffle",
    scorer=None,
    min_layer_density=0.001,
    keep_connected=False,
    density=0.02,
    seed=1,
    score_images=1280,
    train=TRAIN,
    label="SynFlow-50",
)

CHANNELS = Cell(model="resnet20", dataset="digits", method="l1", density=0.5, seed=0, measure="flops")


def grid(**changes: Any) -> Grid:
    content = {
        "models": ["resnet20", "vgg16"],
        "datasets": ["digits"],
        "methods": ["snip", "dense"],
        "densities": [0.1, 0.02],
        "seeds": [3, 1],
    }
    return Grid.model_validate({**content, **changes}, context={"methods": ["dense", "snip", "random", "l1", "autos"]})


# From grid to cells ------------------------------------------------------------------------------------------------


def test_a_grid_is_the_product_of_its_lists_dense_first_then_seed_by_seed() -> None:
    found = [(c.method, c.seed, c.model, c.density) for c in cells_of(grid())]
    dense = [("dense", seed, model, 1.0) for seed in (3, 1) for model in ("resnet20", "vgg16")]
    pruned = [("snip", s, m, d) for s in (3, 1) for m in ("resnet20", "vgg16") for d in (0.1, 0.02)]
    assert found == dense + pruned


def test_a_cell_has_all_that_its_entries_say() -> None:
    method = {
        "name": "random",
        "label": "mine",
        "args": {"a": 1},
        "choose": {"b": [1, 2]},
        "budget": "erk",
        "sanity": "reinit",
        "min_layer_density": 0.01,
        "keep_connected": True,
    }
    asked = grid(
        models=[{"name": "vgg16", "args": {"width": 0.5}}],
        datasets=[{"name": "digits", "image_size": 16, "split_seed": 2}],
        methods=[method],
        densities=[0.1],
        seeds=[5, 4],
        train={"epochs": 2},
        score_images=64,
    )
    assert cells_of(asked)[1] == Cell(
        model="vgg16",
        model_args={"width": 0.5},
        dataset="digits",
        image_size=16,
        split_seed=2,
        method="random",
        options={"a": 1},
        budget="erk",
        sanity="reinit",
        min_layer_density=0.01,
        keep_connected=True,
        choose={"b": [1, 2]},
        choose_seed=5,
        density=0.1,
        seed=4,
        score_images=64,
        train={key: value for key, value in vars(TrainConfig(epochs=2)).items() if key != "seed"},
    )
    assert cells_of(asked)[1].label == "mine"


def test_a_pattern_has_its_own_density() -> None:
    asked = grid(methods=[{"name": "snip", "granularity": "2:4"}], models=["vgg16"])
    assert [(c.seed, c.granularity, c.density) for c in cells_of(asked)] == [(3, "2:4", 0.5), (1, "2:4", 0.5)]


def test_dense_networks_do_not_depend_on_the_images_to_score_with() -> None:
    few, many = (cells_of(grid(methods=["dense"], score_images=n)) for n in (64, 128))
    assert [cell.hash for cell in few] == [cell.hash for cell in many]


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": [{"name": "snip", "label": "A"}, {"name": "snip", "label": "B"}]},
        {"datasets": ["imagefolder:/here/pictures", "imagefolder:/there/pictures"]},
    ],
    ids=["methods", "datasets"],
)
def test_cells_that_are_the_same_are_refused(changes: Mapping[str, Any]) -> None:
    with pytest.raises(AutoSparseError, match="are the same cell: keep one"):
        cells_of(grid(**changes))


def test_candidates_are_all_combinations_in_order() -> None:
    cell = replace(CELL, choose={"a": [1, 2], "b": ["x", "y"]})
    assert list(cell.candidates()) == [{"a": a, "b": b} for a in (1, 2) for b in ("x", "y")]
    settled = cell.settled({"a": 2, "b": "x"})
    assert settled.options == {"rounds": 50, "path": "linear", "a": 2, "b": "x"}
    assert list(settled.candidates()) == [{}]


# Hashes ------------------------------------------------------------------------------------------------------------


def test_the_hash_of_a_cell_never_changes() -> None:
    """Finished results are found by it: if this fails, raise CELL_VERSION and give the new value here."""
    assert CELL.hash == "072664b41619e182b753a30aa88ae54d"


def reversed_keys(value: Mapping[str, Any]) -> dict[str, Any]:
    return dict(reversed(list(value.items())))


@pytest.mark.parametrize(
    "same",
    [
        {"label": "another name"},
        {"options": reversed_keys(CELL.options)},
        {"train": reversed_keys(TRAIN)},
    ],
    ids=["label", "order of options", "order of training settings"],
)
def test_what_does_not_determine_the_result_is_not_in_the_hash(same: dict[str, Any]) -> None:
    assert replace(CELL, **same).hash == CELL.hash


OTHER: dict[str, Any] = {
    "model": "vgg16",
    "dataset": "cifar10",
    "method": "snip",
    "density": 0.05,
    "seed": 2,
    "model_args": {"width": 1.0},
    "image_size": None,
    "split_seed": 1,
    "options": {"rounds": 51, "path": "linear"},
    "budget": None,
    "granularity": "2:4",
    "sanity": None,
    "scorer": "resnet20-cifar10",
    "min_layer_density": 0.0,
    "keep_connected": True,
    "choose": {"rounds": [1]},
    "choose_seed": 1,
    "score_images": 640,
    "train": {**TRAIN, "lr": 0.1},
}


#: Older cells did not have them, and their hashes stay.
LATER: dict[str, Any] = {
    "on_paths": True,
    "measure": "flops",
    "when": "epi",
    "what": "l1",
    "spread": "uniform",
    "keep": ("conv1",),
    "round_to": 4,
    "flops": 0.5,
    "params": 0.5,
    "channels": 0.5,
}


def test_every_other_field_is_in_the_hash() -> None:
    assert OTHER.keys() == CELL.as_dict().keys() - {"label"}
    assert {*OTHER, *LATER, "label"} == {field.name for field in fields(Cell)}
    hashes = [CELL.hash, *(replace(CELL, **{name: value}).hash for name, value in {**OTHER, **LATER}.items())]
    assert len(set(hashes)) == len(hashes)


def test_an_image_folder_goes_by_its_name() -> None:
    hashes = [
        replace(CELL, dataset=f"imagefolder:{path}").hash for path in ("/a/pictures", "../b/pictures/", "pictures")
    ]
    assert len(set(hashes)) == 1
    assert replace(CELL, dataset="imagefolder:/a/others").hash not in hashes


def test_a_scorer_goes_by_its_contents(tmp_path: Path) -> None:
    paths = [tmp_path / "a.safetensors", tmp_path / "b" / "c.safetensors"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"one")
    first, second = (replace(CELL, scorer=str(path)).hash for path in paths)
    assert first == second
    paths[1].write_bytes(b"another")
    assert replace(CELL, scorer=str(paths[1])).hash != first
    with pytest.raises(AutoSparseError, match=r"cannot read the scorer .*absent\.safetensors"):
        _ = replace(CELL, scorer=str(tmp_path / "absent.safetensors")).hash


def test_the_default_scorer_is_part_of_a_cell_that_takes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def cells() -> list[Cell]:
        plain = replace(CELL, method="random", options={}, budget=None, sanity=None)
        learned = replace(plain, method="autos")
        return [plain, learned, replace(learned, options={"steps": 9}), replace(plain, budget="like:autos"), CHANNELS]

    weights, steps = DEFAULT_SCORERS["weights"], DEFAULT_SCORERS["steps"]
    assert [cell.facts["scorer"] for cell in cells()] == [None, weights, steps, weights, None]
    before = [cell.hash for cell in cells()]
    monkeypatch.setitem(DEFAULT_SCORERS, "weights", "another")
    assert [cell.hash == old for cell, old in zip(cells(), before, strict=True)] == [True, False, True, False, True]


def test_how_batches_are_divided_is_part_of_a_cell_that_trains_a_copy() -> None:
    def options(method: str, given: dict[str, Any], **changes: Any) -> dict[str, Any]:
        return replace(CELL, method=method, options=given, budget=None, sanity=None, **changes).facts["options"]

    split = CRITERIA.get("scout").options["split"]
    assert options("autos", {}) == options("snip", {}) == {}
    assert options("cts", {"steps": 9}) == {"steps": 9}
    assert options("autos", {"steps": 9}) == {"steps": 9, "split": split}
    assert options("autos", {"steps": 9, "split": 1}) == {"steps": 9, "split": 1}
    assert options("autos", {}, choose={"steps": [0, 9]}) == {"split": split}
    assert options("scout", {}) == {"split": split}
    plain = replace(CELL, method="random", options={}, sanity=None)
    like = [replace(plain, budget=f"like:{name}") for name in ("scout", "autos")]
    assert [cell.facts.get("budget_options") for cell in like] == [{"split": split}, None]


def test_a_plan_names_the_default_scorer_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = grid(methods=["snip", "autos", {"name": "autos", "label": "chosen", "choose": {"steps": [0, 9]}}])
    found = {cell.label: cell for cell in cells_of(asked)}
    weights = DEFAULT_SCORERS["weights"]
    assert [found[name].scorer for name in ("snip", "autos", "chosen")] == [None, weights, None]
    assert f"--scorer {weights}" in found["autos"].command("out")
    assert replace(found["autos"], scorer=None).hash == found["autos"].hash
    monkeypatch.setitem(DEFAULT_SCORERS, "weights", "another")
    assert replace(found["autos"], scorer=None).hash != found["autos"].hash


# Commands ----------------------------------------------------------------------------------------------------------


def options(command: str) -> dict[str, list[str]]:
    """Every option of a command with its values."""
    words = shlex.split(command)
    assert words[:2] == ["autosparse", "train"]
    found: dict[str, list[str]] = {}
    for index, word in enumerate(words):
        if word.startswith("--"):
            value = words[index + 1] if index + 1 < len(words) else "--"
            found.setdefault(word[2:], []).extend([] if value.startswith("--") else [value])
    return found


def test_the_command_says_all_that_differs_from_the_defaults() -> None:
    assert options(CELL.command("runs/my cell")) == {
        "method": ["synflow"],
        "sparsity": ["0.98"],
        "method-arg": ["rounds=50", "path=linear"],
        "budget": ["erk"],
        "sanity": ["shuffle"],
        "min-layer-density": ["0.001"],
        "score-images": ["1280"],
        "model": ["resnet20"],
        "model-arg": ["width=0.5"],
        "dataset": ["digits"],
        "image-size": ["8"],
        "epochs": ["3"],
        "batch-size": ["64"],
        "lr": ["0.05"],
        "seed": ["1"],
        "out": ["runs/my cell"],
    }


def test_the_command_of_everything_else() -> None:
    cell = Cell(
        model="resnet20",
        dataset="imagefolder:my pictures",
        method="snip",
        density=0.5,
        seed=0,
        granularity="2:4",
        scorer="a b.safetensors",
        keep_connected=True,
        split_seed=4,
        train={**TRAIN, "augment": False},
    )
    found = options(cell.command("out"))
    assert found["dataset"] == ["imagefolder:my pictures"]
    assert found["scorer"] == ["a b.safetensors"]
    assert (found["granularity"], found["split-seed"], found["keep-connected"]) == (["2:4"], ["4"], [])
    assert found["no-augment"] == []


def test_the_command_of_a_method_that_removes_channels() -> None:
    cell = replace(CHANNELS, what="taylor", when="epi", spread="global", keep=("conv",), params=0.4, round_to=4)
    found = options(cell.command("out"))
    assert (found["where"], found["method"], found["flops"], found["params"]) == (
        ["channels"],
        ["l1"],
        ["0.5"],
        ["0.4"],
    )
    assert (found["what"], found["when"], found["spread"]) == (["taylor"], ["epi"], ["global"])
    assert (found["keep"], found["round-to"]) == (["conv"], ["4"])
    assert "sparsity" not in found
    assert cell.title == "l1 on resnet20, digits, flops 0.5, seed 0"


def test_methods_for_channels_have_shares_of_flops_and_those_for_weights_densities() -> None:
    methods: list[Any] = ["dense", "snip", {"name": "l1", "channels": 0.9}]
    found = cells_of(
        grid(models=["resnet20"], methods=methods, densities=[0.1], flops=[0.5, 0.25], params=[0.5], seeds=[0])
    )
    facts = {(cell.method, cell.measure, cell.density): cell.shares for cell in found if cell.method == "l1"}
    assert facts == {
        ("l1", "flops", 0.5): {"flops": 0.5, "channels": 0.9},
        ("l1", "flops", 0.25): {"flops": 0.25, "channels": 0.9},
        ("l1", "params", 0.5): {"params": 0.5, "channels": 0.9},
    }
    assert [(cell.method, cell.measure, cell.density) for cell in found if cell.method != "l1"] == [
        ("dense", "weights", 1.0),
        ("snip", "weights", 0.1),
    ]


def test_each_value_has_cells_under_a_label_of_its_own() -> None:
    method = {"name": "l1", "label": "L1", "when": "epoch", "args": {"p": 1}, "each": {"epoch": [1, 2]}}
    found = cells_of(grid(models=["resnet20"], methods=[method], flops=[0.5], seeds=[0]))
    assert [(cell.label, cell.options) for cell in found] == [
        ("L1, epoch=1", {"p": 1, "epoch": 1}),
        ("L1, epoch=2", {"p": 1, "epoch": 2}),
    ]


def test_the_command_of_a_dense_network() -> None:
    cell = Cell(model="resnet20", dataset="digits", method="dense", density=1.0, seed=2)
    assert cell.command("out") == (
        "autosparse train --dense --model resnet20 --dataset digits --epochs 10 --seed 2 --out out"
    )


@pytest.mark.parametrize("density", [0.07, 0.001, 0.3, 1 / 3, 1.0, 1e-5])
def test_the_command_asks_for_exactly_the_density(density: float) -> None:
    sparsity = float(options(replace(CELL, density=density).command("out"))["sparsity"][0])
    assert density_of(sparsity) == density


@pytest.mark.parametrize("value", [1, 0.5, True, None, "text", "1", "True", "a=b c", [1, 2], 1e-5])
def test_arguments_come_back_as_they_were(value: object) -> None:
    texts = options(replace(CELL, options={"x": value}).command("out"))["method-arg"]
    (found,) = parse_arguments(texts, "method", "").values()
    assert (found, type(found)) == (value, type(value))
