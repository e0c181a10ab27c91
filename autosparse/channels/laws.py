"""How a network was initialised: the distributions of its fresh weights, as functions of the fans.

A built network cannot be asked how it was initialised, but its fresh weights tell. Among all parameters of a kind
(weights of ``Conv2d``, biases of ``Linear``, ...) those few laws are taken that explain all tensors most briefly. A law
is a shape (normal, uniform, truncated) and a standard deviation that follows from the fans or is fixed. The evidence
is the likelihood: no other test tells two laws apart better, also on small tensors. It needs only the number of
values, their sum of squares, and the largest magnitude, which settles the bound of a uniform law almost alone.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn

_CONV = nn.modules.conv._ConvNd
_LAYER = (_CONV, nn.Linear)
_NORM = nn.modules.batchnorm._NormBase  # batch and instance norms

# In nats: what a law gains by explaining a tensor, and what it costs to use one that another kind of parameter follows,
# a known one, a fixed round one, or one fitted to a tensor, which must therefore explain a second one.
# 30 nats are 7.7 standard errors.
_EXPLAINED, _USED, _KNOWN, _ROUND, _FITTED = 30.0, 1.0, 8.0, 20.0, 36.0
_NOISE = 8.0  # by how much a wrong law may beat the right one on a tensor, by chance
_NEAR = math.log(1.1)  # how far a standard deviation may be from a known law that it is said to follow
_KOLMOGOROV = 18.0  # limit of 2 n D^2: a probability below 2 exp(-18)
_TESTED = 4096  # values that suffice to reject a shape
_OUTLIER = 10.0  # of root mean squares. Older truncated normals of torch and timm hold single values of -2 beside 0.02.


@dataclass(frozen=True)
class Shape:
    """A density at scale 1: proportional to ``exp(-curvature x^2 / 2)`` on ``|x| <= cut``.

    Args:
        norm: the integral of that exponential.
        std: the standard deviation.
        within: the probability of ``[-x, x]``.
    """

    name: str
    curvature: float
    cut: float
    norm: float
    std: float
    within: Callable[[np.ndarray], np.ndarray]


_TWO_SIGMA = math.erf(math.sqrt(2))
NORMAL = Shape("normal", 1.0, math.inf, math.sqrt(2 * math.pi), 1.0, lambda x: erf(x / math.sqrt(2)))
UNIFORM = Shape("uniform", 0.0, 1.0, 2.0, 1 / math.sqrt(3), lambda x: x)
#: As in JAX and TensorFlow. torch's own trunc_normal_ cuts at -2 and 2, which for its usual 0.02 is normal.
TRUNCATED = Shape(
    "normal within two sigma",
    1.0,
    2.0,
    math.sqrt(2 * math.pi) * _TWO_SIGMA,
    math.sqrt(1 - 4 * math.exp(-2) / (math.sqrt(2 * math.pi) * _TWO_SIGMA)),
    lambda x: erf(x / math.sqrt(2)) / _TWO_SIGMA,
)
_SHAPES = (NORMAL, UNIFORM, TRUNCATED)

#: From the name of a fan to its size; "1" for what depends on no fan.
Fans = Mapping[str, float]


def fans_of(shape: Sequence[int], groups: int) -> dict[str, float]:
    """The fans of a weight ``[out, in / groups, *kernel]`` as torch counts them, and those within one group."""
    taps = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * taps, shape[0] * taps
    return {
        "1": 1.0,
        "fan-in": fan_in,
        "fan-out": fan_out,
        "fan-out of a group": fan_out / groups,
        "mean fan": (fan_in + fan_out) / 2,
        "mean fan of a group": (fan_in + fan_out / groups) / 2,
    }


@dataclass(frozen=True)
class Constant:
    """One value everywhere, such as 0 in a bias and 1 in a norm."""

    value: float

    def draw(self, shape: Sequence[int], fans: Fans, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        return torch.full(tuple(shape), self.value, dtype=dtype, device=generator.device)


@dataclass(frozen=True)
class Law:
    """Independent values of mean 0 and variance ``gain / fans[fan]``.

    He: normal, gain 2, fan-in or fan-out. LeCun: gain 1, fan-in. Glorot: gain 1, mean fan. torch's default
    U(-1 / sqrt(fan-in), 1 / sqrt(fan-in)), for biases too: uniform, gain 1/3, fan-in.
    """

    shape: Shape
    fan: str
    gain: float

    def std(self, fans: Fans) -> float:
        return math.sqrt(self.gain / fans[self.fan])

    def draw(self, shape: Sequence[int], fans: Fans, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        values = torch.empty(tuple(shape), dtype=dtype, device=generator.device)
        scale = self.std(fans) / self.shape.std
        if self.shape is UNIFORM:
            return values.uniform_(-scale, scale, generator=generator)
        if self.shape is NORMAL:
            return values.normal_(0.0, scale, generator=generator)
        return nn.init.trunc_normal_(values, 0.0, scale, -2 * scale, 2 * scale, generator)

    def __str__(self) -> str:
        return f"{self.shape.name}, variance {self.gain:.4g}" + (f" / {self.fan}" if self.fan != "1" else "")


@dataclass(frozen=True, eq=False)
class Resampled:
    """Values that were there, picked with replacement: mean, shape and scale stay whatever the fans."""

    values: Tensor

    def draw(self, shape: Sequence[int], fans: Fans, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        picks = torch.randint(self.values.numel(), tuple(shape), generator=generator, device=generator.device)
        return self.values.flatten().to(device=generator.device, dtype=dtype)[picks]


Distribution = Constant | Law | Resampled

_FANS = ("fan-in", "fan-out", "fan-out of a group", "mean fan", "mean fan of a group")
_KNOWN_OF_BIASES = [Law(UNIFORM, "fan-in", 1 / 3)]
_KNOWN_OF_WEIGHTS = [
    *(Law(UNIFORM, fan, 1 / 3) for fan in _FANS[:3]),
    *(Law(shape, fan, gain) for fan in _FANS for gain in (2.0, 1.0) for shape in _SHAPES),
]


def initial_distributions(model: nn.Module) -> dict[str, Distribution]:
    """What every parameter of a freshly initialised network was drawn from, by name.

    A parameter whose values are all equal is :class:`Constant`. Weights and biases of convolutions and linear layers
    follow a :class:`Law`: the one that explains all tensors of their kind or, if there is none, the ones that explain
    the most of them. A tensor left over keeps its own standard deviation, and follows the fans as the known law within
    10 % of it does. Everything else, and where there is none within 10 %, is :class:`Resampled`.

    Fans that are the same in all tensors of a kind cannot be told apart: then the fan-in is taken.
    """
    found: dict[str, Distribution] = {}
    kinds: dict[tuple[type, bool], list[_Sample]] = defaultdict(list)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            values = parameter.detach()
            if not values.numel() or not values.is_floating_point():
                continue
            low, high = (float(end) for end in values.aminmax())
            found[name] = Constant(low) if low == high else Resampled(values)
            if isinstance(module, _LAYER) and isinstance(found[name], Resampled):
                fans = fans_of(module.weight.shape, getattr(module, "groups", 1))
                is_bias = parameter is module.bias
                sample = _sample(name, values, {"1": 1.0, "fan-in": fans["fan-in"]} if is_bias else fans)
                if sample is not None:
                    kinds[type(module), is_bias].append(sample)
    used: dict[bool, dict[Law, None]] = {False: {}, True: {}}
    for (_, is_bias), samples in sorted(kinds.items(), key=lambda kind: -sum(sample.n for sample in kind[1])):
        known = _KNOWN_OF_BIASES if is_bias else _KNOWN_OF_WEIGHTS
        laws = _explained(samples, known, list(used[is_bias]))
        found |= laws
        used[is_bias] |= dict.fromkeys(laws.values())
    return found


@dataclass(frozen=True)
class _Sample:
    """What the likelihood needs of a tensor; ``shapes`` are those that its values may have, the likeliest first."""

    name: str
    n: int
    squares: float
    peak: float
    rounding: float
    fans: Fans
    shapes: tuple[Shape, ...]

    def scale(self, shape: Shape) -> float:
        """The likeliest one."""
        return max(math.sqrt(shape.curvature * self.squares / self.n), self.peak / shape.cut)

    def log_likelihood(self, shape: Shape, scale: float) -> float:
        if shape not in self.shapes or self.peak > shape.cut * scale * (1 + 1e-9):
            return -math.inf
        return -self.n * math.log(scale * shape.norm) - shape.curvature * self.squares / (2 * scale**2)

    def worth(self, law: Law) -> float:
        """How much better explained by the law than by nothing; negative if it is not."""
        scale, own = law.std(self.fans) / law.shape.std, self.scale(law.shape)
        scale = min(max(own, scale * (1 - self.rounding)), scale * (1 + self.rounding))  # the bound may be rounded too
        best = self.log_likelihood(self.shapes[0], self.scale(self.shapes[0]))
        return _EXPLAINED - best + self.log_likelihood(law.shape, scale)

    def worth_near(self, law: Law) -> float:
        """The same with :data:`_NEAR` in the place of the standard error, for a law of the likeliest shape."""
        own = self.shapes[0].std * self.scale(self.shapes[0])
        far = math.log(own / law.std(self.fans)) / _NEAR if law.shape is self.shapes[0] else math.inf
        return _EXPLAINED * (1 - far**2)

    def fitted(self, fan: str) -> Law:
        shape = self.shapes[0]
        return Law(shape, fan, (shape.std * self.scale(shape)) ** 2 * self.fans[fan])

    def rounded(self) -> Iterator[Law]:
        """Fixed scales as people write them, 0.01 or 0.02, on both sides of the likeliest one."""
        for shape in self.shapes:
            power = 10.0 ** math.floor(math.log10(self.scale(shape)))
            below = max(digit for digit in (1, 2, 5) if digit * power <= self.scale(shape))
            for digit in (below, {1: 2, 2: 5, 5: 10}[below]):
                yield Law(shape, "1", (shape.std * digit * power) ** 2)


def _sample(name: str, values: Tensor, fans: Fans) -> _Sample | None:
    """``None`` where the values have none of the shapes, by Kolmogorov's test."""
    norm, peak = _norms(values)
    limit = _OUTLIER * norm / math.sqrt(values.numel())
    if peak > limit:
        values = values[values.abs() <= limit]
        norm, peak = _norms(values)
    if peak == 0:
        return None
    sample = _Sample(name, values.numel(), norm**2, peak, torch.finfo(values.dtype).eps, fans, _SHAPES)
    if values.numel() > _TESTED:
        values = values.flatten()[_spread(values.numel()).to(values.device)]
    x = np.sort(values.flatten().double().cpu().numpy())
    share = np.arange(len(x) + 1) / len(x)
    shapes = []
    for shape in _SHAPES:
        inside = np.minimum(np.abs(x) / sample.scale(shape), shape.cut)
        below = (1 + np.sign(x) * shape.within(inside)) / 2
        distance = max(np.abs(below - share[1:]).max(), np.abs(below - share[:-1]).max())
        if 2 * len(x) * distance**2 <= _KOLMOGOROV:
            shapes.append(shape)
    shapes.sort(key=lambda shape: -sample.log_likelihood(shape, sample.scale(shape)))
    return replace(sample, shapes=tuple(shapes)) if shapes else None


def _spread(n: int) -> Tensor:
    """Different indices below n in golden steps, which meet every part of a tensor and every tap of its kernels."""
    step = next(step for step in itertools.count(int(0.618 * n)) if math.gcd(step, n) == 1)
    return torch.arange(_TESTED) * step % n


def _norms(values: Tensor) -> tuple[float, float]:
    """Euclidean, which float32 would miss by a percent in 10^8 values, and maximum."""
    low, high = values.aminmax()
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)), max(-float(low), float(high))


def _explained(samples: Sequence[_Sample], known: Sequence[Law], used: Sequence[Law]) -> dict[str, Law]:
    """The laws of those tensors of one kind that some law explains.

    Args:
        used: by kinds with more values.
    """
    rounded = list({law: None for sample in samples for law in sample.rounded()})
    fitted = [sample.fitted(fan) for sample in samples for fan in sample.fans]
    laws = [*used, *known, *rounded, *fitted]
    worth = np.array([[sample.worth(law) for sample in samples] for law in laws])
    costs = np.repeat([_USED, _KNOWN, _ROUND, _FITTED], [len(used), len(known), len(rounded), len(fitted)])
    sizes = np.array([list(sample.fans.values()) for sample in samples])
    for index in range(len(laws) - len(fitted), len(laws)):
        if len(np.unique(sizes[worth[index] > 0], axis=0)) < 2:  # what it would do at other fans is not in evidence
            worth[index] = -math.inf
    found = {samples[i].name: laws[law] for i, law in _cover(worth, costs).items()}
    rest = [sample for sample in samples if sample.name not in found]
    if rest:
        near = np.array([[sample.worth_near(law) for sample in rest] for law in known])
        covered = _cover(near, np.ones(len(known)))
        found |= {rest[i].name: rest[i].fitted(known[law].fan) for i, law in covered.items()}
    return found


def _cover(worth: np.ndarray, costs: np.ndarray) -> dict[int, int]:
    """From tensors to the law that explains them, by the laws that explain the most for what they cost.

    Args:
        worth: ``[laws, tensors]``.
        costs: ``[laws]``, positive. Laws are taken greedily, the earlier one on a tie, while they are worth it.
    """
    value, law_of = np.zeros(worth.shape[1]), np.full(worth.shape[1], -1)
    while True:
        more = np.maximum(worth - value, 0.0)
        more[(value > 0) & (more < _NOISE)] = 0.0
        net = np.round(more.sum(1) - costs, 6)  # laws that say the same differ by rounding
        law = int(net.argmax())
        if net[law] <= 0:
            return {i: known for i, known in enumerate(law_of.tolist()) if known >= 0}
        law_of[more[law] > 0] = law
        value += more[law]
