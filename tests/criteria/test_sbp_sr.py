"""SBP-SR: the edge of chaos by hand, residual branches where they are found, and the score of an explicit network."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.criteria import score
from autosparse.errors import AutoSparseError
from autosparse.layers import layers_of, prunable
from autosparse.masks import Masks
from autosparse.models import create_model
from autosparse.rescaling import StableResiduals, edge_of_chaos, edge_of_chaos_factors

F64 = torch.float64


class Residual(nn.Module):
    """A stem and two blocks, the second with a projection, and a head; branches are multiplied by ``scale``."""

    def __init__(self, scale: float = 1.0, in_place: bool = False) -> None:
        super().__init__()
        self.scale, self.in_place = scale, in_place
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(5, 3)
        self.first, self.second = (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, out)) for out in (4, 5))
        self.projection = nn.Linear(4, 5)
        self.double()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.scale * self.first(x)
        out = self.scale * self.second(x)
        if self.in_place:
            out += self.projection(x)
        else:
            out = torch.add(self.projection(x), out)
        return self.head(F.relu(out))


def points() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, generator=generator, dtype=F64), torch.randint(0, 3, (6,), generator=generator)


def test_the_factor_of_a_layer_by_hand() -> None:
    # Fan-in 4; the two weights left have squares 1 and 7, a mean of 8 / 8 = 1 over all eight: sqrt(2 / (4 · 1)).
    model = nn.Linear(4, 2, bias=False).double()
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = True
    with torch.no_grad():
        model.weight.fill_(5)
        model.weight[0, 1], model.weight[1, 3] = 1, -math.sqrt(7)
    assert edge_of_chaos_factors(model, {"weight": mask})["weight"].item() == pytest.approx(math.sqrt(0.5), rel=1e-15)
    assert edge_of_chaos_factors(model, {"weight": mask}, variance=16)["weight"].item() == pytest.approx(2, rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rescaling_puts_every_layer_on_the_edge_and_moves_nothing_else(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 5)]
    model = nn.Sequential(*layers).to(dtype)
    masks = {name: torch.rand(w.shape, generator=generator) < 0.3 for name, w in prunable(model).items()}
    masks["4.weight"].fill_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    edge_of_chaos(model, masks)
    for layer in layers_of(model)[:2]:
        weight = prunable(model)[layer.name]
        assert not weight[~masks[layer.name]].any()
        assert (layer.fan_in * weight.square().mean()).item() == pytest.approx(2, rel=1e-6)
        ratio = weight[masks[layer.name]] / before[layer.name][masks[layer.name]]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
        assert ratio[0] > 0
    # A layer without any weight left is zero, and stays that.
    assert not prunable(model)["4.weight"].any()
    others = [name for name in before if name not in masks]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in others)


def test_rescaling_twice_is_rescaling_once() -> None:
    model = nn.Linear(6, 5).double()
    masks = Masks({"weight": torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.5})
    edge_of_chaos(model, masks)
    once = model.weight.detach().clone()
    edge_of_chaos(model, masks)
    torch.testing.assert_close(model.weight.detach(), once, rtol=1e-15, atol=0)


def test_a_variance_that_is_not_positive_is_refused() -> None:
    with pytest.raises(AutoSparseError, match="variance of the edge of chaos is 0: give a positive number"):
        edge_of_chaos(nn.Linear(2, 2), {"weight": torch.ones(2, 2, dtype=torch.bool)}, variance=0)


@pytest.mark.parametrize("in_place", [False, True])
def test_branches_are_scaled_and_shortcuts_are_not(in_place: bool) -> None:
    x = points()[0]
    with StableResiduals(0.25) as residuals:
        found = Residual(in_place=in_place)(x)
    assert residuals.found == 2
    torch.testing.assert_close(found, Residual(scale=0.25)(x), rtol=1e-14, atol=0)
    torch.testing.assert_close(Residual(in_place=in_place)(x), Residual()(x), rtol=1e-14, atol=0)


def test_an_addition_in_place_changes_the_tensor_that_it_was_asked_to_change() -> None:
    layer = nn.Linear(3, 3).double()
    x = points()[0]
    with torch.no_grad(), StableResiduals(0.5):
        shortcut = layer(x)
        branch = layer(shortcut)
        branch.add_(shortcut)
    torch.testing.assert_close(branch, 0.5 * layer(shortcut) + shortcut)


def test_what_is_no_residual_sum_is_left_alone() -> None:
    layer, x = nn.Linear(3, 3).double(), points()[0]
    with StableResiduals(0.5) as residuals:
        hidden = layer(x)
        deeper = layer(hidden)
        as_deep = hidden + layer(x)
        embedded = deeper + torch.ones(6, 3, dtype=F64)
        broadcast = deeper + hidden[:1]
        losses = deeper.mean() + 0.4 * hidden.mean()
    assert residuals.found == 0
    torch.testing.assert_close(as_deep, 2 * hidden)
    torch.testing.assert_close(embedded, deeper + 1)
    torch.testing.assert_close(broadcast, deeper + hidden[:1])
    torch.testing.assert_close(losses, deeper.mean() + 0.4 * hidden.mean())


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("resnet20", 9), ("wrn-16-2", 6), ("mobilenetv2", 10), ("vgg11", 0), ("torchvision:resnet18", 8)],
)
def test_the_blocks_of_real_networks_are_found(name: str, blocks: int) -> None:
    model = create_model(name).eval()
    with torch.no_grad(), StableResiduals(1.0) as residuals:
        model(torch.ones(1, 3, 32, 32))
    assert residuals.found == blocks


def edged(model: nn.Module) -> nn.Module:
    edge_of_chaos(model, Masks.dense(model))
    return model


@pytest.mark.parametrize("in_place", [False, True])
def test_the_score_is_snips_on_the_stable_network_at_the_edge_of_chaos(in_place: bool) -> None:
    batches = [points()]
    expected = score("snip", edged(Residual(scale=2**-0.5)), batches=batches, loss_fn=F.cross_entropy)
    found = score("sbp-sr", Residual(in_place=in_place), batches=batches, loss_fn=F.cross_entropy)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-15)
    plain = score("snip", edged(Residual()), batches=batches, loss_fn=F.cross_entropy)
    options = {"stable_residuals": False}
    found = score("sbp-sr", Residual(), batches=batches, loss_fn=F.cross_entropy, options=options)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-15)
    assert not torch.allclose(plain["stem.weight"], expected["stem.weight"], rtol=0.01)


def test_the_score_does_not_depend_on_the_scale_of_any_layer() -> None:
    batches, scaled = [points()], Residual()
    before = score("sbp-sr", scaled, batches=batches, loss_fn=F.cross_entropy)
    with torch.no_grad():
        for index, weight in enumerate(prunable(scaled).values()):
            weight.mul_(3.0 + index)
    after = score("sbp-sr", scaled, batches=batches, loss_fn=F.cross_entropy)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-12, atol=1e-15)
