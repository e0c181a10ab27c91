"""Search for a mask by gradient descent on the logits of a relaxed distribution of masks, under a count constraint.

The relaxation is the binary concrete distribution (Maddison et al. 2017, arXiv 1611.00712; Louizos et al. 2018, arXiv
1712.01312); the constraint and GradBalance are those of Concrete Ticket Search (arXiv 2512.07142).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_DROP_AT = 0.88  # of the steps; the learning rate of the rest is a tenth


def binary_concrete(s: Tensor, u: Tensor, temperature: float) -> Tensor:
    """A relaxed Bernoulli(sigmoid(s)) sample, m = sigmoid((s + log u - log(1 - u)) / temperature) in [0, 1].

    Args:
        s: logits; -inf gives m = 0.
        u: uniform numbers in [0, 1), of the shape of ``s``; 0 gives m = 0.
    """
    return torch.sigmoid((s + torch.logit(u)) / temperature)


def binary_concrete_slope(m: Tensor, temperature: float) -> Tensor:
    """dm/ds of a sample ``m`` at fixed ``u``: m (1 - m) / temperature."""
    return m * (1 - m) / temperature


@dataclass(frozen=True)
class ExpectedCount:
    """E = 100 (sum of sigmoid(s) / K' - 1): by how many percent the expected number of kept weights exceeds K'."""

    target: float

    def error(self, s: Tensor) -> Tensor:
        return 100 * (s.sigmoid().sum() / self.target - 1)

    def gradient(self, s: Tensor) -> Tensor:
        """dE/ds = 100 / K' sigmoid(s) (1 - sigmoid(s))."""
        p = s.sigmoid()
        return 100 / self.target * p * (1 - p)


class GradBalance:
    """The multiplier λ of the constraint: a moving average of the value that makes both gradients equally long.

    The target of a step is ||dtask/ds|| / ||dE/ds|| while E > 0, and 0 otherwise. λ starts at the first target and
    then moves by ``rate`` of its distance to each.
    """

    def __init__(self, rate: float = 0.01) -> None:
        self.rate = rate
        self._multiplier: Tensor | None = None

    def update(self, task_gradient: Tensor, error: Tensor, error_gradient: Tensor) -> Tensor:
        """λ for this step, a scalar on the device of the gradients: reading it would make the host wait."""
        length = error_gradient.norm().clamp_min(torch.finfo(error_gradient.dtype).tiny)
        target = torch.where(error > 0, task_gradient.norm() / length, 0.0)
        previous = target if self._multiplier is None else self._multiplier
        self._multiplier = torch.lerp(previous, target, self.rate)
        return self._multiplier


@dataclass(frozen=True)
class ConcreteSearch:
    """Adam on the logits s of a binary-concrete mask m, minimising E[task(m)] + λ E.

    Args:
        steps: masks that are drawn, one a step.
        lr: learning rate of the logits, and a tenth of it in the last 12 % of the steps.
        temperature: of the concrete distribution; near 0 samples are binary and their gradients vanish.
        count: the constraint.
    """

    steps: int
    lr: float
    temperature: float
    count: ExpectedCount

    def run(self, s: Tensor, task_gradient: Callable[[Tensor, int], Tensor], noise: torch.Generator) -> Tensor:
        """The logits after the search, which starts from ``s [n]``; one that is -inf stays so.

        Args:
            task_gradient: dtask/dm at the sample m [n] of a step.
            noise: a generator on the device of ``s``.
        """
        s = s.clone()
        adam = torch.optim.Adam([s], lr=self.lr)
        balance = GradBalance()
        for step in range(self.steps):
            if step == int(_DROP_AT * self.steps):
                adam.param_groups[0]["lr"] = self.lr / 10
            u = torch.rand(s.shape, generator=noise, dtype=s.dtype, device=s.device)
            m = binary_concrete(s, u, self.temperature)
            task = task_gradient(m, step) * binary_concrete_slope(m, self.temperature)
            constraint = self.count.gradient(s)
            s.grad = task + balance.update(task, self.count.error(s), constraint) * constraint
            adam.step()
        return s
