"""Grids: what a YAML file means, and where a mistake in it is."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from autosparse.bench import Grid, read_grid
from autosparse.errors import FileFormatError
from autosparse.training import TrainConfig

METHODS = ["dense", "snip", "synflow", "random", "l1"]

GOOD = """\
models: [resnet20, {name: vgg16, args: {width: 0.25}}]
datasets:
  - digits
  - {name: "imagefolder:some/pictures", image_size: 32, split_seed: 3}
methods:
  - dense
  - {name: synflow, args: {rounds: 50}, label: SynFlow-50}
  - {name: random, budget: erk, sanity: shuffle, min_layer_density: 0, keep_connected: true}
  - {name: snip, granularity: 2:4}
  - {name: synflow, choose: {temperature: [1, 200]}}
  - name: random
    label: random as SNIP
    budget: like:snip
  - {name: l1, when: epi, keep: [conv1], round_to: 4, params: 0.5}
flops: [0.5]
densities: [0.1, 2e-2]
seeds: [1, 2, 3]
train: {epochs: 3, lr: 1, weight_decay: 5e-4, augment: false}
score_images: 640
reference: SynFlow-50
"""


def read(tmp_path: Path, text: str | bytes) -> Grid:
    path = tmp_path / "grid.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_grid(path, METHODS)[0]


def test_every_key_is_read(tmp_path: Path) -> None:
    grid = read(tmp_path, GOOD)
    assert [(m.name, m.args) for m in grid.models] == [("resnet20", {}), ("vgg16", {"width": 0.25})]
    assert [(d.name, d.image_size, d.split_seed) for d in grid.datasets] == [
        ("digits", None, 0),
        ("imagefolder:some/pictures", 32, 3),
    ]
    assert [m.label for m in grid.methods] == [
        "dense",
        "SynFlow-50",
        "random, budget=erk, sanity=shuffle, keep_connected=True",
        "snip, granularity=2:4",
        "synflow, temperature=2 values",
        "random as SNIP",
        "l1, when=epi, keep=conv1, round_to=4, params=0.5",
    ]
    assert grid.methods[3].granularity == "2:4"
    assert grid.methods[4].choose == {"temperature": [1, 200]}
    assert (grid.densities, grid.seeds, grid.score_images) == ([0.1, 0.02], [1, 2, 3], 640)
    assert grid.reference == "SynFlow-50"


def test_training_settings_are_those_of_the_training_loop_but_the_seed(tmp_path: Path) -> None:
    train = read(tmp_path, GOOD).train.model_dump()
    assert list(train) == [field.name for field in fields(TrainConfig) if field.name != "seed"]
    assert TrainConfig(**train) == TrainConfig(epochs=3, lr=1.0, weight_decay=5e-4, augment=False)


def test_a_grid_survives_json(tmp_path: Path) -> None:
    grid = read(tmp_path, GOOD)
    again = Grid.model_validate_json(grid.model_dump_json(), context={"methods": METHODS})
    assert again == grid


def test_anchors_and_merge_keys_are_understood(tmp_path: Path) -> None:
    text = GOOD.replace("- dense\n", "- &base {name: snip, args: {a: 1}, label: A}\n  - {<<: *base, label: B}\n")
    methods = read(tmp_path, text).methods
    assert [(m.name, m.args, m.label) for m in methods[:2]] == [("snip", {"a": 1}, "A"), ("snip", {"a": 1}, "B")]


def test_a_method_of_the_users_own_may_have_any_name(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD.replace("- dense", "- my.module:criterion")).methods[0].name == "my.module:criterion"


# (a line of GOOD, what it becomes, the line of the mistake, what the message says)
MISTAKES = {
    "unknown key": ("score_images: 640", "score_imags: 640", 19, ["unknown key 'score_imags'", "score_images"]),
    "unknown key of a method": ("budget: erk", "bugdet: erk", 8, ["unknown key 'bugdet'", "did you mean budget?"]),
    "unknown key of the training": ("lr: 1", "learning_rate: 1", 18, ["unknown key 'learning_rate'", "known: "]),
    "a seed of the training": ("lr: 1", "seed: 1", 18, ["unknown key 'seed'"]),
    "unknown method": ("- dense", "- synflwo", 6, ["methods[0].name", "unknown method 'synflwo'", "mean synflow?"]),
    "unknown model": ("resnet20", "resnte20", 1, ["models[0].name", "unknown model 'resnte20'", "mean resnet20"]),
    "unknown data set": ("- digits", "- digit", 3, ["datasets[0].name", "unknown data set 'digit'", "mean digits?"]),
    "unknown budget": ("budget: erk", "budget: erc", 8, ["methods[2].budget", "unknown budget 'erc'", "erk"]),
    "unknown method to be like": ("like:snip", "like:snap", 13, ["methods[5].budget", "unknown method 'snap'", "snip"]),
    "unknown sanity check": ("shuffle", "shufle", 8, ["methods[2].sanity", "unknown sanity check 'shufle'"]),
    "unknown pattern": ("2:4", "4:2", 9, ["methods[3].granularity", "N:M"]),
    "a scorer that is not there": ("budget: erk", "scorer: no/such.safetensors", 8, ["no/such.safetensors does not"]),
    "a text for a number": ("lr: 1", "lr: fast", 18, ["train.lr is 'fast': it should be a valid number"]),
    "a number for a text": ("label: SynFlow-50", "label: 50", 7, ["methods[1].label is 50", "valid string"]),
    "true for a number": ("[1, 2, 3]", "[1, true, 3]", 17, ["seeds[1] is True", "valid integer"]),
    "a training that cannot be": ("lr: 1", "lr: -1", 18, ["train.lr", "give a positive number"]),
    "unknown schedule": ("lr: 1", "schedule: cosin", 18, ["train.schedule", "did you mean cosine?"]),
    "density 0": ("2e-2", "0", 16, ["densities[1] is 0", "greater than 0"]),
    "density above 1": ("2e-2", "1.5", 16, ["densities[1] is 1.5", "less than or equal to 1"]),
    "a percentage": ("2e-2", "2%", 16, ["densities[1] is '2%'", "valid number"]),
    "a seed twice": ("[1, 2, 3]", "[1, 2, 1]", 17, ["seeds: has 1 twice: keep one"]),
    "a negative seed": ("[1, 2, 3]", "[-1]", 17, ["seeds[0] is -1"]),
    "a model twice": ("[resnet20,", "[resnet20, resnet20,", 1, ["models: has", "resnet20", "twice"]),
    "no seed": ("[1, 2, 3]", "[]", 17, ["seeds is empty: give at least one"]),
    "nothing to choose from": ("[1, 200]", "[]", 10, ["methods[4].choose.temperature is empty"]),
    "an option given and chosen": ("choose: {temp", "args: {temperature: 1}, choose: {temp", 10, ["both in args and"]),
    "no name for an option": ("rounds: 50", "all rounds: 50", 7, ["methods[1].args.all rounds", "no name"]),
    "an option that is no plain value": ("rounds: 50", "rounds: {a: 1}", 7, ["methods[1].args.rounds", "a number"]),
    "no seeds": ("seeds: [1, 2, 3]", "", 1, ["key 'seeds' is missing"]),
    "a misspelled key": ("seeds: [1, 2, 3]", "seed: [1, 2, 3]", 17, ["unknown key 'seed'", "did you mean seeds?"]),
    "a method without a name": ("name: snip, ", "", 9, ["key 'methods[3].name' is missing"]),
    "a number for a method": ("- dense", "- 7", 6, ["methods[0] is 7: give a name, or a mapping"]),
    "a text for a list": ("[1, 2, 3]", "1", 17, ["seeds is 1", "valid list"]),
    "dense with settings": ("- dense", "- {name: dense, budget: erk}", 6, ["methods[0]", "dense takes no budget"]),
    "a label twice": ("label: random as SNIP", "label: SynFlow-50", 5, ["label 'SynFlow-50'", "another label"]),
    "an unknown reference": ("reference: SynFlow-50", "reference: SynFlow", 20, ["unknown label 'SynFlow'", "-50?"]),
    "a key twice": ("score_images: 640", "score_images: 640\nseeds: [7]", 20, ["key 'seeds' is given twice"]),
    "no valid YAML": ("[1, 2, 3]", "[1, 2, 3", 18, ["no valid YAML"]),
    "an object of Python": ("[1, 2, 3]", "!!python/object:os.system {}", 17, ["seeds is {}"]),
    "a number that is none": ("[1, 2, 3]", "[!!int x]", 17, ["invalid literal"]),
    "an unknown tag": ("[1, 2, 3]", "[!secret 1]", 17, ["no valid YAML", "!secret"]),
    "an alias of nothing": ("[1, 2, 3]", "*seeds", 17, ["no valid YAML", "undefined alias"]),
    "an alias of itself": ("[1, 2, 3]", "&a [*a]", 1, ["nested too deeply"]),
    "a list for a key": ("[1, 2, 3]", "{[1]: 2}", 17, ["a key is no text"]),
    "a share of FLOPs above 1": ("flops: [0.5]", "flops: [1.5]", 15, ["flops[0] is 1.5"]),
    "weights without densities": ("densities: [0.1, 2e-2]", "", 1, ["SynFlow-50 needs to know", "add densities: ["]),
    "channels without shares": ("flops: [0.5]", "", 1, ["l1, when=epi", "needs to know how much", "add flops: ["]),
    "a moment for weights": ("budget: erk", "when: epi", 8, ["'when' is for methods that remove channels", "random"]),
    "a budget for channels": ("round_to: 4", "budget: erk", 14, ["'budget' is for methods that remove single", "l1"]),
    "an option given and each": ("keep: [conv1]", "args: {e: 1}, each: {e: [2]}", 14, ["both in args and in each"]),
    "unknown moment": ("when: epi", "when: epo", 14, ["methods[6].when", "unknown when 'epo'", "epi"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_line(name: str, tmp_path: Path) -> None:
    before, after, line, facts = MISTAKES[name]
    assert GOOD.count(before) >= 1
    with pytest.raises(FileFormatError) as raised:
        read(tmp_path, GOOD.replace(before, after, 1))
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'grid.yaml'}:{line}: ")
    assert "\n" not in message
    for fact in facts:
        assert fact in message


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"", "not nothing"),
        (b"- resnet20\n", "a grid is a mapping with keys such as models, datasets and methods, not a list"),
        (b"just a text", "not a str"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"\x00\x01", "UTF-8"),
        (b"[" * 5000, "nested too deeply"),
        (b"a: 1\n---\nb: 2\n", "no valid YAML"),
        (b"a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
         b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n", "more than 100000 values"),
    ],
    ids=["empty", "a list", "a text", "half UTF-16", "binary", "deep", "two documents", "a bomb"],
)  # fmt: skip
def test_files_that_are_no_grid(content: bytes, fact: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"grid\.yaml:\d+: ") as raised:
        read(tmp_path, content)
    assert fact in str(raised.value)


@pytest.mark.parametrize("path", ["absent.yaml", "."])
def test_a_file_that_cannot_be_read(path: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"cannot read .*: give a YAML file"):
        read_grid(tmp_path / path, METHODS)
