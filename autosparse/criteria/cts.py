from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autosparse import seeding
from autosparse.criteria.base import Scores, criterion
from autosparse.criteria.concrete import ConcreteSearch, ExpectedCount
from autosparse.criteria.gradients import LossFn
from autosparse.criteria.hessian import MeanLoss, evaluation
from autosparse.errors import AutoSparseError, UnknownNameError
from autosparse.layers import prunable
from autosparse.masks import Masks

Pieces = Sequence[tuple[Tensor, Tensor]]
Values = Mapping[str, Tensor]

TASKS = ("kl", "ce", "gradnorm")
_SCALE = 100  # of kl and ce, the authors' value: keeps gradients far above Adam's epsilon
_CLOSE = 1e-4  # of logits
_CLIP = 2.0  # the largest gradient norm of the warm-up, the authors' value


@criterion("cts", paper="Arora and Teuscher 2025, arXiv 2512.07142")
def cts(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    loss_fn: LossFn,
    keep: int,
    masks: Masks,
    generator: torch.Generator,
    *,
    task: str = "kl",
    steps: int = 1600,
    step_images: int = 32,
    lr: float = 0.1,
    temperature: float = 2 / 3,
    density_slack: float = 1.1,
    batch_statistics: bool = True,
    warm_steps: int = 320,
    warm_lr: float = 0.1,
) -> Scores:
    """Logits of a distribution of masks, searched for those that keep what the dense network computes (CTS).

    The weights are fixed. One logit s a weight starts at logit(d), d the density asked for among the weights that are
    left. Each step draws a relaxed mask m from the binary concrete distribution, differentiates a task term of the
    network with weights θ ⊙ m, and moves s by Adam against it and the constraint that the expected count is K'
    (:mod:`autosparse.criteria.concrete`). Dropout is off. Unlike a saliency, the search weighs weights together.

    The paper searches near initialisation (ResNet-20: after 9 of 160 epochs) and trains the ticket from there. Here
    the search looks at a copy that was trained briefly, and its masks serve the weights as they are. Without that it
    preserves the outputs of an untrained network.

    Many small steps find more than few large ones of as many images, for a step tries only a share d of the weights.
    docs/results.md has what both choices are worth.

    Scores are float32 at least, and differ between devices: the mask's random numbers are drawn where the weights are,
    by a generator seeded from ``generator``, because drawing millions a step on the CPU would dominate the search.

    Args:
        task: ``kl``, KL(sparse || dense) of the class probabilities on the same images; ``ce``, the loss itself, which
            overfits few images; or ``gradnorm``, the negative norm of the gradient by θ, which needs a network with
            second derivatives. A factor of 100 on the first two is the authors'.
        steps: masks drawn. The authors' shortest search is 20 epochs, 1960 steps of 512 images on CIFAR-10.
        step_images: images a step, at least. Larger batches are cut to about that; smaller ones are put together, and
            memory is that of one. Batches are used in their order, again and again.
        lr: of the logits; a tenth of it in the last 12 % of the steps.
        temperature: of the concrete distribution.
        density_slack: K' as a multiple of ``keep``.
        batch_statistics: batch norm normalises by the batch. The authors' code uses the running statistics, with
            which the small signals of a sparse network vanish between layers, so that little is learnt in so few
            steps.
        warm_steps: steps of SGD on the copy, of ``step_images`` images each; 0 searches at the given weights.
        warm_lr: its learning rate, which falls linearly to 0.

    Raises:
        AutoSparseError: an option out of range, no images, or a loss that is not finite.
    """
    search = TicketSearch(
        "cts", task, steps, step_images, lr, temperature, density_slack, batch_statistics, warm_steps, warm_lr
    )
    return search.run(model, batches, loss_fn, keep, masks, generator)


@dataclass(frozen=True)
class TicketSearch:
    """Concrete Ticket Search with its options, which are those of :func:`cts`.

    Args:
        owner: the criterion, for messages.

    Raises:
        UnknownNameError: no such task. AutoSparseError: an option out of range.
    """

    owner: str
    task: str
    steps: int
    step_images: int
    lr: float
    temperature: float
    density_slack: float
    batch_statistics: bool
    warm_steps: int
    warm_lr: float

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UnknownNameError(f"task of {self.owner}", self.task, TASKS)
        self._check_numbers(1, "steps", "step_images")
        self._check_numbers(0, "warm_steps")
        self._check_numbers(None, "lr", "temperature", "density_slack", "warm_lr")

    def _check_numbers(self, least: int | None, *names: str) -> None:
        """AutoSparseError for an option below ``least`` or, without one, that is not positive and finite."""
        for name in names:
            value = getattr(self, name)
            fits = 0 < value < math.inf if least is None else value >= least
            if not fits:
                wanted = "a positive number" if least is None else f"{least} or more"
                raise AutoSparseError(f"{self.owner} has {name} {value}: give {wanted}")

    def run(
        self,
        model: nn.Module,
        batches: Pieces,
        loss_fn: LossFn,
        keep: int,
        masks: Masks,
        generator: torch.Generator,
        logits: Values | None = None,
    ) -> Scores:
        """The logits that the search ends with.

        Args:
            logits: those that it starts from, up to a constant that makes the expected count ``keep``; by default all
                equal.

        Raises:
            AutoSparseError: no images, or a loss that is not finite.
        """
        weights = {name: weight.detach() for name, weight in prunable(model).items()}
        device = next(iter(weights.values())).device
        dtype = torch.promote_types(next(iter(weights.values())).dtype, torch.float32)
        left = torch.cat([masks[name].flatten().to(device) for name in weights])
        if keep >= int(left.sum()):
            return {name: masks[name].to(weight) for name, weight in weights.items()}
        seed = int(torch.randint(2**62, (), generator=generator))
        groups = _groups(batches, self.step_images)
        network = self._warmed(model, groups, loss_fn, masks, seed) if self.warm_steps else model
        start = torch.zeros(left.shape, device=device, dtype=dtype)
        if logits is not None:
            start = torch.cat([logits[name].flatten().to(start) for name in weights])
        start[left] = _with_expected(keep, start[left])
        search = ConcreteSearch(self.steps, self.lr, self.temperature, ExpectedCount(self.density_slack * keep))
        s = search.run(
            start.masked_fill_(~left, -math.inf),
            self._task_gradient(network, groups, loss_fn),
            seeding.generator(seed, "concrete noise", device=device),
        )
        return _like(weights, s.clamp_min(torch.finfo(dtype).min))

    def _task_gradient(
        self, network: nn.Module, groups: Sequence[Pieces], loss_fn: LossFn
    ) -> Callable[[Tensor, int], Tensor]:
        """dtask/dm at the mask m, over the images of a step."""
        advice = "check the data and the initialisation of the network, or lower its option warm_lr"
        theta = {name: weight.detach() for name, weight in prunable(network).items()}
        if self.task == "kl":
            groups, loss_fn = [_labelled_by(network, pieces, self.batch_statistics) for pieces in groups], reverse_kl

        def gradient(flat: Tensor, step: int) -> Tensor:
            m = {name: part.to(theta[name].dtype) for name, part in _like(theta, flat).items()}
            sparse = {name: weight * m[name] for name, weight in theta.items()}
            loss = MeanLoss(network, groups[step % len(groups)], loss_fn, self.owner, self.batch_statistics, advice)
            by_m = (
                _of_gradient_norm(loss, theta, sparse, m) if self.task == "gradnorm" else _of_loss(loss, theta, sparse)
            )
            return torch.cat([by_m[name].flatten() for name in theta]).to(flat.dtype)

        return gradient

    def _warmed(
        self, model: nn.Module, groups: Sequence[Pieces], loss_fn: LossFn, masks: Masks, seed: int
    ) -> nn.Module:
        """A copy of ``model`` after SGD on the weights that are left; the learning rate falls to 0."""
        network = copy.deepcopy(model).train().requires_grad_(True)
        parameters = list(network.parameters())
        sgd = torch.optim.SGD(parameters, self.warm_lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
        masks.hold(network, sgd)
        with seeding.global_stream(seed, "warm-up"):
            for step in range(self.warm_steps):
                sgd.param_groups[0]["lr"] = self.warm_lr * (1 - step / self.warm_steps)
                sgd.zero_grad()
                pieces = groups[step % len(groups)]
                images = sum(len(x) for x, _ in pieces)
                for x, y in pieces:
                    loss = loss_fn(network(x.to(parameters[0].device)), y.to(parameters[0].device))
                    (loss * (len(x) / images)).backward()
                nn.utils.clip_grad_norm_(parameters, _CLIP)
                sgd.step()
        return network


def _with_expected(count: int, logits: Tensor) -> Tensor:
    """``logits`` plus the constant with which their probabilities add up to ``count``, below their number."""
    low, high = (math.log(count / (len(logits) - count)) - float(end) for end in reversed(logits.aminmax()))
    while high - low > _CLOSE:
        middle = (low + high) / 2
        if float((logits + middle).sigmoid().sum(dtype=torch.float64)) < count:
            low = middle
        else:
            high = middle
    return logits + high


def _of_loss(loss: MeanLoss, theta: Values, sparse: Values) -> Values:
    """d(100 L)/dm = 100 θ ⊙ ∇L, by the chain rule through θ ⊙ m."""
    return {name: _SCALE * theta[name] * g for name, g in loss.gradient(sparse).items()}


def _of_gradient_norm(loss: MeanLoss, theta: Values, sparse: Values, m: Values) -> Values:
    """-d‖m ⊙ g‖/dm = -(m ⊙ g² + θ ⊙ H (m² ⊙ g)) / ‖m ⊙ g‖, with g = ∇L and H at θ ⊙ m.

    m ⊙ g is the derivative by θ: the gradient that the sparse network trains with.
    """
    g = loss.gradient(sparse)
    curvature = loss.hessian_vector(sparse, {name: m[name].square() * g[name] for name in g})
    length = torch.cat([(m[name] * g[name]).flatten() for name in g]).norm()
    length = length.clamp_min(torch.finfo(length.dtype).tiny)
    return {name: -(m[name] * g[name].square() + theta[name] * curvature[name]) / length for name in g}


def reverse_kl(output: Tensor, dense: Tensor) -> Tensor:
    """KL(sparse || dense) of the class probabilities, a mean over images; ``dense`` are log-probabilities [n, C]."""
    return F.kl_div(dense, output.log_softmax(1), reduction="batchmean", log_target=True)


def _labelled_by(network: nn.Module, pieces: Pieces, batch_statistics: bool) -> Pieces:
    """The images of ``pieces`` with the log-probabilities that ``network`` gives them, once for the whole search."""
    device = next(iter(prunable(network).values())).device
    with evaluation(network, batch_statistics), torch.no_grad():
        return [(x, network(x.to(device)).log_softmax(1)) for x, _ in pieces]


def _groups(batches: Pieces, images: int) -> list[Pieces]:
    """The batches of each step: large ones are cut and small ones put together to hold at least ``images``."""
    groups: list[list[tuple[Tensor, Tensor]]] = [[]]
    for x, y in batches:
        parts = max(1, len(x) // images)
        for piece in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
            if sum(len(held) for held, _ in groups[-1]) >= images:
                groups.append([])
            groups[-1].append(piece)
    return list(groups)


def _like(weights: Values, flat: Tensor) -> dict[str, Tensor]:
    """The parts of ``flat``, all weights laid end to end, in the shapes of ``weights``."""
    parts = flat.split([weight.numel() for weight in weights.values()])
    return {name: part.view(w.shape) for (name, w), part in zip(weights.items(), parts, strict=True)}
