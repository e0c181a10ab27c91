"""Networks by name: shapes, sizes, initialisation, seeds, and every way in which a request can be wrong."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autosparse._torchvision import ensure_torchvision
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.models import create_model, list_models, parse_model_args, register_model, seeded_model

PARAMETERS = {
    "mobilenetv2": 2_236_682,
    "resnet18": 11_173_962,
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet56": 855_770,
    "vgg11": 9_228_362,
    "vgg16": 14_724_042,
    "vgg19": 20_035_018,
    "wrn-16-2": 691_674,
}

# Height and width that reach the global pooling, for 32x32 images.
FINAL_MAP = {
    "mobilenetv2": 4,
    "resnet18": 4,
    "resnet20": 8,
    "resnet32": 8,
    "resnet34": 4,
    "resnet50": 4,
    "resnet56": 8,
    "vgg11": 1,
    "vgg16": 1,
    "vgg19": 1,
    "wrn-16-2": 8,
}


def weight_shapes(model: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of the weights of convolutions and linear layers, in order of definition."""
    return [tuple(m.weight.shape) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def on_meta(name: str, **kwargs: Any) -> nn.Module:
    """A network without storage: shapes only, so that full widths cost nothing."""
    with torch.device("meta"):
        return create_model(name, **kwargs)


def images(size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------ built-in networks


def test_built_in_names_are_listed_sorted() -> None:
    assert list_models() == sorted(PARAMETERS)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_maps_images_to_logits_through_a_map_of_the_stated_size(name: str) -> None:
    model = create_model(name, num_classes=7, in_channels=1, width=0.125)
    reached: list[torch.Size] = []
    model.get_submodule("pool").register_forward_pre_hook(lambda _, args: reached.append(args[0].shape[2:]))
    assert model(images(channels=1)).shape == (2, 7)
    assert reached == [(FINAL_MAP[name], FINAL_MAP[name])]


@pytest.mark.parametrize("size", [1, 28, 64])
@pytest.mark.parametrize("name", ["mobilenetv2", "resnet20", "resnet50", "vgg11", "wrn-16-2"])
def test_any_image_size_gives_finite_logits(name: str, size: int) -> None:
    logits = create_model(name, width=0.125).eval()(images(size))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("name", "count"), sorted(PARAMETERS.items()))
def test_parameter_count_is_the_documented_one(name: str, count: int) -> None:
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == count
    documented = sys.modules[type(model).__module__], sys.modules["autosparse.models.resnet_cifar"]
    factory = name.replace("-", "_")
    docstrings = [getattr(module, factory).__doc__ for module in documented if hasattr(module, factory)]
    assert len(docstrings) == 1
    assert f"{count:,} parameters" in docstrings[0]


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_164_352), ("vgg16", 14_715_584)])
def test_count_of_prunable_weights(name: str, count: int) -> None:
    assert sum(math.prod(shape) for shape in weight_shapes(on_meta(name))) == count


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_convolutions_have_no_bias(name: str) -> None:
    assert [m for m in on_meta(name).modules() if isinstance(m, nn.Conv2d) and m.bias is not None] == []


@pytest.mark.parametrize(
    ("name", "other", "kwargs"),
    [
        ("mobilenetv2", "mobilenet_v2", {}),
        ("mobilenetv2", "mobilenet_v2", {"width": 0.35}),
        ("mobilenetv2", "mobilenet_v2", {"width": 1.4}),
        ("resnet18", "resnet18", {}),
        ("resnet34", "resnet34", {}),
        ("resnet50", "resnet50", {}),
    ],
)
def test_layers_have_the_shapes_of_the_imagenet_original(name: str, other: str, kwargs: dict[str, float]) -> None:
    """torchvision implements the papers independently; only the kernel of the stem differs for small images."""
    original = {"width_mult": kwargs["width"]} if kwargs else {}
    ours, theirs = weight_shapes(on_meta(name, **kwargs)), weight_shapes(on_meta(f"torchvision:{other}", **original))
    assert ours[0][:2] == theirs[0][:2]
    assert ours[1:] == theirs[1:]


@pytest.mark.parametrize("name", ["vgg11", "vgg16", "vgg19"])
def test_vgg_has_the_convolutions_of_the_paper(name: str) -> None:
    original = on_meta(f"torchvision:{name}_bn")
    assert weight_shapes(on_meta(name)) == [*weight_shapes(original.get_submodule("features")), (10, 512)]


def test_width_multiplies_channels_and_rounds_them() -> None:
    assert weight_shapes(on_meta("resnet20", width=0.5))[0] == (8, 3, 3, 3)
    assert weight_shapes(on_meta("resnet20", width=0.5))[-1] == (10, 32)
    assert weight_shapes(on_meta("resnet50", width=0.25))[-1] == (10, 512)
    assert weight_shapes(on_meta("wrn-16-2", width=1.5))[:2] == [(24, 3, 3, 3), (48, 24, 3, 3)]
    assert weight_shapes(on_meta("vgg11", width=0.05))[0] == (3, 3, 3, 3)  # 3.2 rounds to 3
    assert weight_shapes(on_meta("vgg11", width=0.0001))[-1] == (10, 1)  # never below one channel
    assert weight_shapes(on_meta("mobilenetv2", width=0.01))[0] == (8, 3, 3, 3)
    assert weight_shapes(on_meta("mobilenetv2", width=0.01))[-1] == (10, 1280)


@pytest.mark.parametrize("name", ["resnet20", "resnet50", "vgg11", "wrn-16-2"])
def test_networks_of_one_channel_work(name: str) -> None:
    assert create_model(name, width=1e-6).eval()(images()).shape == (2, 10)


def test_initial_weights_follow_the_stated_distributions() -> None:
    model = seeded_model("mobilenetv2", seed=0, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() >= 5000:
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    classifier = model.get_submodule("classifier")
    assert isinstance(classifier, nn.Linear)
    assert classifier.weight.abs().max().item() == pytest.approx(1 / math.sqrt(1280), rel=0.01)
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 960]
    assert len(depthwise) == 3
    assert all(m.weight.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05) for m in depthwise)


# ----------------------------------------------------------------------------------------- use as a plain nn.Module


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet20", "resnet50", "vgg11", "wrn-16-2"])
class TestPlainModule:
    def test_every_parameter_gets_a_gradient(self, name: str) -> None:
        model = create_model(name, width=0.125)
        model(images()).square().sum().backward()
        assert [key for key, p in model.named_parameters() if p.grad is None] == []

    def test_channels_last_changes_no_value(self, name: str) -> None:
        model, x = create_model(name, width=0.125).double().eval(), images().double()  # no trace of the order of sums
        expected = model(x)
        moved = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.testing.assert_close(moved(x.contiguous(memory_format=torch.channels_last)), expected)

    def test_bfloat16_autocast(self, name: str) -> None:
        model = create_model(name, width=0.125)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(images())
        assert logits.dtype == torch.bfloat16
        logits.float().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_deepcopy_is_equal_and_independent(self, name: str) -> None:
        model = create_model(name, width=0.125).eval()
        expected = model(images())
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert torch.equal(twin(images()), expected)


# ------------------------------------------------------------------------------------------------------------ seeds


def test_one_seed_gives_bit_equal_weights_and_another_does_not() -> None:
    first, again, other = (seeded_model("resnet20", seed=seed, num_classes=10).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not torch.equal(first["conv.weight"], other["conv.weight"])


def test_seeded_model_neither_reads_nor_changes_the_global_rng() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = seeded_model("resnet20", seed=3, num_classes=10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = seeded_model("resnet20", seed=3, num_classes=10)
    assert torch.equal(first.get_parameter("conv.weight"), second.get_parameter("conv.weight"))


def test_seeded_model_is_built_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        model = seeded_model("resnet20", seed=3, num_classes=10)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


# ------------------------------------------------------------------------------------------------------ torchvision


def test_torchvision_by_name() -> None:
    model = create_model("torchvision:squeezenet1_1", num_classes=7, dropout=0.25)
    assert model(images(64)).shape == (2, 7)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25]


def test_torchvision_googlenet_returns_logits_while_training() -> None:
    ensure_torchvision()
    model = create_model("torchvision:googlenet", num_classes=7, init_weights=False)
    assert model.training
    assert model(images(32)).shape == (2, 7)


def test_torchvision_is_seeded_as_well() -> None:
    first, again = (seeded_model("torchvision:squeezenet1_1", seed=5, num_classes=3) for _ in range(2))
    pairs = list(zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["resnet81", "segmentation/fcn_resnet50", ""])
def test_torchvision_unknown_name(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown torchvision model '{name}'"):
        create_model(f"torchvision:{name}")


def test_torchvision_suggests_a_near_name() -> None:
    with pytest.raises(UnknownNameError) as caught:
        create_model("torchvision:resnte18")
    assert "resnet18" in caught.value.near


def test_torchvision_takes_three_channels_only() -> None:
    with pytest.raises(AutoSparseError, match=r"'torchvision:resnet18' needs images of 3 channels, not 1"):
        create_model("torchvision:resnet18", in_channels=1)


def test_torchvision_unknown_argument() -> None:
    with pytest.raises(AutoSparseError, match=r"'torchvision:resnet18' takes no argument 'widht'"):
        create_model("torchvision:resnet18", widht=2)


@pytest.mark.parametrize("argument", ["weights", "pretrained", "weights_backbone"])
def test_trained_weights_are_refused(argument: str) -> None:
    with pytest.raises(AutoSparseError, match=f"'{argument}' is not accepted, networks are pruned at initialisation"):
        create_model("torchvision:resnet18", **{argument: True})


# ------------------------------------------------------------------------------------------------------------- timm


def test_timm_by_name() -> None:
    pytest.importorskip("timm")
    model = create_model("timm:test_resnet", num_classes=7, in_channels=1)
    assert model(images(64, channels=1)).shape == (2, 7)


def test_timm_name_with_the_tag_of_trained_weights_is_built_fresh() -> None:
    pytest.importorskip("timm")
    tagged = seeded_model("timm:test_resnet.r160_in1k", seed=1, num_classes=3)
    plain = seeded_model("timm:test_resnet", seed=1, num_classes=3)
    assert all(torch.equal(a, b) for a, b in zip(tagged.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("name", ["resnte18", "hf-hub:someone/resnet18"])
def test_timm_unknown_name(name: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UnknownNameError, match=f"unknown timm model '{name}'") as caught:
        create_model(f"timm:{name}")
    assert any("resnet18" in near for near in caught.value.near)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("widht", "takes no argument 'widht'"),
        ("pretrained", "'pretrained' is not accepted"),
        ("checkpoint_path", "'checkpoint_path' is not accepted"),
        ("in_chans", "'in_chans' follows from the images"),
    ],
)
def test_timm_refuses_argument(argument: str, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(AutoSparseError, match=f"'timm:test_resnet'.*{message}"):
        create_model("timm:test_resnet", **{argument: 2})


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(AutoSparseError, match=r"'timm:resnet18' needs timm; run: pip install autosparse\[timm\]"):
        create_model("timm:resnet18")


# ------------------------------------------------------------------------------------------- package.module:factory

USER_MODULE = """
from torch import nn

constant = 3

class Net(nn.Sequential):
    def __init__(self, num_classes=2, in_channels=3, hidden=4):
        super().__init__(nn.Conv2d(in_channels, hidden, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(hidden, num_classes))

    @classmethod
    def wide(cls, num_classes):
        return cls(num_classes, hidden=32)

def fixed():
    from user_package import helper
    return helper.network()

def open_ended(**kwargs):
    return Net(**kwargs)

def classes_only(**kwargs):
    return nn.Linear(2, kwargs.pop("num_classes"), **kwargs)

def demanding(depth, *, num_classes):
    return Net(num_classes)

def no_module(num_classes):
    return "a network"

def broken(num_classes):
    return nn.Linear(2, num_classes, colour="red")
"""


@pytest.fixture
def user_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in the current directory, which is not on ``sys.path``."""
    package = tmp_path / "user_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(USER_MODULE)
    (package / "helper.py").write_text("from torch import nn\n\ndef network():\n    return nn.Linear(5, 5)\n")
    (package / "incomplete.py").write_text("import no_such_dependency\n")
    (package / "malformed.py").write_text("def make(:\n")
    (package / "outdated.py").write_text("from torch import no_such_name\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    for name in [name for name in sys.modules if name.partition(".")[0] == "user_package"]:
        monkeypatch.delitem(sys.modules, name)
    return package


@pytest.mark.usefixtures("user_package")
class TestUserFactory:
    def test_class_of_the_current_directory(self) -> None:
        path = list(sys.path)
        model = create_model("user_package.nets:Net", num_classes=7, in_channels=1, hidden=6)
        assert weight_shapes(model) == [(6, 1, 3, 3), (7, 6)]
        assert sys.path == path

    def test_method_of_a_class(self) -> None:
        assert weight_shapes(create_model("user_package.nets:Net.wide")) == [(32, 3, 3, 3), (10, 32)]

    def test_gets_only_what_its_signature_accepts_and_may_import_late(self) -> None:
        assert weight_shapes(create_model("user_package.nets:fixed", num_classes=7, in_channels=1)) == [(5, 5)]

    @pytest.mark.parametrize(("in_channels", "factory"), [(3, "open_ended"), (1, "open_ended"), (3, "classes_only")])
    def test_open_signature_gets_the_number_of_classes(self, in_channels: int, factory: str) -> None:
        shapes = weight_shapes(create_model(f"user_package.nets:{factory}", num_classes=7, in_channels=in_channels))
        assert shapes == ([(4, in_channels, 3, 3), (7, 4)] if factory == "open_ended" else [(7, 2)])

    def test_seeded(self) -> None:
        first, again = (seeded_model("user_package.nets:Net", seed=5, num_classes=3) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("absent.nets:make", "there is no module 'absent'; run from the directory that holds it"),
            ("user_package.absent:make", "there is no module 'user_package.absent'"),
            ("user_package.incomplete:make", "importing 'user_package.incomplete' failed: .*'no_such_dependency'"),
            ("user_package.malformed:make", "importing 'user_package.malformed' failed: .*correct the module"),
            ("user_package.outdated:make", "importing 'user_package.outdated' failed: .*'no_such_name'"),
            ("user_package.nets:net", "unknown factory of module 'user_package.nets' 'net': did you mean Net"),
            ("user_package.nets:constant", "'constant' is int, not a function or class to call"),
            ("user_package.nets:no_module", "returned str, not a torch.nn.Module"),
            ("user_package.nets:demanding", "missing a required argument: 'depth'; accepted arguments: depth"),
            ("user_package/nets.py:make", "not of the form package.module:factory"),
            ("user_package.nets:", "not of the form package.module:factory"),
            (":make", "not of the form package.module:factory"),
            (".nets:make", "not of the form package.module:factory"),
        ],
    )
    def test_mistake_is_named_in_one_line(self, name: str, message: str) -> None:
        with pytest.raises(AutoSparseError, match=message) as caught:
            create_model(name)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("factory", "message"),
        [
            ("Net", "unexpected keyword argument 'widht'; accepted arguments: hidden"),
            ("fixed", "unexpected keyword argument 'widht'; accepted arguments: none"),
            ("open_ended", "takes no argument 'widht'"),
        ],
    )
    def test_unknown_argument(self, factory: str, message: str) -> None:
        with pytest.raises(AutoSparseError, match=f"'user_package.nets:{factory}'.*{message}"):
            create_model(f"user_package.nets:{factory}", widht=2)

    def test_type_error_of_the_factory_itself_keeps_its_traceback(self) -> None:
        with pytest.raises(TypeError, match="colour"):
            create_model("user_package.nets:broken")


# --------------------------------------------------------------------------------------------- names and arguments


def test_unknown_name_suggests_the_nearest_and_the_other_sources() -> None:
    with pytest.raises(UnknownNameError, match=r"'resnte20': did you mean resnet20.*torchvision:NAME") as caught:
        create_model("resnte20")
    assert caught.value.near[0] == "resnet20"


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="model 'resnet20' is already defined"):
        register_model("resnet20")(nn.Identity)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_unknown_argument_names_the_model_and_what_it_accepts(name: str) -> None:
    with pytest.raises(AutoSparseError, match=f"model '{name}': .*'widht'; accepted arguments: width$"):
        create_model(name, widht=2)


@pytest.mark.parametrize("build", [create_model, lambda name, **kwargs: seeded_model(name, seed=0, **kwargs)])
@pytest.mark.parametrize("argument", ["num_classes", "in_channels"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True, "ten"])
def test_counts_are_positive_integers(build: Callable[..., nn.Module], argument: str, value: object) -> None:
    with pytest.raises(AutoSparseError, match=f"{argument} must be an integer of at least 1, not"):
        build("resnet20", **{"num_classes": 10, argument: value})


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet18", "resnet20", "vgg11", "wrn-16-2"])
@pytest.mark.parametrize("width", [0, -1.0, math.nan, math.inf, True, "wide", None])
def test_width_is_a_positive_number(name: str, width: object) -> None:
    with pytest.raises(AutoSparseError, match="width must be a positive number"):
        create_model(name, width=width)


def test_model_args_are_literals_or_text() -> None:
    texts = ["width=0.5", "depth=3", "flag=True", "shape=(1, 2)", "none=None", "act=relu", "equation=a=b", "empty="]
    assert parse_model_args(texts) == {
        "width": 0.5,
        "depth": 3,
        "flag": True,
        "shape": (1, 2),
        "none": None,
        "act": "relu",
        "equation": "a=b",
        "empty": "",
    }
    assert parse_model_args([]) == {}


@pytest.mark.parametrize("text", ["width", "=2", "a b=2", "", "2=2"])
def test_model_arg_needs_a_key_and_an_equals_sign(text: str) -> None:
    with pytest.raises(AutoSparseError, match=f"model argument '{text}' is not of the form key=value"):
        parse_model_args([text])


def test_model_arg_is_given_once_and_leaves_other_options_alone() -> None:
    with pytest.raises(AutoSparseError, match="'width' is given twice"):
        parse_model_args(["width=1", "width=2"])
    for key in ("name", "seed", "num_classes", "in_channels"):
        with pytest.raises(AutoSparseError, match=f"'{key}' follows from the other options"):
            parse_model_args([f"{key}=2"])
