"""Which parameters are prunable, in one fixed order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import nn

from autosparse.errors import AutoSparseError

_KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Conv1d, "conv1d"),
    (nn.Conv2d, "conv2d"),
    (nn.Conv3d, "conv3d"),
    (nn.Linear, "linear"),
)


@dataclass(frozen=True)
class Layer:
    """One prunable weight tensor of shape ``[out, in / groups, *kernel]``.

    ``depth`` is its index among the prunable layers and ``offset`` the position of its first weight when all layers
    are laid out one after the other, both in the order in which the modules are registered.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    groups: int
    depth: int
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def taps(self) -> int:
        """Weights of one kernel: 9 for a 3x3 convolution, 1 for a linear layer."""
        return math.prod(self.shape[2:])

    @property
    def fan_in(self) -> int:
        """Weights that one output sums over."""
        return self.shape[1] * self.taps

    @property
    def fan_out(self) -> int:
        """Weights that one input reaches."""
        return self.shape[0] * self.taps // self.groups


def _modules(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for cls, kind in _KINDS:
            # A weight shared by two modules is one parameter: it is listed where it appears first.
            if isinstance(module, cls) and id(module.weight) not in seen:
                seen.add(id(module.weight))
                yield f"{prefix}.weight" if prefix else "weight", kind, module


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of every convolution and linear layer (stem, shortcuts and classifier included), by parameter name.

    Biases, norms and embeddings are never pruned. Transposed convolutions, whose axes are swapped, stay dense.

    Raises:
        AutoSparseError: the model has no such weight.
    """
    found = {name: module.weight for name, _, module in _modules(model)}
    if not found:
        raise AutoSparseError(
            f"{type(model).__name__} has no prunable weights: AutoSparse prunes Conv1d/2d/3d and Linear layers"
        )
    return found  # type: ignore[return-value]  # nn.Module types its attributes as Tensor | Module


def layers_of(model: nn.Module) -> list[Layer]:
    """Descriptions of the :func:`prunable` weights, in the same order."""
    weights = prunable(model)
    groups = {name: int(getattr(module, "groups", 1)) for name, _, module in _modules(model)}
    kinds = {name: kind for name, kind, _ in _modules(model)}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    offsets = accumulate((math.prod(shape) for shape in shapes.values()), initial=0)
    return [
        Layer(name, kinds[name], shapes[name], groups[name], depth, offset)
        for depth, (name, offset) in enumerate(zip(shapes, offsets, strict=False))
    ]


def total_weights(layers: Sequence[Layer]) -> int:
    return sum(layer.size for layer in layers)
