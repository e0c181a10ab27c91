"""Does a network take the images that it is to be trained on?"""

from __future__ import annotations

import copy

import torch
from torch import nn

from autosparse.errors import AutoSparseError, first_line


def require_takes(model: nn.Module, name: str, channels: int, image_size: int) -> None:
    """See one image through a copy of ``model``, on the CPU: many networks have one size that they were made for.

    Args:
        name: what to call the network.

    Raises:
        AutoSparseError: it fails.
    """
    shape = (channels, image_size, image_size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(model).eval()(torch.zeros(1, *shape))
    except Exception as error:  # whatever the network raises
        reason = first_line(error)
        raise AutoSparseError(
            f"{name} fails on an image of {' x '.join(map(str, shape))} ({reason.rstrip('.')}): give another "
            "--image-size (image_size= of load_data)"
        ) from error
