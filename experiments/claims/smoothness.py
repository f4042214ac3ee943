"""How smooth the loss is along the gradient, without and with batch norm."""

from collections.abc import Iterator
from itertools import islice
from operator import truediv
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.claims.claim import Claim, Region
from experiments.claims.evidence import Experiment, Setting, Values
from experiments.claims.loop import NORMS, batches, network, training
from experiments.claims.measures import of_rows

SMOOTH = "How Does Batch Normalization Help Optimization?, arXiv 1805.11604"
STEPS, EVERY = 600, 30
"""The steps of a training that are looked at, and how many lie between two looks."""
REACH = (0.5, 1.0, 2.0, 4.0)
"""Distances along the gradient, as multiples of the learning rate."""
KINDS = ("loss_range", "gradient_change", "effective_smoothness")


def look(model: nn.Module, x: Tensor, y: Tensor, rate: float) -> dict[str, float]:
    """Return what the loss does along the gradient g from the weights w, on one batch, in training mode.

    loss_range: the largest minus the smallest loss at w - s g, over s = 0 and the rate times `REACH`.
    gradient_change: the mean over s of |g(w - s g) - g(w)|. effective_smoothness: the largest
    |g(w - s g) - g(w)| / |s g|.
    """
    weights = list(model.parameters())
    start = [p.detach().clone() for p in weights]
    loss, slope = loss_and_gradient(model, x, y)
    losses, changes, smoothness = [loss], [], []
    size = norm_of(slope)
    for s in (rate * factor for factor in REACH):
        with torch.no_grad():
            for p, before, g in zip(weights, start, slope, strict=True):
                p.copy_(before - s * g)
        there, other = loss_and_gradient(model, x, y)
        change = norm_of([b - a for a, b in zip(slope, other, strict=True)])
        losses.append(there)
        changes.append(change)
        smoothness.append(change / (s * size))
    with torch.no_grad():
        for p, before in zip(weights, start, strict=True):
            p.copy_(before)
    return dict(zip(KINDS, (max(losses) - min(losses), fmean(changes), max(smoothness)), strict=True))


def loss_and_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, list[Tensor]]:
    """Return the loss of a batch and its gradient by the parameters."""
    loss = F.cross_entropy(model(x), y)
    return float(loss.detach()), list(torch.autograd.grad(loss, list(model.parameters())))


def norm_of(tensors: list[Tensor]) -> float:
    """Return the Euclidean norm of all numbers together."""
    return float(torch.stack([one.norm() for one in tensors]).norm())


def smoothness(seed: int, setting: Setting) -> Values:
    """Return the means over a training, without and with batch norm at the same rate."""
    rate = setting.rates["none"]
    found: Values = {"courses": {}}
    for norm in NORMS:
        looks = list(islice(course(norm, seed, rate), STEPS // EVERY))
        for kind in KINDS:
            found[f"{norm} {kind}"] = fmean(one[kind] for one in looks)
        found["courses"][norm] = {kind: [float(f"{one[kind]:.4g}") for one in looks] for kind in KINDS}
    return found


def course(norm: str, seed: int, rate: float) -> Iterator[dict[str, float]]:
    """Yield a look at every `EVERY`-th step of a training."""
    model = network(norm, seed)
    steps, samples = training(model, seed, rate), batches(seed)
    while True:
        for _ in range(EVERY):
            next(steps)
            x, y = next(samples)
        yield look(model, x, y, rate)


EXPERIMENTS = (Experiment("smoothness", 6, smoothness, ("none",)),)

HOW = (
    "{what}, without batch norm divided by with, mean over 20 looks at 600 steps; both at the rate that was tuned "
    "without batch norm. Distances of 0.5 to 4 times the rate; the study's perceptron."
)
WORDS = {
    "loss_range": (
        "The loss varies less along the gradient with batch norm.",
        "The range of the loss along the gradient",
    ),
    "gradient_change": (
        "The gradient stays more like itself along its way with batch norm.",
        "The change of the gradient along the gradient",
    ),
    "effective_smoothness": (
        "The effective smoothness is better with batch norm.",
        "The largest change of the gradient per distance",
    ),
}
CLAIMS = tuple(
    Claim(
        f"smooth-{kind.replace('_', '-')}",
        text,
        SMOOTH,
        "",
        HOW.format(what=what),
        "times",
        Region(low=1),
        of_rows("smoothness", f"none {kind}", f"bn {kind}", of=truediv, log=True),
        mark=1.0,
    )
    for kind, (text, what) in WORDS.items()
)
