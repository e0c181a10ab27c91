"""What work costs: images that gradients are recorded for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from autosparse.cost import Cost, counted_images


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_images_count_once_a_pass_through_any_copy_with_gradients() -> None:
    network = Inner()
    with counted_images() as images:
        network(torch.zeros(5, 3))
        copy.deepcopy(network)(torch.zeros(7, 3))
        functional_call(network, dict(network.named_parameters()), (torch.zeros(11, 3),))
        with torch.no_grad():
            network(torch.zeros(1000, 3))
    assert images.count == 5 + 7 + 11
    network(torch.zeros(13, 3))  # the block has ended
    assert images.count == 23


def test_whoever_shows_progress_is_told_of_every_call() -> None:
    told: list[int] = []
    with counted_images(told.append) as outer, counted_images() as inner:
        Inner()(torch.zeros(5, 3))
        Inner()(torch.zeros(7, 3))
    assert told == [5, 7]
    assert outer.count == inner.count == 12


def test_a_network_that_fails_does_not_derail_the_count() -> None:
    network = Inner()
    with counted_images() as images:
        with pytest.raises(RuntimeError):
            network(torch.zeros(5, 4))
        network(torch.zeros(2, 3))
    assert images.count == 5 + 2


def test_costs_of_work_one_after_the_other() -> None:
    both = Cost(1.0, 10, 3).after(Cost(2.0, None, 4))
    assert both == Cost(3.0, 10, 7)
    assert Cost(1.0, None, 3).after(Cost(2.0, None, None)).images is None
