"""Masks: which weights a pruned network keeps. They live outside the module, which stays a plain ``nn.Module``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autosparse.errors import FileFormatError, MaskMismatchError
from autosparse.files import load_tensors, save_tensors
from autosparse.layers import prunable

_KIND = "masks"


class Masks(Mapping[str, Tensor]):
    """A mapping of parameter name to a bool tensor of the parameter's shape; ``True`` means kept."""

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        """ValueError for a tensor that is not boolean."""
        for name, mask in masks.items():
            if mask.dtype is not torch.bool:
                raise ValueError(f"mask of {name} is {mask.dtype}, not bool")
        self._masks = dict(masks)

    @classmethod
    def dense(cls, model: nn.Module) -> Masks:
        """Masks that keep every prunable weight of ``model``."""
        return cls({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def total(self) -> int:
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def kept(self) -> int:
        return sum(int(mask.count_nonzero()) for mask in self._masks.values())

    @property
    def density(self) -> float:
        return self.kept / self.total

    def layer_densities(self) -> dict[str, float]:
        return {name: int(mask.count_nonzero()) / mask.numel() for name, mask in self._masks.items()}

    def to(self, device: torch.device | str) -> Masks:
        return Masks({name: mask.to(device) for name, mask in self._masks.items()})

    def check(self, model: nn.Module) -> None:
        """MaskMismatchError naming the first layer that does not fit, with both shapes."""
        weights = prunable(model)
        for name, mask in self._masks.items():
            if name not in weights:
                raise MaskMismatchError(
                    f"masks do not fit {type(model).__name__}: it has no prunable weight '{name}' "
                    f"(mask {list(mask.shape)}); give the model that the masks were made for"
                )
            if mask.shape != weights[name].shape:
                raise MaskMismatchError(
                    f"masks do not fit {type(model).__name__}: '{name}' has shape {list(weights[name].shape)}, "
                    f"its mask {list(mask.shape)}; give the model that the masks were made for"
                )
        missing = [name for name in weights if name not in self._masks]
        if missing:
            raise MaskMismatchError(
                f"masks do not fit {type(model).__name__}: no mask for '{missing[0]}' of shape "
                f"{list(weights[missing[0]].shape)}; give the model that the masks were made for"
            )

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set the removed weights of ``model`` to zero, in place."""
        self.check(model)
        for name, weight in prunable(model).items():
            # masked_fill_ and not a product: NaN or -x times zero would not be +0.
            weight.masked_fill_(~self._masks[name].to(weight.device), 0.0)

    def hold(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.utils.hooks.RemovableHandle:
        """Keep removed weights at exactly zero after every step of ``optimizer``, momentum and weight decay included.

        The masks are applied at once. The returned handle's ``remove()`` ends the hold.
        """
        self.apply(model)
        weights = prunable(model)
        removed = [(weight, ~self._masks[name].to(weight.device)) for name, weight in weights.items()]

        @torch.no_grad()
        def clear(*_: object) -> None:
            for weight, gone in removed:
                weight.masked_fill_(gone, 0.0)

        return optimizer.register_step_post_hook(clear)

    def save(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write the masks as safetensors with JSON metadata, atomically."""
        save_tensors(path, _KIND, self._masks, metadata)

    @classmethod
    def load(cls, path: Path) -> Masks:
        """Masks written by :meth:`save`; FileFormatError for anything else."""
        tensors, _ = load_tensors(path, _KIND)
        for name, tensor in tensors.items():
            if tensor.dtype is not torch.bool:
                raise FileFormatError(f"{path}: '{name}' is {tensor.dtype}, not a mask: restore or remake the file")
        return cls(tensors)
