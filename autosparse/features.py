"""What is known about a weight at initialisation.

One function serves both the fitting of a scorer and the pruning with it, so the two cannot drift apart. A feature
belongs to a *level*: it varies from weight to weight, from output channel to output channel, from input channel to
input channel, or only from layer to layer. A scorer can exploit that (a layer-level feature is one number for millions
of weights); :meth:`LayerFeatures.matrix` spells everything out, one row a weight.

Feature sets:

``paper``
    The initial weight and its gradient, two raw signed scalars, as published (arXiv 2408.14757).
``scale-free``
    Ratios that mean the same in every architecture, with the layer's context. With σ the standard deviation of a
    layer's weights and ρ the root mean square of its gradients, z = w/σ and h = g/ρ.
``state``
    What can be seen at any moment, of a network in training as well as at initialisation, dense or sparse: logarithms
    of ratios to what is left of the whole network. With σ and ρ the root mean squares of the weights and gradients that
    are left anywhere, z = w/σ and h = g/ρ; gradients may be root mean squares over batches, as signs play no role.
``flow``
    ``state``, and how much of what flows from input to output passes by the layer (a shortcut leads around it), in
    [0, 1] (:func:`autosparse.connectivity.passing_by`): a layer that all must pass may not become too thin. The outputs
    of the last layer are the network's own: their shares count as one, for classes do not compete as channels do.
    A layer's gradients count as at most :data:`GRADIENT_REACH` times larger or smaller than the network's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.indexing import divided
from autosparse.layers import Layer, total_weights

#: |z| and |h| below this count as this in their logarithms: rarer than one weight in ten thousand.
LOG_FLOOR = 1e-4

#: How many times the network's gradient scale a layer's counts as in ``flow``, at most, and one over it at least. No
#: layer of the trials behind the shipped scorers was further off than 25; behind ConvNeXt's layer scales it is 10^6,
#: and a scorer told so empties every block.
GRADIENT_REACH = 30.0


@dataclass(frozen=True)
class FeatureSet:
    """Names of the features by level; a row of the matrix lists them in this order."""

    weight: tuple[str, ...]
    out_channel: tuple[str, ...] = ()
    in_channel: tuple[str, ...] = ()
    layer: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.weight + self.out_channel + self.in_channel + self.layer


_CONTEXT = (
    "log fan-in",
    "log fan-out",
    "relative depth",
    "kernel size",
    "log share of weights",
    "log gradient scale / network's",
)

_STATE = FeatureSet(
    weight=("log|z|", "log|h|"),
    out_channel=("log out share",),
    in_channel=("log in share",),
    layer=(*_CONTEXT, "log weight scale / network's", "log density / network's"),
)

FEATURE_SETS: dict[str, FeatureSet] = {
    "paper": FeatureSet(weight=("w", "g")),
    "scale-free": FeatureSet(
        weight=("z", "h", "log|z|", "log|h|", "z*h"),
        out_channel=("out mean|z|", "out mean|h|"),
        in_channel=("in mean|z|", "in mean|h|"),
        layer=_CONTEXT,
    ),
    "state": _STATE,
    "flow": replace(_STATE, layer=(*_STATE.layer, "bypass", "bypass * log density")),
}

#: Feature sets of networks in training and half pruned as well as of initial ones.
AT_ANY_MOMENT = frozenset({"state", "flow"})

#: Feature sets that look at a network's shortcuts.
SEE_SHORTCUTS = frozenset({"flow"})


def feature_set(name: str) -> FeatureSet:
    """The feature set called ``name``; UnknownNameError with the nearest names."""
    if name not in FEATURE_SETS:
        raise UnknownNameError("feature set", name, FEATURE_SETS)
    return FEATURE_SETS[name]


@dataclass(frozen=True)
class LayerFeatures:
    """The features of one layer, by level. ``out_channel`` is ``[O, .]``, ``in_channel`` ``[I, .]``, ``layer`` ``[.]``.

    What varies inside the layer is spelt out on demand for a range of output channels, so that memory stays small.
    """

    spec: FeatureSet
    shape: tuple[int, ...]
    weight: Tensor  # [O, I, taps], multiplied by weight_scale gives z (or w)
    gradient: Tensor
    weight_scale: float
    gradient_scale: float
    out_channel: Tensor
    in_channel: Tensor
    layer: Tensor

    def columns(self, start: int, stop: int) -> Tensor:
        """All but the layer-level features of output channels ``start:stop``, ``[features, stop - start, I, taps]``.

        Feature by feature, so that each is computed in place over contiguous memory.
        """
        spec = self.spec
        widths = [len(level) for level in (spec.weight, spec.out_channel, spec.in_channel)]
        columns = self.weight.new_empty(sum(widths), stop - start, *self.weight.shape[1:])
        by_weight, by_out, by_in = columns.split(widths)
        for name, column in zip(spec.weight, by_weight, strict=True):
            _SPELLED[name](
                self.weight[start:stop], self.weight_scale, self.gradient[start:stop], self.gradient_scale, column
            )
        by_out.copy_(self.out_channel[start:stop].T[:, :, None, None])
        by_in.copy_(self.in_channel.T[:, None, :, None])
        return columns

    def matrix(self, start: int = 0, stop: int | None = None) -> Tensor:
        """All features of the weights of output channels ``start:stop``, one row a weight in storage order."""
        columns = self.columns(start, self.shape[0] if stop is None else stop).flatten(1)
        return torch.cat([columns.T, self.layer.expand(columns.shape[1], -1)], dim=1)


def _ratio(values: Tensor, scale: float, out: Tensor) -> None:
    torch.mul(values, scale, out=out)


def _log_ratio(values: Tensor, scale: float, out: Tensor) -> None:
    torch.mul(values, scale, out=out).abs_().clamp_(min=LOG_FLOOR).log_()


#: How a weight-level feature is computed from weights w and gradients g with their scales, in place.
_SPELLED: Mapping[str, Callable[[Tensor, float, Tensor, float, Tensor], object]] = {
    "w": lambda w, to_z, g, to_h, out: _ratio(w, to_z, out),
    "z": lambda w, to_z, g, to_h, out: _ratio(w, to_z, out),
    "g": lambda w, to_z, g, to_h, out: _ratio(g, to_h, out),
    "h": lambda w, to_z, g, to_h, out: _ratio(g, to_h, out),
    "log|z|": lambda w, to_z, g, to_h, out: _log_ratio(w, to_z, out),
    "log|h|": lambda w, to_z, g, to_h, out: _log_ratio(g, to_h, out),
    "z*h": lambda w, to_z, g, to_h, out: torch.mul(w, to_z, out=out).mul_(g).mul_(to_h),
}


def _inverse(scale: Tensor | float) -> float:
    """1 / scale, and 1 for a layer without any spread (all its ratios are then zero anyway)."""
    value = float(scale)
    return 1 / value if value > 0 and math.isfinite(value) else 1.0


def _channel_means(values: Tensor, scale: float, dim: tuple[int, int]) -> Tensor:
    return values.abs().mean(dim=dim) * scale


class NetworkFeatures:
    """Features of every prunable layer of one network, from its weights and gradients.

    Args:
        name: a key of :data:`FEATURE_SETS`.
        layers: the layers, in order.
        weights, gradients: one tensor a layer, of the layer's shape, on one device. Gradients are means over images of
            the mean cross-entropy, so that their scale does not depend on how many images were used.
        masks: what is left, for ``state`` and ``flow``: bool tensors a layer; by default everything. Removed weights
            are zero.
        bypass: layer -> the share of the flow that passes by it, for ``flow``.

    Raises:
        AutoSparseError: ``flow`` without ``bypass``.
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[Layer],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        bypass: Mapping[str, float] | None = None,
    ) -> None:
        self.name = name
        self._bypass = _checked(name, bypass)
        self.spec = feature_set(name)
        self.layers = list(layers)
        self._weights = weights
        self._gradients = gradients
        self._masks = masks = masks if name in AT_ANY_MOMENT else None
        self._total = total_weights(layers)
        self._left = self._total
        if masks is None:
            self._network_rms = _rms(gradients, layers, self._total)
        else:
            self._left = sum(int(masks[layer.name].count_nonzero()) for layer in layers)
            left = {layer.name: gradients[layer.name] * masks[layer.name] for layer in layers}
            self._network_rms = _rms(left, layers, self._left)
        self._weight_rms = _rms(weights, layers, self._left) if name in AT_ANY_MOMENT else 0.0

    @torch.no_grad()
    def layer(self, layer: Layer) -> LayerFeatures:
        """The features of one layer."""
        shape3 = (layer.shape[0], layer.shape[1], layer.taps)
        weight = self._weights[layer.name].detach().float().reshape(shape3)
        gradient = self._gradients[layer.name].detach().float().reshape(shape3)
        if self.name == "paper":
            empty = weight.new_empty
            return LayerFeatures(
                self.spec, layer.shape, weight, gradient, 1.0, 1.0,
                empty(layer.shape[0], 0), empty(layer.shape[1], 0), empty(0),
            )  # fmt: skip
        if self.name in AT_ANY_MOMENT:
            return self._state(layer, weight, gradient)
        gradient_rms = gradient.square().mean().sqrt()
        to_z, to_h = _inverse(weight.std(correction=0)), _inverse(gradient_rms)
        out_dims, in_dims = (1, 2), (0, 2)
        return LayerFeatures(
            self.spec,
            layer.shape,
            weight,
            gradient,
            to_z,
            to_h,
            torch.stack([_channel_means(weight, to_z, out_dims), _channel_means(gradient, to_h, out_dims)], dim=1),
            torch.stack([_channel_means(weight, to_z, in_dims), _channel_means(gradient, to_h, in_dims)], dim=1),
            weight.new_tensor(
                _layer_context(layer, len(self.layers), self._total, float(gradient_rms), self._network_rms)
            ),
        )

    def _state(self, layer: Layer, weight: Tensor, gradient: Tensor) -> LayerFeatures:
        masks = self._masks
        left = layer.size if masks is None else int(masks[layer.name].count_nonzero())
        mask = torch.ones_like(weight) if masks is None else masks[layer.name].reshape(weight.shape).to(weight)
        scales = [
            math.sqrt(float((values * mask).square().sum()) / left) if left else 0.0 for values in (weight, gradient)
        ]
        gradient_unit = _gradient_unit(self.name, scales[1], self._network_rms)
        context = [
            *_layer_context(layer, len(self.layers), self._total, scales[1], gradient_unit),
            *_state_context(layer, left, scales[0], self._weight_rms, self._left / self._total, self._bypass),
        ]
        return LayerFeatures(
            self.spec,
            layer.shape,
            weight,
            gradient,
            _inverse(self._weight_rms),
            _inverse(gradient_unit),
            _log_channel_share(torch.ones_like(mask) if _answers(self.name, layer, len(self.layers)) else mask, (1, 2)),
            _log_channel_share(mask, (0, 2)),
            weight.new_tensor(context),
        )


class FeaturesOfRest:
    """The ``state`` or ``flow`` features of the weights that are left, a row a weight: removed ones cost nothing.

    Args:
        name: ``state`` or ``flow``.
        layers: the layers, in order.
        weights, gradients: what is left of each layer, ``[n]``, on one device.
        places: where in the flattened layer, ``[n]``, ascending, as int32 or int64; ``None`` where everything is left.
        bypass: as for :class:`NetworkFeatures`.
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[Layer],
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        places: Mapping[str, Tensor | None],
        bypass: Mapping[str, float] | None = None,
    ) -> None:
        # What is one of channels elsewhere is one of single weights.
        spec = feature_set(name)
        self._spec = FeatureSet(spec.weight, spec.out_channel + spec.in_channel, layer=spec.layer)
        self._bypass = _checked(name, bypass)
        self._name, self._count = name, len(layers)
        self._weights, self._gradients, self._places = weights, gradients, places
        self._total = total_weights(layers)
        self._left = sum(len(weights[layer.name]) for layer in layers)
        self._norms = {layer.name: (_norm(weights[layer.name]), _norm(gradients[layer.name])) for layer in layers}
        self._weight_rms, self._gradient_rms = (
            math.sqrt(sum(norm**2 for norm in norms) / max(1, self._left))
            for norms in zip(*self._norms.values(), strict=True)
        )

    @torch.no_grad()
    def layer(self, layer: Layer) -> LayerFeatures:
        """Of shape ``(n,)``: as if each weight were an output channel of its own."""
        weight, gradient = self._weights[layer.name], self._gradients[layer.name]
        left = len(weight)
        scales = [norm / math.sqrt(max(1, left)) for norm in self._norms[layer.name]]
        gradient_unit = _gradient_unit(self._name, scales[1], self._gradient_rms)
        context = [
            *_layer_context(layer, self._count, self._total, scales[1], gradient_unit),
            *_state_context(layer, left, scales[0], self._weight_rms, self._left / self._total, self._bypass),
        ]
        return LayerFeatures(
            self._spec,
            (left,),
            weight[:, None, None],
            gradient[:, None, None],
            _inverse(self._weight_rms),
            _inverse(gradient_unit),
            self._channel_shares(layer, weight),
            weight.new_empty(1, 0),
            weight.new_tensor(context),
        )

    def _channel_shares(self, layer: Layer, weight: Tensor) -> Tensor:
        """For each weight the shares of its output and its input channel that are left, ``[n, 2]``."""
        places = self._places[layer.name]
        if places is None:
            return _log_share_of_mean(weight.new_ones(1)).expand(len(weight), 2)
        outputs, inputs = layer.shape[:2]
        shares = weight.new_empty(2, len(weight))  # a row a feature: each is written and read in one go
        # Places ascend: what is left of an output channel is one run of them.
        starts = torch.arange(1, outputs, dtype=places.dtype, device=places.device) * (inputs * layer.taps)
        ends = [0, *torch.searchsorted(places, starts).tolist(), len(places)]
        runs = torch.tensor(ends, device=places.device).diff()
        shares[0] = _log_share_of_mean(runs.to(weight)).repeat_interleave(runs, output_size=len(places))
        channel = divided(places, layer.taps)
        channel = channel - (torch.arange(outputs).to(places) * inputs).repeat_interleave(runs, output_size=len(places))
        left = torch.bincount(channel, minlength=inputs).to(weight)
        torch.index_select(_log_share_of_mean(left), 0, channel, out=shares[1])
        if _answers(self._name, layer, self._count):
            shares[0] = _log_share_of_mean(weight.new_ones(1))
        return shares.T


def _gradient_unit(name: str, layer_rms: float, network_rms: float) -> float:
    """What a layer's gradients are divided by: the network's scale, in ``flow`` within reach of the layer's own."""
    if name != "flow" or layer_rms == 0:
        return network_rms
    return min(max(network_rms, layer_rms / GRADIENT_REACH), layer_rms * GRADIENT_REACH)


def _answers(name: str, layer: Layer, layers: int) -> bool:
    """Whether ``layer``'s outputs are the network's own, in a set that makes a difference of that."""
    return name == "flow" and layer.depth == layers - 1


def _layer_context(
    layer: Layer, layers: int, total: int, gradient_rms: float, network_gradient_rms: float
) -> list[float]:
    """The layer-level features of ``scale-free``."""
    return [
        math.log(layer.fan_in),
        math.log(layer.fan_out),
        layer.depth / max(1, layers - 1),
        math.sqrt(layer.taps),
        math.log(layer.size / total),
        _log_share(gradient_rms, network_gradient_rms),
    ]


def _state_context(
    layer: Layer,
    left: int,
    weight_rms: float,
    network_weight_rms: float,
    network_density: float,
    bypass: Mapping[str, float] | None,
) -> list[float]:
    """The layer-level features that ``state`` and, with ``bypass``, ``flow`` have beside those of ``scale-free``."""
    density = _log_share(left / layer.size, network_density)
    context = [_log_share(weight_rms, network_weight_rms), density]
    return context if bypass is None else [*context, bypass[layer.name], bypass[layer.name] * density]


def _checked(name: str, bypass: Mapping[str, float] | None) -> Mapping[str, float] | None:
    """``bypass`` for a feature set that has use for it."""
    if name not in SEE_SHORTCUTS:
        return None
    if bypass is None:
        raise AutoSparseError(
            "the feature set 'flow' looks at the network's shortcuts, and no network is here: choose 'state'"
        )
    return bypass


def _rms(tensors: Mapping[str, Tensor], layers: Sequence[Layer], count: int) -> float:
    """The root mean square of all values of ``tensors``, ``count`` of which can be other than zero."""
    return math.sqrt(sum(_norm(tensors[layer.name].detach().float()) ** 2 for layer in layers) / max(1, count))


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values))


def _log_share(value: float, whole: float) -> float:
    """log(value / whole) with a floor; 0 where the whole is nothing."""
    return math.log(max(value / whole, LOG_FLOOR)) if whole > 0 else 0.0


def _log_channel_share(mask: Tensor, dims: tuple[int, int]) -> Tensor:
    """What is left of each channel, in multiples of the layer's mean channel plus a tenth, as a logarithm [n, 1]."""
    return _log_share_of_mean(mask.sum(dim=dims)).unsqueeze(1)


def _log_share_of_mean(left: Tensor) -> Tensor:
    return (left / left.mean().clamp(min=1e-12) + 0.1).log()
