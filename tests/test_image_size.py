"""A network made for images of one size is refused others, in one line, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import call, error_of

from autosparse.errors import AutoSparseError
from autosparse.models import create_model
from autosparse.models.images import require_takes

ONE_SIZE = """
from torch import nn

def sixteen(num_classes, in_channels):
    wide = nn.Linear(in_channels * 16 * 16, 8)
    return nn.Sequential(nn.Flatten(), wide, nn.BatchNorm1d(8), nn.Linear(8, num_classes))
"""


@pytest.mark.parametrize(
    "command",
    [
        ("prune", "--method", "snip"),
        ("train", "--dense", "--epochs", 1),
        ("shrink", "--flops", 0.5),
        ("generate", "--rounds", 2),
    ],
    ids=lambda command: command[0],
)
def test_a_command_says_that_the_network_wants_other_images(
    command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one_size.py").write_text(ONE_SIZE)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / ("out.h5" if command[0] == "generate" else "out")
    settings = ("--model", "one_size:sixteen", "--image-size", 8, "--device", "cpu", "--out", out)
    line = error_of(call(capsys, *command, *settings))
    assert "one_size:sixteen fails on an image of 3 x 8 x 8 (mat1 and mat2 shapes cannot be multiplied" in line
    assert line.endswith("give another --image-size (image_size= of load_data)")
    assert not out.exists()


def test_a_network_that_takes_the_images_stays_as_it_is() -> None:
    model = create_model("resnet20", width=0.25)
    model.get_submodule("blocks.0").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    require_takes(model, "resnet20", 3, 8)
    assert model.training
    assert not model.get_submodule("blocks.0").training
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(AutoSparseError, match="resnet20 fails on an image of 1 x 8 x 8"):
        require_takes(model, "resnet20", 1, 8)
