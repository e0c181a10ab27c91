"""What is read from a folder of results, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_results import cell_file, small_grid, write_cells

from autosparse.bench import Cell, Grid, Store, cells_of
from autosparse.bench.results import read_results
from autosparse.bench.setting import setting_names, setting_of
from autosparse.errors import FileFormatError
from autosparse.scorer.search import scorer_of
from autosparse.scorer.store import save_scorer


def test_cells_are_read_as_written(tmp_path: Path) -> None:
    layers = [{"name": "a", "weights": 10, "kept": 0}, {"name": "b", "weights": 10, "kept": 1}]
    content = cell_file("SNIP", 0.61, seed=3, density=0.05, layers=layers, connected=False, warnings=["a is empty"])
    (cell,) = read_results(write_cells(tmp_path, content)).cells
    assert (cell.label, cell.method, cell.seed, cell.density, cell.command) == (
        "SNIP", "snip", 3, 0.05, content["command"],
    )  # fmt: skip
    assert cell.outcome is not None
    assert cell.outcome.test_accuracy == 0.61
    assert cell.outcome.connected is False
    assert cell.outcome.warnings == ("a is empty",)
    assert cell.outcome.layers == {"a": (10, 0), "b": (10, 1)}
    assert cell.outcome.empty_layers == ("a",)


def test_finished_and_failed_cells_are_told_apart(tmp_path: Path) -> None:
    results = read_results(write_cells(tmp_path, *small_grid()))
    assert (len(results.done), len(results.failed)) == (15, 1)
    assert results.failed[0].outcome is None
    assert results.failed[0].error == "DivergedError: the loss is nan"


def test_settings_know_neither_seeds_nor_folders(tmp_path: Path) -> None:
    here, there = ("imagefolder:/data/pets", "imagefolder:elsewhere/pets")
    contents = [cell_file("SNIP", 0.5, seed=0, dataset=here), cell_file("SNIP", 0.6, seed=1, dataset=there)]
    first, second = read_results(write_cells(tmp_path, *contents)).cells
    assert first.setting == second.setting
    assert first.setting.dataset == "pets"
    assert first.setting.model == "resnet20 (width 0.5)"


def test_settings_of_one_title_say_in_what_they_differ() -> None:
    cells = [cell_file("SNIP", 0.5)["cell"] for _ in range(3)]
    cells[1]["train"]["epochs"] = 30
    cells[2]["model"] = "vgg16"
    names = setting_names([setting_of(cell) for cell in cells])
    assert list(names.values()) == [
        "resnet20 (width 0.5), cifar10-jpeg (epochs 3)",
        "resnet20 (width 0.5), cifar10-jpeg (epochs 30)",
        "vgg16 (width 0.5), cifar10-jpeg",
    ]


def test_titles_say_the_size_that_images_were_given() -> None:
    cells = [cell_file("SNIP", 0.5)["cell"] for _ in range(2)]
    cells[1]["image_size"] = 16
    names = setting_names([setting_of(cell) for cell in cells])
    assert list(names.values()) == ["resnet20 (width 0.5), cifar10-jpeg", "resnet20 (width 0.5), cifar10-jpeg (16 px)"]


def test_unfinished_files_of_a_running_benchmark_are_no_cells(tmp_path: Path) -> None:
    write_cells(tmp_path, cell_file("SNIP", 0.5))
    (tmp_path / "cells" / ".abc.json.123.tmp").write_text("{")
    (tmp_path / "cells" / ".abc.json.lock").write_text("")
    assert len(read_results(tmp_path).cells) == 1


@pytest.mark.parametrize("name", ["absent", "foreign", "empty"])
def test_folders_without_results_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "empty" / "cells").mkdir(parents=True)
    with pytest.raises(FileFormatError, match=f"{name} holds no results"):
        read_results(tmp_path / name)


def damaged(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """Something that sets one place of a file's content."""

    def change(content: dict[str, Any]) -> None:
        place: Any = content
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value

    return change


DAMAGES = {
    "foreign": (damaged("kind", value="cat"), "no autosparse-cell file"),
    "newer": (damaged("schema_version", value=99), "upgrade autosparse"),
    "status": (damaged("status", value="half"), "status is 'half'"),
    "no result": (damaged("result", value=None), "without a result"),
    "accuracy nan": (damaged("result", "test_accuracy", value=float("nan")), "result.test_accuracy is nan"),
    "accuracy in percent": (damaged("result", "test_accuracy", value=61.0), r"result.test_accuracy is 61.0, outside"),
    "accuracy text": (damaged("result", "test_accuracy", value="0.6"), "result.test_accuracy is '0.6'"),
    "accuracy true": (damaged("result", "test_accuracy", value=True), "result.test_accuracy is True"),
    "seed": (damaged("cell", "seed", value=None), "cell.seed is None"),
    "density": (damaged("cell", "density", value=0), "cell.density is 0, outside"),
    "model": (damaged("cell", "model", value=["resnet20"]), "cell.model"),
    "command": (damaged("command", value=7), "command is 7"),
    "layer": (damaged("result", "layers", 0, value="conv"), r"result.layers\[0\] is no object"),
    "layer too full": (damaged("result", "layers", 0, "kept", value=10**9), "keeps 1000000000 of 432"),
    "failure": (damaged("status", value="failed"), "without its error"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_named_and_refused(tmp_path: Path, name: str) -> None:
    change, message = DAMAGES[name]
    content = cell_file("SNIP", 0.61)
    change(content)
    write_cells(tmp_path, *small_grid(), content)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_results(tmp_path)
    assert f"{content['hash']}.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "", "\ufffd"], ids=["torn", "a list", "nothing", "no json"])
def test_files_that_are_no_object_are_refused(tmp_path: Path, text: str) -> None:
    write_cells(tmp_path, cell_file("SNIP", 0.61))
    (tmp_path / "cells" / "ffff.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"ffff\.json"):
        read_results(tmp_path)


def test_a_label_stands_for_one_thing(tmp_path: Path) -> None:
    write_cells(tmp_path, cell_file("SNIP", 0.6, seed=0), cell_file("SNIP", 0.6, seed=1, budget="erk"))
    with pytest.raises(FileFormatError, match="give the label 'SNIP' to different settings"):
        read_results(tmp_path)


def test_a_label_may_be_sanity_checked(tmp_path: Path) -> None:
    write_cells(tmp_path, cell_file("SNIP", 0.6), cell_file("SNIP", 0.6, sanity="shuffle"))
    assert {cell.name for cell in read_results(tmp_path).cells} == {"SNIP", "SNIP [shuffle]"}


def test_the_same_cell_twice_is_refused(tmp_path: Path) -> None:
    content = cell_file("SNIP", 0.6)
    write_cells(tmp_path, content, {**content, "hash": "copy"})
    with pytest.raises(FileFormatError, match="are the same cell: remove one"):
        read_results(tmp_path)


# --- the plan -------------------------------------------------------------------------------------------------------

PLAN = {
    "models": [{"name": "resnet20", "args": {"width": 0.25}}],
    "datasets": [{"name": "digits"}],
    "methods": [{"name": "dense"}, {"name": "snip", "label": "SNIP"}],
    "densities": [0.1, 0.05],
    "seeds": [0, 1],
    "reference": "SNIP",
}


def planned(**changes: Any) -> tuple[Grid, list[Cell]]:
    grid = Grid.model_validate({**PLAN, **changes}, context={"methods": ["dense", "snip"]})
    return grid, cells_of(grid)


def finished(cell: Cell) -> dict[str, Any]:
    """The file of ``cell`` as if it had run."""
    content = cell_file(cell.label, 0.5, density=cell.density, seed=cell.seed, method=cell.method)
    return {**content, "hash": cell.hash, "cell": cell.as_dict()}


def test_what_the_plan_asks_for_and_the_folder_lacks_is_absent(tmp_path: Path) -> None:
    grid, cells = planned()
    Store(tmp_path).begin(grid)
    write_cells(tmp_path, *[finished(cell) for cell in cells[:-1]])
    results = read_results(tmp_path)
    assert results.absent is not None
    assert [entry[1:] for entry in results.absent] == [("SNIP", 0.05, 1)]
    assert results.absent[0][0] == results.cells[0].setting
    assert (len(results.cells), results.reference, results.stale) == (5, "SNIP", 0)


def test_cells_of_an_earlier_plan_that_meant_something_else_are_left_out(tmp_path: Path) -> None:
    _, old = planned(score_images=64)
    grid, new = planned()
    Store(tmp_path).begin(grid)
    write_cells(tmp_path, *[finished(cell) for cell in (*old, *new)])
    results = read_results(tmp_path)
    assert {cell.hash for cell in results.cells} == {cell.hash for cell in new}
    assert results.stale == len([cell for cell in old if not cell.is_dense])
    assert results.absent == ()


def test_cells_of_a_scorer_whose_file_has_changed_are_left_out(tmp_path: Path) -> None:
    folder, scorer = tmp_path / "runs", tmp_path / "mine.safetensors"
    methods = [{"name": "snip", "label": "SNIP"}, {"name": "snip", "label": "learned", "scorer": str(scorer)}]
    save_scorer(scorer, scorer_of([0.0] * 14), {})
    _, old = planned(methods=methods, seeds=[0, 1, 2])
    save_scorer(scorer, scorer_of([1.0] * 14), {})
    grid, new = planned(methods=methods)
    Store(folder).begin(grid)
    write_cells(folder, *{cell.hash: finished(cell) for cell in (*old, *new)}.values())
    results = read_results(folder)
    third = [cell for cell in old if cell.label == "SNIP" and cell.seed == 2]  # of a label whose scorer is no other
    assert {cell.hash for cell in results.cells} == {cell.hash for cell in (*new, *third)}
    assert results.stale == len([cell for cell in old if cell.label == "learned"])


def test_more_seeds_and_labels_of_an_earlier_plan_stay(tmp_path: Path) -> None:
    _, old = planned(seeds=[0, 1, 2], methods=[{"name": "snip", "label": "SNIP"}, {"name": "snip", "budget": "erk"}])
    grid, new = planned()
    Store(tmp_path).begin(grid)
    write_cells(tmp_path, *{cell.hash: finished(cell) for cell in (*old, *new)}.values())
    results = read_results(tmp_path)
    assert {cell.hash for cell in results.cells} == {cell.hash for cell in (*old, *new)}
    assert results.stale == 0


def test_a_plan_that_cannot_be_followed_here_hides_no_results(tmp_path: Path) -> None:
    grid, cells = planned()
    Store(tmp_path).begin(grid)
    path = tmp_path / "grid.json"
    content = json.loads(path.read_text())
    content["methods"].append({"name": "a-method-of-tomorrow"})
    path.write_text(json.dumps(content))
    write_cells(tmp_path, finished(cells[0]))
    results = read_results(tmp_path)
    assert (len(results.cells), results.absent, results.reference) == (1, None, "SNIP")


def test_damaged_plans_are_refused(tmp_path: Path) -> None:
    write_cells(tmp_path, cell_file("SNIP", 0.5))
    (tmp_path / "grid.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"grid\.json"):
        read_results(tmp_path)
    (tmp_path / "grid.json").write_text('{"kind": "autosparse-grid", "schema_version": 99}')
    with pytest.raises(FileFormatError, match="upgrade autosparse"):
        read_results(tmp_path)
