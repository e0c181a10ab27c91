"""Fresh weights for new widths: the law that the author used is found, and holds at the new fans."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import ks_2samp, truncnorm
from small_networks import CONCATENATION_AND_SUM, FLATTENED, GATED, GROUPED, RESIDUAL, TWICE, Small, conv
from torch import Tensor, nn

from autosparse._torchvision import ensure_torchvision
from autosparse.channels.coupling import couple
from autosparse.channels.groups import ChannelGroup, Coupling, Member
from autosparse.channels.initial import reinitialise_
from autosparse.channels.laws import (
    NORMAL,
    TRUNCATED,
    UNIFORM,
    Constant,
    Law,
    Resampled,
    Shape,
    fans_of,
    initial_distributions,
)
from autosparse.errors import AutoSparseError
from autosparse.models import create_model, seeded_model
from autosparse.seeding import generator, global_stream

IMAGE = torch.zeros(1, 3, 8, 8)
DEFAULT = Law(UNIFORM, "fan-in", 1 / 3)
ZERO = Constant(0.0)
HE_IN, HE_OUT, HE_OUT_GROUP = (Law(NORMAL, fan, 2.0) for fan in ("fan-in", "fan-out", "fan-out of a group"))


def fixed(std: float) -> Law:
    return Law(NORMAL, "1", std**2)


def built(name: str, seed: int = 0, **options: Any) -> nn.Module:
    if name.startswith("timm:") and find_spec("timm") is None:
        pytest.skip("timm is not installed")
    return seeded_model(name, seed=seed, num_classes=10, **options)


# --- which law -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [NORMAL, UNIFORM, TRUNCATED], ids=lambda shape: shape.name)
def test_shapes_are_densities(shape: Shape) -> None:
    def density(x: float) -> float:
        return math.exp(-shape.curvature * x * x / 2) / shape.norm

    end = min(shape.cut, 40.0)
    assert quad(density, -end, end)[0] == pytest.approx(1)
    assert quad(lambda x: x * x * density(x), -end, end)[0] == pytest.approx(shape.std**2)
    assert quad(density, -0.7, 0.7)[0] == pytest.approx(float(shape.within(np.array(0.7))))
    assert pytest.approx(truncnorm(-2, 2).std()) == TRUNCATED.std


def test_fans_by_hand() -> None:
    assert fans_of((6, 4, 3, 3), groups=2) == {
        "1": 1,
        "fan-in": 36,
        "fan-out": 54,
        "fan-out of a group": 27,
        "mean fan": 45,
        "mean fan of a group": 31.5,
    }


@pytest.mark.parametrize("shape", [NORMAL, UNIFORM, TRUNCATED], ids=lambda shape: shape.name)
def test_a_law_draws_what_it_says(shape: Shape) -> None:
    law = Law(shape, "fan-in", 2.0)
    values = law.draw((100, 200), {"fan-in": 200.0}, torch.float64, generator(0, "tests"))
    assert law.std({"fan-in": 200.0}) == pytest.approx(0.1)
    assert float(values.std()) == pytest.approx(0.1, rel=0.02)  # 4 standard errors
    assert abs(float(values.mean())) < 4 * 0.1 / math.sqrt(20_000)
    assert float(values.abs().max()) < shape.cut * 0.1 / shape.std


NETWORKS = [
    # convolutions, linear layers, biases of the classifier
    ("resnet20", {}, HE_OUT, DEFAULT, DEFAULT),
    ("resnet20", {"width": 0.25}, HE_OUT, DEFAULT, DEFAULT),
    ("resnet18", {"width": 0.5}, HE_OUT, DEFAULT, DEFAULT),
    ("resnet50", {"width": 0.5}, HE_OUT, DEFAULT, DEFAULT),
    ("vgg11", {"width": 0.5}, HE_OUT, DEFAULT, DEFAULT),
    ("wrn-16-2", {}, HE_OUT, DEFAULT, DEFAULT),
    ("mobilenetv2", {"width": 0.5}, HE_OUT_GROUP, DEFAULT, DEFAULT),
    ("torchvision:mobilenet_v2", {}, HE_OUT, fixed(0.01), ZERO),
    ("torchvision:mobilenet_v3_small", {}, HE_OUT, fixed(0.01), ZERO),
    ("torchvision:efficientnet_b0", {}, HE_OUT, Law(UNIFORM, "fan-out", 1 / 3), ZERO),
    ("torchvision:densenet121", {}, HE_IN, DEFAULT, ZERO),
    ("torchvision:regnet_y_400mf", {}, HE_OUT, fixed(0.01), ZERO),
    ("torchvision:shufflenet_v2_x0_5", {}, DEFAULT, DEFAULT, DEFAULT),
    ("timm:efficientnet_lite0", {}, HE_OUT_GROUP, Law(UNIFORM, "fan-out", 1 / 3), ZERO),
    ("timm:vit_tiny_patch16_224", {"img_size": 32}, DEFAULT, fixed(0.02), ZERO),
    # 24, 28 and 134 million parameters
    pytest.param("torchvision:resnet50", {}, HE_OUT, DEFAULT, DEFAULT, marks=pytest.mark.slow),
    pytest.param("torchvision:convnext_tiny", {}, fixed(0.02), fixed(0.02), ZERO, marks=pytest.mark.slow),
    pytest.param("torchvision:vgg16_bn", {}, HE_OUT, fixed(0.01), ZERO, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "options", "convolutions", "linears", "bias"), NETWORKS)
def test_the_law_of_a_network_is_found(
    name: str, options: dict[str, Any], convolutions: Law, linears: Law, bias: Law | Constant
) -> None:
    model = built(name, **options)
    found = initial_distributions(model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    for layer, module in layers.items():
        law = found[f"{layer}.weight"]
        assert isinstance(law, Law)
        assert_same(law, linears if isinstance(module, nn.Linear) else convolutions, module)
    last = list(layers)[-1]
    assert_same(found[f"{last}.bias"], bias, layers[last])
    for layer, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (found[f"{layer}.weight"], found[f"{layer}.bias"]) == (Constant(1.0), Constant(0.0))


def assert_same(found: object, expected: object, module: nn.Module) -> None:
    """The same law; names of fans that a layer without groups has in common may differ."""
    if isinstance(expected, Law) and isinstance(found, Law):
        assert (found.shape.name, found.gain) == (expected.shape.name, pytest.approx(expected.gain))
        fans = fans_of(module.weight.shape, getattr(module, "groups", 1))  # type: ignore[arg-type]
        assert fans[found.fan] == fans[expected.fan]
    else:
        assert found == expected


def test_biases_of_convolutions_have_a_law_of_their_own() -> None:
    """RegNet sets weights alone: the biases of its squeeze-and-excitation are torch's."""
    found = initial_distributions(built("torchvision:regnet_y_400mf"))
    biases = [found[name] for name in found if ".se." in name and name.endswith("bias")]
    assert biases == [DEFAULT] * 32


def stack(*widths: int) -> nn.Sequential:
    """Convolutions and two linear layers of the given widths, as torch initialises them."""
    convolutions = [nn.Conv2d(a, b, 3) for a, b in itertools.pairwise(widths[:-1])]
    return nn.Sequential(*convolutions, nn.Linear(widths[-2], widths[-1]), nn.Linear(widths[-1], 10))


def lecun_truncated(weight: Tensor) -> None:
    scale = 1 / math.sqrt(weight[0].numel()) / TRUNCATED.std
    nn.init.trunc_normal_(weight, 0.0, scale, -2 * scale, 2 * scale)


INITIALISERS: dict[str, tuple[Callable[[Tensor], object], Law]] = {
    "he fan-in": (nn.init.kaiming_normal_, HE_IN),
    "he fan-out": (lambda w: nn.init.kaiming_normal_(w, mode="fan_out"), HE_OUT),
    "he uniform": (nn.init.kaiming_uniform_, Law(UNIFORM, "fan-in", 2.0)),
    "glorot": (nn.init.xavier_normal_, Law(NORMAL, "mean fan", 1.0)),
    "glorot uniform": (nn.init.xavier_uniform_, Law(UNIFORM, "mean fan", 1.0)),
    "lecun": (lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear"), Law(NORMAL, "fan-in", 1.0)),
    "lecun truncated": (lecun_truncated, Law(TRUNCATED, "fan-in", 1.0)),
    "torch's default": (lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)), DEFAULT),
    "0.02": (lambda w: nn.init.normal_(w, 0, 0.02), fixed(0.02)),
    "0.02, truncated": (lambda w: nn.init.trunc_normal_(w, std=0.02), fixed(0.02)),
    "uniform within 0.05": (lambda w: nn.init.uniform_(w, -0.05, 0.05), Law(UNIFORM, "1", 0.05**2 / 3)),
}


@pytest.mark.parametrize("widths", [(3, 16, 32, 32), (3, 8, 12, 20, 24)], ids=str)
@pytest.mark.parametrize("kind", INITIALISERS)
def test_a_law_is_found_in_a_few_small_layers(kind: str, widths: tuple[int, ...]) -> None:
    initialise, law = INITIALISERS[kind]
    for seed in range(5):
        with global_stream(seed, "tests"):
            model = stack(*widths)
            for layer in model:
                initialise(layer.weight)  # type: ignore[arg-type]
        found = initial_distributions(model)
        for name, distribution in found.items():
            expected = DEFAULT if name.endswith("bias") else law
            assert isinstance(distribution, Law)
            assert_same(distribution, expected, model[int(name[0])])
            assert distribution.fan == expected.fan


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_rounding_does_not_hide_the_bound_of_a_uniform_law(dtype: torch.dtype) -> None:
    with global_stream(0, "tests"):
        found = initial_distributions(stack(3, 16, 32, 32).to(dtype))
    assert set(found.values()) == {DEFAULT}


@pytest.mark.parametrize(
    ("initialise", "fan", "gain"),
    [
        (lambda w: nn.init.xavier_uniform_(w, gain=5 / 3), "mean fan", 25 / 9),  # tanh
        (lambda w: nn.init.kaiming_normal_(w, a=0.5, mode="fan_out"), "fan-out", 1.6),  # leaky ReLU
        (lambda w: nn.init.normal_(w, std=0.0137), "1", 0.0137**2),
    ],
    ids=["tanh", "leaky relu", "odd number"],
)
def test_an_odd_gain_is_fitted_where_several_layers_share_it(
    initialise: Callable[[Tensor], object], fan: str, gain: float
) -> None:
    with global_stream(0, "tests"):
        model = stack(3, 32, 48, 64)
        for layer in model:
            initialise(layer.weight)  # type: ignore[arg-type]
    laws = [law for name, law in initial_distributions(model).items() if name.endswith("weight")]
    assert [law.fan for law in laws if isinstance(law, Law)] == [fan] * 4
    assert [law.gain for law in laws if isinstance(law, Law)] == pytest.approx([gain] * 4, rel=0.03)


@pytest.mark.parametrize("count", [1, 2])
def test_layers_of_one_size_follow_the_known_law_within_ten_percent_or_none(count: int) -> None:
    """Alike, they say nothing of what would be at other fans."""

    def law_of(std: float) -> object:
        model = nn.Sequential(*(nn.Linear(300, 200) for _ in range(count)))
        stream = generator(0, "tests")
        for layer in model:
            nn.init.normal_(layer.weight, std=std, generator=stream)  # type: ignore[arg-type]
        return initial_distributions(model)["0.weight"]

    he, std = math.sqrt(2 / 300), float(torch.randn(60_000, generator=generator(0, "tests")).std())
    near = law_of(0.94 * he)
    assert isinstance(near, Law)
    assert near.fan == "fan-in"
    assert near.gain == pytest.approx(2 * 0.94**2 * std**2, rel=1e-2)  # its own standard deviation stays
    assert isinstance(law_of(0.5 * he), Resampled)


def test_all_layers_together_refute_what_one_of_them_suggests() -> None:
    """0.05 is LeCun's standard deviation at a fan-in of 400."""
    wide, narrow = nn.Linear(400, 50), nn.Linear(50, 30)
    for layer in (wide, narrow):
        nn.init.normal_(layer.weight, std=0.05, generator=generator(0, "tests"))
    assert initial_distributions(wide)["weight"] == Law(NORMAL, "fan-in", 1.0)
    both = initial_distributions(nn.Sequential(wide, narrow))
    for name in ("0.weight", "1.weight"):
        assert_same(both[name], fixed(0.05), wide)


def test_one_layer_out_of_line_does_not_mislead_the_others() -> None:
    with global_stream(0, "tests"):
        model = stack(3, 16, 32, 48, 64, 64)
        for layer in model:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")  # type: ignore[arg-type]
        nn.init.normal_(model[3].weight, std=0.001)  # type: ignore[arg-type]
        nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
    found = initial_distributions(model)
    assert [found[f"{i}.weight"] for i in range(6)] == [HE_OUT, ZERO, HE_OUT, fixed(0.001), HE_OUT, HE_OUT]


def test_where_a_kind_cannot_tell_it_follows_what_the_others_do() -> None:
    """The fans of 8 -> 8 -> 10 are too much alike for 144 weights; those of 3 -> 16 -> 8 are not."""
    for seed in range(10):
        with global_stream(seed, "tests"):
            model = stack(3, 16, 8, 8)
            for layer in model:
                nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]
        laws = [law for name, law in initial_distributions(model).items() if name.endswith("weight")]
        assert laws == [HE_IN] * 4


def test_the_noise_of_many_layers_is_no_further_law() -> None:
    with global_stream(0, "tests"):
        model = nn.Sequential(*(nn.Linear(20 + i % 30, 50, bias=False) for i in range(300)))
        for layer in model:
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]
    assert set(initial_distributions(model).values()) == {HE_IN}


def test_a_stray_value_of_an_older_truncated_normal_is_overlooked() -> None:
    layer = nn.Linear(64, 64)
    nn.init.normal_(layer.weight, std=0.02, generator=generator(0, "tests"))
    with torch.no_grad():
        layer.weight[3, 4] = -2.0
    assert initial_distributions(layer)["weight"] == fixed(0.02)


def _signed(weight: Tensor) -> None:
    weight.copy_(weight.sign() * math.sqrt(2 / weight[0].numel()))


def _heavy(weight: Tensor) -> None:
    weight.copy_(0.02 * torch.randn(weight.shape, generator=generator(0, "tests")) ** 3)


def _positive(weight: Tensor) -> None:
    weight.copy_(weight.abs())


@pytest.mark.parametrize("spoil", [_signed, nn.init.dirac_, _heavy, _positive])
def test_what_no_law_explains_is_resampled_from_itself(spoil: Callable[[Tensor], object]) -> None:
    """Some of these have the standard deviation of a known law; their shape tells."""
    model = Small(lambda net, x: net.b(net.a(x)), a=conv(3, 16), b=conv(16, 32))
    with torch.no_grad():
        for layer in (model.a, model.b):
            spoil(layer.weight)  # type: ignore[arg-type,union-attr]
    found = initial_distributions(model)
    assert isinstance(found["b.weight"], Resampled)
    assert found["b.bias"] == DEFAULT
    before = model.b.weight.detach().clone()  # type: ignore[operator,union-attr]
    with pytest.warns(UserWarning, match=r"^a\.weight, b\.weight: initialised by no known law"):
        reinitialise_(model, couple(model, IMAGE), {"a": 32}, generator(0, "tests"))
    after = model.b.weight.detach()  # type: ignore[operator,union-attr]
    assert set(after.flatten().tolist()) <= set(before.flatten().tolist())
    assert after.shape == (32, 32, 3, 3)


# --- new widths ----------------------------------------------------------------------------------------------------


def rebuilt(model: nn.Module, widths: Mapping[str, int], image: Tensor = IMAGE, seed: int = 0) -> nn.Module:
    twin = copy.deepcopy(model)
    reinitialise_(twin, couple(twin, image), widths, generator(seed, "tests"))
    return twin


def assert_alike(found: nn.Module, expected: nn.Module) -> None:
    """The same shapes and constants, and for all else the same distribution: two samples of it."""
    theirs = dict(expected.state_dict())
    assert {name: value.shape for name, value in found.state_dict().items()} == {
        name: value.shape for name, value in theirs.items()
    }
    for name, value in found.state_dict().items():
        a, b = (values.flatten().double() for values in (value, theirs[name]))
        if (b == b[0]).all():
            assert torch.equal(a, b), name
            continue
        n = len(a)  # both standard deviations have the relative error 1 / sqrt(2 n)
        assert ks_2samp(a[:50_000], b[:50_000], method="asymp").pvalue > 1e-6, name
        assert abs(math.log(a.square().mean() / b.square().mean()) / 2) < 5 / math.sqrt(n), name


@pytest.mark.parametrize(
    ("name", "width"), [("resnet20", 0.5), ("wrn-16-2", 0.5), ("vgg11", 0.25), ("resnet18", 0.25), ("mobilenetv2", 1.0)]
)
def test_half_the_widths_are_those_of_the_network_built_at_half_width(name: str, width: float) -> None:
    image = torch.zeros(1, 3, 32, 32)
    wide, narrow = built(name, width=width), built(name, seed=1, width=width / 2)
    widths = couple(narrow, image).widths
    assert_alike(rebuilt(wide, widths, image), narrow)


def _dense_blocks() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(8, (2, 2), 16, num_classes=10)


def _grouped_with_attention() -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    return RegNet(BlockParams.from_init_params(depth=4, w_0=24, w_a=24, w_m=2, group_width=8, se_ratio=0.25), 10)


def _transformer() -> nn.Module:
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    return create_model("timm:vit_tiny_patch16_224", img_size=32, depth=2)


@pytest.mark.parametrize("build", [_dense_blocks, _grouped_with_attention, _transformer])
def test_there_and_back_is_the_distribution_of_the_dense_network(build: Callable[[], nn.Module]) -> None:
    ensure_torchvision()
    with global_stream(0, "tests"):
        dense, image = build().eval(), torch.randn(2, 3, 32, 32)
    model, coupling = copy.deepcopy(dense), couple(dense, image)
    for widths in [{group: -(-width // 2) for group, width in coupling.widths.items()}, coupling.widths]:
        reinitialise_(model, couple(model, image), widths, generator(0, "tests"))
        assert couple(model, image).widths == widths
        assert torch.isfinite(model(image)).all()
    assert_alike(model, dense)


@pytest.mark.parametrize("build", [RESIDUAL, CONCATENATION_AND_SUM, FLATTENED, GATED, GROUPED, TWICE])
def test_every_kind_of_coupling_takes_any_widths(build: Callable[[], nn.Module]) -> None:
    rng = np.random.default_rng(0)
    model = build()
    coupling = couple(model, IMAGE)
    for _ in range(4):
        widths = {group: int(rng.integers(2, 3 * width)) for group, width in coupling.widths.items()}
        twin = rebuilt(model, widths)
        assert couple(twin, IMAGE).widths == widths
        assert torch.isfinite(twin(torch.randn(2, 3, 8, 8))).all()


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def test_shapes_by_hand() -> None:
    model = rebuilt(FLATTENED(), {"conv": 5, "hidden": 3})
    assert shapes(model) == {
        "conv.weight": (5, 3, 3, 3),
        "conv.bias": (5,),
        "hidden.weight": (3, 5 * 64),
        "hidden.bias": (3,),
        "head.weight": (5, 3),
        "head.bias": (5,),
    }
    grouped = rebuilt(GROUPED(), {"stem": 3})
    assert shapes(grouped) == {
        "stem.weight": (6, 3, 3, 3),
        "stem.bias": (6,),
        "grouped.weight": (9, 2, 3, 3),
        "grouped.bias": (9,),
        "head.weight": (5, 9),
        "head.bias": (5,),
    }
    assert grouped.grouped.groups == 3  # type: ignore[union-attr]


def test_a_depthwise_convolution_stays_one() -> None:
    model = Small(
        lambda net, x: net.head(net.norm(net.depthwise(net.stem(x))).mean((2, 3))),
        stem=conv(3, 4),
        depthwise=conv(4, 4, groups=4),
        norm=nn.BatchNorm2d(4),
        head=nn.Linear(4, 5),
    )
    model = rebuilt(model, {"stem": 6})  # type: ignore[assignment]
    depthwise = model.depthwise
    assert isinstance(depthwise, nn.Conv2d)
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (6, 6, 6)
    assert tuple(depthwise.weight.shape) == (6, 1, 3, 3)
    assert model(IMAGE).shape == (1, 5)


def test_what_is_neither_convolution_nor_linear() -> None:
    """An instance norm, a slope for each channel, one for all of them, and a transposed convolution that reads them."""
    model = Small(
        lambda net, x: net.up(net.one(net.slopes(net.norm(net.stem(x))))),
        stem=conv(3, 4),
        norm=nn.InstanceNorm2d(4, affine=True),
        slopes=nn.PReLU(4, init=0.1),
        one=nn.PReLU(),
        up=nn.ConvTranspose2d(4, 5, 2, stride=2),
    )
    model = rebuilt(model, {"stem": 7})  # type: ignore[assignment]
    assert shapes(model) == {
        "stem.weight": (7, 3, 3, 3),
        "stem.bias": (7,),
        "norm.weight": (7,),
        "norm.bias": (7,),
        "slopes.weight": (7,),
        "one.weight": (1,),
        "up.weight": (7, 5, 2, 2),
        "up.bias": (5,),
    }
    assert torch.equal(model.slopes.weight, torch.full((7,), 0.1))  # type: ignore[arg-type,union-attr]
    assert model(IMAGE).shape == (1, 5, 16, 16)


def test_heads() -> None:
    model, image = built("timm:vit_tiny_patch16_224", img_size=32, depth=1), torch.zeros(1, 3, 32, 32)
    wide = rebuilt(model, {"blocks.0.attn.qkv": 5}, image)
    attention = wide.get_submodule("blocks.0.attn")
    assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (5, 64, 320)
    assert shapes(attention)["qkv.weight"] == (3 * 320, 192)
    assert shapes(attention)["proj.weight"] == (192, 320)
    assert wide(image).shape == (1, 10)


def test_what_does_not_change_keeps_its_values() -> None:
    model = RESIDUAL().train()
    with torch.no_grad():
        model.norm.running_mean.fill_(3.0)  # type: ignore[operator,union-attr]
    before = copy.deepcopy(model.state_dict())
    drawn = reinitialise_(model, couple(model, IMAGE), {"inner": 3, "stem": 4}, generator(0, "tests"))
    assert list(drawn) == ["inner.weight", "inner.bias", "back.weight", "back.bias"]
    for name, value in model.state_dict().items():
        layer = name.partition(".")[0]
        assert torch.equal(value, before[name]) == (layer not in ("inner", "back"))
    assert model.training


def test_a_norm_becomes_what_it_is_when_fresh() -> None:
    model = RESIDUAL()
    with torch.no_grad():
        nn.init.zeros_(model.norm.weight)  # type: ignore[arg-type,union-attr]
        model.norm.running_mean.fill_(3.0)  # type: ignore[operator,union-attr]
        model.norm.num_batches_tracked.fill_(7)  # type: ignore[operator,union-attr]
    model = rebuilt(model, {"stem": 3})  # type: ignore[assignment]
    expected = {"weight": 0.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    for name, value in expected.items():
        assert getattr(model.norm, name).tolist() == [value] * 3
    assert model.norm.num_batches_tracked == 0  # type: ignore[union-attr]
    assert model.norm.num_features == 3  # type: ignore[union-attr]


def test_norms_of_random_weights_keep_their_distribution() -> None:
    model = RESIDUAL()
    values = torch.tensor([0.2, 0.4, 0.6, 0.8])
    with torch.no_grad():
        model.norm.weight.copy_(values)  # type: ignore[operator,union-attr]
    with pytest.warns(UserWarning, match=r"^norm\.weight: initialised by no known law"):
        model = rebuilt(model, {"stem": 40})  # type: ignore[assignment]
    assert set(model.norm.weight.tolist()) == set(values.tolist())  # type: ignore[operator,union-attr]


def test_the_generator_decides_and_the_global_one_is_not_touched() -> None:
    model = RESIDUAL()
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, same, other = (rebuilt(model, {"stem": 9, "inner": 2}, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not any(torch.equal(first[f"{layer}.weight"], other[f"{layer}.weight"]) for layer in ("stem", "back"))


def test_precision_and_frozen_parameters_stay() -> None:
    model = RESIDUAL().to(torch.bfloat16)
    model.inner.weight.requires_grad_(False)  # type: ignore[union-attr]
    model = rebuilt(model, {"stem": 6, "inner": 9}, IMAGE.bfloat16())  # type: ignore[assignment]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["inner.weight"]
    bound = 1 / math.sqrt(6 * 9)
    assert 0.9 * bound < float(model.inner.weight.abs().max()) <= bound * (1 + 2**-7)  # type: ignore[operator,union-attr]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_gpu(device: str) -> None:
    model = RESIDUAL()
    coupling = couple(model, IMAGE)
    twin = copy.deepcopy(model).cuda()
    reinitialise_(twin, coupling, {"stem": 9}, generator(0, "tests", device=device))
    assert {tensor.device.type for tensor in twin.state_dict().values()} == {"cuda"}
    if device == "cpu":  # the same numbers as for a model on the CPU
        reinitialise_(model, coupling, {"stem": 9}, generator(0, "tests"))
        assert all(torch.equal(value.cpu(), model.state_dict()[name]) for name, value in twin.state_dict().items())
    assert torch.isfinite(twin(IMAGE.cuda())).all()


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"outer": 3}, "no channel group 'outer': known are stem, inner"),
        ({"inner": 0}, "'inner' cannot have 0 channels: give an integer from 1 up"),
        ({"inner": 2.0}, r"'inner' cannot have 2\.0 channels"),
        ({"inner": True}, "'inner' cannot have True channels"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(widths: dict[str, Any], message: str) -> None:
    model = RESIDUAL()
    before = shapes(model)
    with pytest.raises(AutoSparseError, match=message):
        reinitialise_(model, couple(model, IMAGE), {"stem": 2, **widths}, generator(0, "tests"))
    assert shapes(model) == before


@pytest.mark.parametrize("culprit", ["embedding", "parametrised"])
def test_a_module_that_cannot_be_built_anew_is_named(culprit: str) -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(3, 4), "parametrised": nn.Linear(3, 4)})
    nn.utils.parametrizations.weight_norm(model["parametrised"])
    group = ChannelGroup(culprit, (Member(culprit, "out", np.arange(4)[:, None]),))
    with pytest.raises(AutoSparseError, match=rf"^{culprit} \(.*\) cannot be built anew"):
        reinitialise_(model, Coupling((group,), {}), {culprit: 2}, generator(0, "tests"))
