"""How wide a module is: the attributes that say so, and the tensor shapes that follow from them.

Modules without a row here never change their width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_CONV = nn.modules.conv._ConvNd
_NORM = nn.modules.batchnorm._NormBase

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """What is known of one kind of module.

    Args:
        attributes: their values are whole numbers, or tuples of them.
        shapes: from a module to the shapes that its tensors must have, by name; ValueError for attributes that
            exclude each other.
    """

    attributes: tuple[str, ...]
    shapes: Callable[[Any], dict[str, Shape]]


def _conv_shapes(conv: Any) -> dict[str, Shape]:
    if conv.in_channels % conv.groups or conv.out_channels % conv.groups:
        raise ValueError(
            f"{conv.groups} groups do not divide {conv.in_channels} inputs and {conv.out_channels} outputs"
        )
    first, second = (conv.in_channels, conv.out_channels) if conv.transposed else (conv.out_channels, conv.in_channels)
    return {"weight": (first, second // conv.groups, *conv.kernel_size), "bias": (conv.out_channels,)}


def _linear_shapes(linear: Any) -> dict[str, Shape]:
    return {"weight": (linear.out_features, linear.in_features), "bias": (linear.out_features,)}


def _norm_shapes(norm: Any) -> dict[str, Shape]:
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (norm.num_features,))


def _group_norm_shapes(norm: Any) -> dict[str, Shape]:
    if norm.num_channels % norm.num_groups:
        raise ValueError(f"{norm.num_groups} groups do not divide {norm.num_channels} channels")
    return dict.fromkeys(("weight", "bias"), (norm.num_channels,))


def _layer_norm_shapes(norm: Any) -> dict[str, Shape]:
    return dict.fromkeys(("weight", "bias"), tuple(norm.normalized_shape))


def _prelu_shapes(prelu: Any) -> dict[str, Shape]:
    return {"weight": (prelu.num_parameters,)}


def _attention_shapes(attention: Any) -> dict[str, Shape]:
    """No tensors of its own, but heads that have to share out what the projections compute."""
    heads, inner = attention.num_heads, attention.proj.in_features
    if inner % heads or getattr(attention, "head_dim", inner // heads) != inner // heads:
        raise ValueError(f"{heads} heads do not share {inner} channels")
    if getattr(attention, "attn_dim", inner) != inner:
        raise ValueError(f"attn_dim is {attention.attn_dim}, its projection reads {inner}")
    return {}


_KINDS: tuple[tuple[type[nn.Module], Sizes], ...] = (
    (_CONV, Sizes(("in_channels", "out_channels", "groups"), _conv_shapes)),
    (nn.Linear, Sizes(("in_features", "out_features"), _linear_shapes)),
    (_NORM, Sizes(("num_features",), _norm_shapes)),
    (nn.GroupNorm, Sizes(("num_groups", "num_channels"), _group_norm_shapes)),
    (nn.LayerNorm, Sizes(("normalized_shape",), _layer_norm_shapes)),
    (nn.PReLU, Sizes(("num_parameters",), _prelu_shapes)),
)
_ATTENTION = Sizes(("num_heads", "attn_dim"), _attention_shapes)


def sizes_of(module: nn.Module) -> Sizes | None:
    """What says how wide ``module`` is; ``None`` where nothing does.

    Attention is recognised by its parts, as timm's have them: ``num_heads``, ``qkv`` and ``proj``.
    """
    for kind, sizes in _KINDS:
        if isinstance(module, kind):
            return sizes
    heads = getattr(module, "num_heads", None)
    projections = (getattr(module, "qkv", None), getattr(module, "proj", None))
    if isinstance(heads, int) and all(isinstance(part, nn.Linear) for part in projections):
        return _ATTENTION
    return None


def attributes_of(module: nn.Module) -> dict[str, int | Shape]:
    """The values of the attributes that say how wide ``module`` is."""
    sizes = sizes_of(module)
    return {} if sizes is None else {name: getattr(module, name) for name in sizes.attributes if hasattr(module, name)}


def tensors_of(module: nn.Module) -> Mapping[str, Tensor]:
    """The module's own parameters and buffers, those of its submodules left out."""
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def check_sizes(module: nn.Module) -> None:
    """ValueError unless the attributes of ``module`` and the shapes of its tensors agree."""
    sizes = sizes_of(module)
    if sizes is None:
        return
    expected = sizes.shapes(module)
    for name, tensor in tensors_of(module).items():
        if name in expected and tuple(tensor.shape) != expected[name]:
            raise ValueError(f"{name} is {list(tensor.shape)}, its attributes say {list(expected[name])}")
