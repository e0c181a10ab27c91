"""A shrunk network comes back bit by bit, and whatever is not one is refused in one line."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import CONCATENATION_AND_SUM, FLATTENED, GATED, GROUPED, RESIDUAL, TWICE, Small, conv
from test_surgery import NETWORKS, trained_like
from torch import Tensor, nn

from autosparse.channels import coupling as coupling_module
from autosparse.channels.changes import Change
from autosparse.channels.coupling import couple
from autosparse.channels.initial import reinitialise_
from autosparse.channels.store import load, read_manifest, save_shrunk
from autosparse.channels.surgery import shrink_
from autosparse.errors import AutoSparseError, FileFormatError
from autosparse.files import save_tensors
from autosparse.models import seeded_model
from autosparse.seeding import generator

IMAGE = (3, 8, 8)
TINY: dict[str, Any] = {"model": "resnet20", "model_args": {"width": 0.25}, "num_classes": 10, "in_channels": 3}


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether couplings are right is tested elsewhere, and takes longer than all that is tested here."""
    monkeypatch.setattr(coupling_module, "check_coupling", lambda *_: None)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def shrunk(dense: nn.Module, image_shape: tuple[int, ...] = IMAGE) -> nn.Module:
    """Every second channel of every group."""
    small = copy.deepcopy(dense)
    x = torch.zeros(1, *image_shape, dtype=next(dense.parameters()).dtype)
    coupling = couple(dense, x)
    shrink_(small, coupling, {group.name: np.arange(group.width) % 2 == 0 for group in coupling})
    return small


def assert_same(found: nn.Module, expected: nn.Module, image_shape: tuple[int, ...] = IMAGE) -> None:
    """The same state bit by bit, types included, and the same function."""
    ours, theirs = found.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        assert torch.equal(ours[name], value), name
    x = noise(*image_shape, dtype=next(expected.parameters()).dtype)
    with torch.no_grad():
        assert torch.equal(found(x), copy.deepcopy(expected).eval()(x))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A narrow ResNet-20 at half of its channels."""
    dense = seeded_model("resnet20", seed=3, num_classes=10, width=0.25)
    path = tmp_path / "shrunk"
    save_shrunk(path, shrunk(dense), dense, network=TINY, image_shape=IMAGE, facts={"method": "by hand"})
    return path


# What comes back ---------------------------------------------------------------------------------------------------


#: One of each family; the others take a while and show the same.
_QUICK = (
    "resnet20",
    "vgg16",
    "wrn-16-2",
    "mobilenetv2",
    "torchvision:mobilenet_v3_small",
    "torchvision:regnet_y_400mf",
    "timm:vit_tiny_patch16_224",
)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, id=name, marks=[] if name in _QUICK else pytest.mark.slow)
        for name, _, options in NETWORKS
    ],
)
def test_a_network_by_name_comes_back_bit_by_bit(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    if name.startswith("timm:") and find_spec("timm") is None:
        pytest.skip("timm is not installed")
    dense = trained_like(seeded_model(name, seed=5, num_classes=7, **options))
    image_shape = (3, 32, 32)
    small = shrunk(dense, image_shape)
    network = {"model": name, "model_args": options, "num_classes": 7, "in_channels": 3}
    save_shrunk(tmp_path / "out", small, dense, network=network, image_shape=image_shape, facts={})
    found = load(tmp_path / "out")
    assert_same(found, small, image_shape)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in found.state_dict().values())


@pytest.mark.parametrize("build", [RESIDUAL, CONCATENATION_AND_SUM, FLATTENED, GATED, GROUPED, TWICE])
def test_a_network_given_in_python_comes_back_in_its_own_precision(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    dense = trained_like(build()).double()
    small = shrunk(dense)
    save_shrunk(tmp_path, small, dense, network=None, image_shape=IMAGE, facts={})
    assert_same(load(tmp_path, build()), small)  # the one that is built anew is in single precision


@pytest.mark.usefixtures("unchecked")
def test_a_widened_network_comes_back(tmp_path: Path) -> None:
    dense = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    wide = copy.deepcopy(dense)
    coupling = couple(dense, torch.zeros(1, *IMAGE))
    reinitialise_(wide, coupling, {name: 2 * width + 1 for name, width in coupling.widths.items()}, generator(0))
    save_shrunk(tmp_path, wide, dense, network=TINY, image_shape=IMAGE, facts={})
    found = load(tmp_path)
    assert_same(found, wide)
    assert couple(found, torch.zeros(1, *IMAGE)).widths == {name: 2 * w + 1 for name, w in coupling.widths.items()}


def test_what_was_loaded_can_be_trained_and_stored_again(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    assert not model.training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(noise(*IMAGE)).square().sum().backward()
        optimizer.step()
    dense = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    save_shrunk(tmp_path / "trained", model, dense, network=TINY, image_shape=IMAGE, facts={"epochs": 2})
    assert_same(load(tmp_path / "trained"), model)
    assert model.training  # saving left it as it was


def test_the_manifest_says_what_differs_and_nothing_else(tmp_path: Path) -> None:
    dense = RESIDUAL()
    small = copy.deepcopy(dense)
    coupling = couple(dense, torch.zeros(1, *IMAGE))
    shrink_(small, coupling, {"inner": np.array([True, False, True, False, False, False])})
    save_shrunk(tmp_path, small, dense, network=None, image_shape=IMAGE, facts={"method": "by hand"})
    manifest = read_manifest(tmp_path)
    assert manifest.changes == {
        "inner": Change("Conv2d", {"out_channels": 2}, {"weight": (2, 4, 3, 3), "bias": (2,)}),
        "back": Change("Conv2d", {"in_channels": 2}, {"weight": (4, 2, 3, 3)}),
    }
    assert (manifest.network, manifest.image_shape) == (None, IMAGE)
    assert manifest.facts == {"method": "by hand"}
    assert "torch" in json.loads((tmp_path / "manifest.json").read_text())["provenance"]["versions"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "model.safetensors"]


def test_an_unshrunk_network_has_an_empty_list_of_changes(tmp_path: Path) -> None:
    dense = RESIDUAL()
    save_shrunk(tmp_path, dense, dense, network=None, image_shape=IMAGE, facts={})
    assert read_manifest(tmp_path).changes == {}
    assert_same(load(tmp_path, RESIDUAL()), dense)


def test_equal_networks_give_equal_files(folder: Path, tmp_path: Path) -> None:
    dense = seeded_model("resnet20", seed=0, num_classes=10, width=0.25)
    save_shrunk(tmp_path / "again", load(folder), dense, network=TINY, image_shape=IMAGE, facts={"method": "by hand"})
    for name in ("manifest.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_other_files_are_not_looked_at(folder: Path) -> None:
    (folder / "summary.json").write_text("no JSON")
    assert isinstance(load(folder), nn.Module)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    def build(width: int) -> Any:
        net: Any = Small(
            lambda net, x: net.head(net.b(net.a(net.stem(x)).relu()).mean((2, 3))),
            stem=conv(3, width), a=conv(width, width), b=conv(width, width), head=nn.Linear(width, 5),
        )  # fmt: skip
        net.b.weight = net.a.weight
        return net

    small = build(3)
    save_shrunk(tmp_path, small, build(4), network=None, image_shape=IMAGE, facts={})
    found: Any = load(tmp_path, build(4))
    assert_same(found, small)
    assert found.a.weight is found.b.weight


def test_loading_leaves_the_dense_network_and_the_random_numbers_as_they_were(folder: Path) -> None:
    dense = seeded_model("resnet20", seed=9, num_classes=10, width=0.25)
    before, state = copy.deepcopy(dense.state_dict()), torch.get_rng_state()
    load(folder, dense)
    load(folder)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    assert dense.training
    assert torch.equal(torch.get_rng_state(), state)


# What is not stored ------------------------------------------------------------------------------------------------


def _other_layer(net: Any) -> None:
    net.norm = nn.InstanceNorm2d(4)


def _other_name(net: Any) -> None:
    net.extra = nn.Linear(1, 1)


def _without_bias(net: Any) -> None:
    net.inner.bias = None


def _other_dilation(net: Any) -> None:
    net.inner.dilation, net.inner.padding = (2, 2), (2, 2)


def _at_odds(net: Any) -> None:
    net.inner.out_channels = 5


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_other_layer, r"'norm' is InstanceNorm2d, in the dense network BatchNorm2d"),
        (_other_name, r"'extra' is only in it"),
        (_without_bias, r"'inner' \(Conv2d\) has the tensors weight, in the dense network weight, bias"),
        (_other_dilation, r"differs from the dense network in more than widths"),
        (_at_odds, r"'inner' \(Conv2d\) does not agree with itself: weight is \[6, 4, 3, 3\], .* \[5, 4, 3, 3\]"),
    ],
)
def test_what_cannot_be_kept_is_not_written(edit: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    small = RESIDUAL()
    edit(small)
    with pytest.raises(AutoSparseError, match=message):
        save_shrunk(tmp_path / "out", small, RESIDUAL(), network=None, image_shape=IMAGE, facts={})
    assert not (tmp_path / "out").exists()


def test_a_width_without_an_attribute_is_not_written(tmp_path: Path) -> None:
    def build(width: int) -> nn.Module:
        net = Small(lambda net, x: (x * net.scale).sum((2, 3)))
        net.scale = nn.Parameter(torch.ones(width, 1, 1))
        return net

    with pytest.raises(AutoSparseError, match=r"module '' \(Small\) have changed, and no attribute"):
        save_shrunk(tmp_path, build(1), build(3), network=None, image_shape=IMAGE, facts={})


@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 8), (3, 8, 0), (3, 8, 8.5)])
def test_images_of_another_shape_are_refused(image_shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(AutoSparseError, match=r"cannot be evaluated on images of \[1, 8, 8\]|its image_shape is"):
        save_shrunk(tmp_path, RESIDUAL(), RESIDUAL(), network=None, image_shape=image_shape, facts={})


# What is not loaded ------------------------------------------------------------------------------------------------

_MODULE = ("modules", "blocks.0.conv1")


def _edit(folder: Path, keys: tuple[str, ...], value: Any) -> None:
    """Set, or with ``...`` remove, an entry of the manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    place = manifest
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("kind",), "autosparse-training", "is no autosparse-shrunk file"),
        (("schema_version",), 99, "newer than"),
        (("schema_version",), "new", "no readable schema version"),
        (("network",), "resnet20", "its network's 'model' is None"),
        (("network", "model"), ..., "its network's 'model' is None"),
        (("network", "model"), "resnte20", "cannot be built .unknown model 'resnte20': did you mean resnet20"),
        (("network", "model_args"), {"widht": 0.25}, "cannot be built .*widht"),
        (("network", "model_args"), {"width": 1e9}, "cannot be built"),
        (("network", "model_args"), {"width": 4000}, r"cannot be built \(resnet20 with these arguments has"),
        (("network", "num_classes"), 10**12, "its network's 'num_classes' is 1000000000000"),
        (("network", "num_classes"), True, "its network's 'num_classes' is True"),
        (("network", "num_classes"), 11, r"'classifier': weight is \[10, 8\], its attributes say \[11, 8\]"),
        (("network", "in_channels"), 0, "its network's 'in_channels' is 0"),
        (("image_shape",), [3, 8], "its image_shape is"),
        (("image_shape",), [3, 8, 10**9], "its image_shape is"),
        (("facts",), [], "its facts is"),
        (("modules",), [], "its modules is"),
        (("modules", "blocks.99"), {"type": "Conv2d", "attributes": {}, "tensors": {}}, "no module 'blocks.99'"),
        (("modules", "classifier", "__class__"), "Linear", "its module classifier is"),
        ((*_MODULE, "type"), "Linear", "module 'blocks.0.conv1': it is Conv2d, not Linear"),
        ((*_MODULE, "attributes", "stride"), [2, 2], "Conv2d has no width called 'stride'"),
        ((*_MODULE, "attributes", "forward"), 1, "Conv2d has no width called 'forward'"),
        ((*_MODULE, "attributes", "out_channels"), "4", "its module blocks.0.conv1 is"),
        ((*_MODULE, "attributes", "out_channels"), -1, "its module blocks.0.conv1 is"),
        ((*_MODULE, "attributes", "out_channels"), 10**9, "its module blocks.0.conv1 is"),
        ((*_MODULE, "attributes", "out_channels"), [4], r"'out_channels' is 4 and cannot become \(4,\)"),
        ((*_MODULE, "attributes", "groups"), 3, "3 groups do not divide"),
        ((*_MODULE, "attributes", "out_channels"), ..., r"weight is \[2, 2, 3, 3\], its attributes say \[4, 2, 3, 3\]"),
        ((*_MODULE, "tensors", "weight"), ..., r"weight is \[4, 4, 3, 3\], its attributes say \[2, 2, 3, 3\]"),
        ((*_MODULE, "tensors", "weight"), [2, 2, 3], r"weight is \[2, 2, 3\], its attributes say \[2, 2, 3, 3\]"),
        ((*_MODULE, "tensors", "weight"), [2**24] * 4, "its module blocks.0.conv1 is"),
        ((*_MODULE, "tensors", "scale"), [2], "Conv2d has no tensor 'scale'"),
        (_MODULE, ..., r"'blocks.0.conv1.weight' is \[2, 2, 3, 3\] in the file, \[4, 4, 3, 3\] by the manifest"),
    ],
)
def test_a_manifest_that_cannot_be_true_is_refused(
    keys: tuple[str, ...], value: Any, message: str, folder: Path
) -> None:
    _edit(folder, keys, value)
    with pytest.raises(FileFormatError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_the_tests_above_describe_the_folder_that_they_damage(folder: Path) -> None:
    change = read_manifest(folder).changes["blocks.0.conv1"]
    assert change.attributes == {"in_channels": 2, "out_channels": 2}
    assert change.tensors == {"weight": (2, 2, 3, 3)}


def test_code_that_a_file_names_is_not_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text("from pathlib import Path\ndef make(**_):\n    Path('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    _edit(folder, ("network", "model"), "own:make")
    with pytest.raises(AutoSparseError, match=r"names own:make, code of your own that is not run"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_without_a_name_the_dense_network_is_asked_for(tmp_path: Path) -> None:
    save_shrunk(tmp_path, shrunk(RESIDUAL()), RESIDUAL(), network=None, image_shape=IMAGE, facts={})
    with pytest.raises(AutoSparseError, match=r"autosparse.load\(folder, dense\)"):
        load(tmp_path)
    with pytest.raises(FileFormatError, match=r"does not fit the dense network .*: the dense network is another one"):
        load(tmp_path, GATED())


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_file_must_be_there_and_be_a_file(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    with pytest.raises(FileFormatError, match=f"holds no {name}: give a folder of 'autosparse shrink'"):
        load(folder)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileFormatError, match=f"{name} is a link or a folder"):
        load(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(FileFormatError, match=f"{name} is a link or a folder"):
        load(folder)


def test_weights_of_another_network_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    dense = seeded_model("resnet20", seed=3, num_classes=10, width=0.25)
    save_shrunk(other, dense, dense, network=TINY, image_shape=IMAGE, facts={})
    shutil.copy(other / "model.safetensors", folder)
    with pytest.raises(FileFormatError, match=r"model.safetensors does not fit .*manifest.json: 'blocks"):
        load(folder)


def test_damaged_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-4], b"\xff" * 8 + whole[8:], b"no tensors at all"):
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match="is damaged or no safetensors file"):
            load(folder)


def test_weights_of_another_kind_or_type_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load(folder).state_dict()
    save_tensors(path, "masks", state, {})
    with pytest.raises(FileFormatError, match="is no state file"):
        load(folder)
    save_tensors(path, "state", {name: value.to(torch.int64) for name, value in state.items()}, {})
    with pytest.raises(FileFormatError, match=r"'.*' is torch.int64, not torch.float32"):
        load(folder)


def test_a_manifest_that_is_no_json_is_refused(folder: Path) -> None:
    for text in ("", "[]", "{", "[" * 100_000):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(FileFormatError, match=r"manifest.json (is not readable JSON|holds no JSON object)"):
            load(folder)
