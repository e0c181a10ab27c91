"""The PQ index of sparsity, and how much sparsity-informed adaptive pruning (SAP) removes because of it.

Diao et al. 2023, arXiv 2302.05601.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autosparse.budget import check_scores
from autosparse.budget.selection import top_k
from autosparse.layers import Layer
from autosparse.masks import Masks
from autosparse.triggers.rounds import PQRewinding

_ROUNDING = 1e-9  # relative: what a power in float64 may be off a whole number


def pq_index(w: Tensor, p: float = 0.5, q: float = 1.0, *, active: Tensor | None = None) -> Tensor:
    """I_{p,q}(w) = 1 − d^{1/q − 1/p} ‖w‖_p / ‖w‖_q over the d active weights of each row.

    That is one minus the ratio of two power means, which is how it is computed: 0 for equal magnitudes, 1 − d^{1/q −
    1/p} when one weight alone is not zero, and unchanged when all weights are scaled. Rows that have no active weight,
    or only zeros, where the ratio is undefined, count as equal magnitudes.

    Args:
        w: weights ``[..., n]``.
        p, q: 0 < p < q.
        active: bool ``[..., n]``; by default all weights are active.

    Returns:
        ``[...]`` in float64.
    """
    magnitude = w.detach().double().abs()
    if active is not None:
        magnitude = magnitude * active
    d = magnitude.shape[-1] if active is None else active.sum(-1).clamp(min=1)
    largest = magnitude.amax(-1)
    magnitude = magnitude / torch.where(largest > 0, largest, 1.0).unsqueeze(-1)  # no power overflows or vanishes
    mean_p, mean_q = (((magnitude**r).sum(-1) / d).pow(1 / r) for r in (p, q))
    return torch.where(largest > 0, 1 - mean_p / mean_q, 0.0).clamp(0, 1)


def retained_bound(index: Tensor, d: Tensor, p: float = 0.5, q: float = 1.0, eta: float = 0.0) -> Tensor:
    """m = ⌈d (1 + η)^{−q/(q−p)} (1 − I)^{pq/(q−p)}⌉: so many of d weights are at least worth keeping.

    Of d weights of which k have equal magnitudes and the rest are zero, it is k (for η = 0). What rounding in
    float64 adds to a whole number does not raise it to the next one.

    Args:
        index: I ``[...]``.
        d: counts of active weights ``[...]``.

    Returns:
        Whole numbers ``[...]`` in float64.
    """
    m = d * (1 + eta) ** (-q / (q - p)) * (1 - index) ** (p * q / (q - p))
    return (m * (1 - _ROUNDING)).ceil()


def pruned_counts(w: Tensor, active: Tensor, settings: PQRewinding) -> Tensor:
    """⌊d · min(max(γ (1 − m/d), 0), β)⌋: how many of its d active weights each row loses.

    β is ``settings.max_fraction``. Computed as min(γ (d − m), β d), which is exact where 1 − m/d is not.

    Args:
        w, active: weights and bool ``[rows, n]``.

    Returns:
        int64 ``[rows]``.
    """
    p, q = settings.p, settings.q
    d = active.sum(-1).double()
    m = retained_bound(pq_index(w, p, q, active=active), d, p, q, settings.eta)
    wanted = (settings.gamma * (d - m)).clamp(min=0)
    return (torch.minimum(wanted, settings.max_fraction * d) * (1 + _ROUNDING)).floor().long()


def pq_survivors(weights: Mapping[str, Tensor], layers: Sequence[Layer], masks: Masks, settings: PQRewinding) -> Masks:
    """What one round of SAP leaves of ``masks``: in each unit, the :func:`pruned_counts` smallest magnitudes go.

    Units are the network, its layers, or the output neurons of each layer (``settings.scope``); ties go to the lower
    index.

    Args:
        weights: trained weights or their magnitudes, a tensor a layer.

    Raises:
        AutoSparseError: weights are missing, misshapen or NaN.
    """
    check_scores(weights, layers)
    w = [_rows(weights[layer.name].detach().cpu(), settings.scope) for layer in layers]
    active = [_rows(masks[layer.name].cpu(), settings.scope) for layer in layers]
    if settings.scope == "global":
        kept = _survivors(torch.cat(w, dim=1), torch.cat(active, dim=1), settings)
        parts = list(kept.split([layer.size for layer in layers], dim=1))
    else:
        parts = [_survivors(*pair, settings) for pair in zip(w, active, strict=True)]
    return Masks({layer.name: part.reshape(layer.shape) for layer, part in zip(layers, parts, strict=True)})


def _rows(tensor: Tensor, scope: str) -> Tensor:
    """``[outputs, weights of one]`` for neurons, ``[1, weights]`` otherwise."""
    return tensor.reshape(tensor.shape[0] if scope == "neuron" else 1, -1)


def _survivors(w: Tensor, active: Tensor, settings: PQRewinding) -> Tensor:
    keep = active.sum(-1) - pruned_counts(w, active, settings)
    magnitude = w.double().abs().masked_fill(~active, -torch.inf)
    return torch.stack([top_k(row, k) for row, k in zip(magnitude, keep.tolist(), strict=True)])
