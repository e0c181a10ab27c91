"""Small ingredients that many tests share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import TINY
from torch import Tensor, nn

from autosparse.cli import main
from autosparse.data import ImageData, load_data
from autosparse.seeding import global_stream

Batch = tuple[Tensor, Tensor]

# Sums depend on how they are split over threads: one thread makes bit-equality a property of the code alone.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data() -> ImageData:
    """Digits at their own 8x8 pixels."""
    return load_data("digits", image_size=8)


@pytest.fixture(scope="session")
def two_batches(tiny_data: ImageData) -> list[Batch]:
    """The first 48 training images in batches of 32 and 16."""
    return list(tiny_data.train.batches(32, limit=48))


class ConvNet(nn.Module):
    """Two convolutions (the second depthwise), batch norm, dropout and a classifier: 216 + 72 + 80 weights."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.depthwise(x)).mean(dim=(2, 3))
        return self.classifier(self.dropout(x))


@pytest.fixture
def conv_net() -> Callable[[int], nn.Module]:
    """Builds the small convolutional network from a seed."""

    def build(seed: int = 0) -> nn.Module:
        with global_stream(seed, "tests"):
            return ConvNet()

    return build


@pytest.fixture
def chain() -> Callable[..., nn.Sequential]:
    """Builds ReLU-separated linear layers of the given widths, without biases unless asked for."""

    def build(*widths: int, bias: bool = False) -> nn.Sequential:
        with global_stream(0, "tests"):
            modules: list[nn.Module] = []
            for inputs, outputs in itertools.pairwise(widths):
                modules += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
            return nn.Sequential(*modules[:-1])

    return build


@pytest.fixture(scope="session")
def irp_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of ``autosparse generate``."""
    path = tmp_path_factory.mktemp("irp") / "tiny.h5"
    assert main(["generate", "--out", str(path), *TINY, "--rounds", "3", "--score-images", "128"]) == 0
    return path


@pytest.fixture(scope="session")
def scorer_file(irp_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer that ``autosparse train-scorer`` fitted to :func:`irp_file`; its card lies beside it."""
    path = tmp_path_factory.mktemp("scorer") / "tiny.safetensors"
    assert main(["train-scorer", str(irp_file), "--out", str(path), "--epochs", "2"]) == 0
    return path


@pytest.fixture(scope="session")
def pruned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ``autosparse prune``: a tenth of a narrow ResNet-20, by magnitude."""
    path = tmp_path_factory.mktemp("pruned") / "pruned"
    assert main(["prune", "--out", str(path), *TINY, "--sparsity", "0.9", "--method", "magnitude"]) == 0
    return path
