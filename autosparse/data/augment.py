"""Random crop and mirror of whole uint8 batches on their device, and the normalisation to float."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """What was drawn for a batch of n images, on the CPU so that every device sees the same.

    Attributes:
        top, left: int64 (n,), the crop's corner in the padded image; ``padding`` is the unshifted image.
        mirror: bool (n,).
    """

    top: Tensor
    left: Tensor
    mirror: Tensor

    @staticmethod
    def sample(count: int, padding: int, flips: bool, rng: torch.Generator) -> Draws:
        """Corners uniform on 0 .. 2 * padding; mirrored with probability 1/2 if ``flips``, else never."""
        top, left = torch.randint(0, 2 * padding + 1, (2, count), generator=rng)
        mirror = torch.rand(count, generator=rng) < 0.5
        return Draws(top, left, mirror if flips else torch.zeros_like(mirror))

    def __getitem__(self, part: slice) -> Draws:
        return Draws(self.top[part], self.left[part], self.mirror[part])


def crop_and_mirror(images: Tensor, draws: Draws, padding: int, fill: Tensor) -> Tensor:
    """Pad by ``padding`` pixels of colour ``fill``, cut each image's drawn window, mirror the drawn images.

    Args:
        images: uint8 (n, H, W, C), contiguous.
        fill: uint8 (C,).

    Every window is one row of an overlapping view of the padded batch, so a single ``index_select`` cuts them all,
    a line of pixels at a time. On two CPU cores this was 8 times faster than gathering pixel by pixel.
    """
    n, height, width, channels = images.shape
    if n == 0:
        return images
    lines, pitch = height + 2 * padding, (width + 2 * padding) * channels
    padded = fill.expand(n, lines, pitch // channels, channels).contiguous()
    padded[:, padding:-padding, padding:-padding] = images
    last = n * lines * pitch - (height - 1) * pitch - width * channels  # where the last window starts
    windows = padded.as_strided((last // channels + 1, height, width * channels), (channels, pitch, 1))
    corner = (torch.arange(n) * lines + draws.top) * (pitch // channels) + draws.left
    out = windows.index_select(0, corner.to(images.device, non_blocking=True)).view(images.shape)
    # Found on the CPU: on a GPU the number of mirrored images would have to be waited for.
    mirrored = draws.mirror.nonzero().squeeze(1).to(images.device, non_blocking=True)
    out[mirrored] = out[mirrored].flip(2)
    return out


class Normaliser:
    """uint8 (n, H, W, C) to float32 (n, C, H, W) in channels_last order, with the given mean and deviation removed."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], image_size: int, device: torch.device) -> None:
        centre, spread = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        # Repeated to a whole image: broadcasting over a last axis of three would keep the CPU from vectorising.
        pixels = image_size * image_size
        self._scale = (1 / (255 * spread)).repeat(pixels).float().to(device)
        self._shift = (-centre / spread).repeat(pixels).float().to(device)
        #: uint8 (C,): the colour nearest to the mean, normalised to (almost) zero.
        self.fill = (centre * 255).round().byte().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        flat = images.flatten(1).float().mul_(self._scale).add_(self._shift)
        return flat.view(images.shape).permute(0, 3, 1, 2)
