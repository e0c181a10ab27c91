"""What is measured of a network: inference on a batch of images, and a step of training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse.channels.costs import count_flops
from autosparse.errors import AutoSparseError, first_line
from autosparse.outputs import tensors_in
from autosparse.seeding import generator


class Workload:
    """A copy of a network on a device, and random images for it.

    What its methods return raises AutoSparseError for a batch that does not fit into memory, and for images that the
    network does not take.

    Args:
        model: left as it was.
        image_shape: ``[C, H, W]``.
    """

    def __init__(self, model: nn.Module, image_shape: Sequence[int], device: torch.device) -> None:
        self._network = copy.deepcopy(model).to(device).eval()
        self._image_shape, self._device = tuple(image_shape), device
        self._dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    @property
    def weights(self) -> int:
        """Bytes of parameters and buffers."""
        return sum(tensor.nbytes for tensor in (*self._network.parameters(), *self._network.buffers()))

    def flops(self) -> int:
        """Of one image; a multiplication and an addition are two."""
        with self._explained(1):
            return count_flops(self._network, self._images(1))[""]

    def inference(self, batch: int) -> Callable[[], None]:
        """The network in eval mode on ``batch`` images."""
        network, images = self._network, self._images(batch)

        def run() -> None:
            with self._explained(batch), torch.inference_mode():
                network(images)

        return run

    def training(self, batch: int) -> Callable[[], None]:
        """A step of SGD with momentum on the cross-entropy of ``batch`` images, of a copy of its own.

        The learning rate is 0, which takes as long as any other: steps on noise would end at infinite weights.
        """
        network, images = copy.deepcopy(self._network).train(), self._images(batch)
        labels = torch.zeros(batch, dtype=torch.long, device=self._device)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)

        def step() -> None:
            with self._explained(batch):
                optimizer.zero_grad()
                logits = next(tensors_in(network(images))).flatten(1)
                F.cross_entropy(logits, labels).backward()
                optimizer.step()

        return step

    def _images(self, batch: int) -> Tensor:
        with self._explained(batch):
            noise = torch.randn(batch, *self._image_shape, generator=generator(0, "workload"))
            return noise.to(device=self._device, dtype=self._dtype)

    @contextmanager
    def _explained(self, batch: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the network raises
            if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
                raise AutoSparseError(too_large(batch)) from error
            reason = first_line(error)
            raise AutoSparseError(
                f"{type(self._network).__name__} fails on {batch} images of {list(self._image_shape)} ({reason}): give "
                "an image size and batch sizes that it can be used and trained with"
            ) from error


def too_large(batch: int) -> str:
    return f"{batch} images do not fit into memory: give smaller batch sizes"
