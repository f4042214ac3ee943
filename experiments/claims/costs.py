"""What batch norm costs in time: processor time of this process, so that other processes disturb little."""

from collections.abc import Callable, Sequence
from statistics import median
from time import process_time

import torch
from torch import Tensor, nn

from experiments.claims.claim import Claim, Region
from experiments.claims.evidence import Experiment, Setting, Values
from experiments.claims.layers import START
from experiments.claims.measures import of_rows
from syncnorm import fold
from syncnorm.models import make_model
from syncnorm.seeds import derive

ROUNDS = 15
"""Rounds of a repetition, in which the networks take turns."""


def times(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return the median processor seconds of each call, which take turns; the first round is not counted."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, own in zip(calls, seconds, strict=True):
            begin = process_time()
            call()
            own.append(process_time() - begin)
    return [median(own[1:]) for own in seconds]


def one_thread(measure: Callable[[int, Setting], Values]) -> Callable[[int, Setting], Values]:
    """Return a measurement that runs on one thread of torch."""

    def run(seed: int, setting: Setting) -> Values:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return measure(seed, setting)
        finally:
            torch.set_num_threads(before)

    run.__module__ = measure.__module__
    return run


@one_thread
def layer(seed: int, setting: Setting) -> Values:
    """Return the seconds of forward and backward of a 3x3 convolution with ReLU, with batch norm between and without.

    64 channels of 16x16 positions, 16 images: a layer of a ResNet.
    """
    torch.manual_seed(derive("claims", seed, "layer"))
    x = torch.randn(16, 64, 16, 16, requires_grad=True)
    convolution = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    networks = [
        nn.Sequential(convolution, nn.ReLU()),
        nn.Sequential(convolution, nn.BatchNorm2d(64), nn.ReLU()),
    ]
    without, norm = times([step_of(network, x) for network in networks], ROUNDS)
    return {"without": without, "with": norm}


def step_of(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return a forward and a backward of a network."""

    def step() -> None:
        network(x).sum().backward()

    return step


@one_thread
def folded(seed: int, setting: Setting) -> Values:
    """Return the seconds of an evaluation of a 20-layer ResNet without norms, with batch norm, and folded."""
    torch.manual_seed(derive("claims", seed, "folded"))
    shape = (3, 16, 16)
    plain, model = (make_model("resnet20", shape, 10, norm).eval() for norm in ("none", "bn"))
    x = torch.randn(16, *shape)
    small = fold(model)
    with torch.no_grad():
        without, norm, after = times([lambda: plain(x), lambda: model(x), lambda: small(x)], ROUNDS)
    return {"without": without, "with": norm, "folded": after}


def percent_more(a: float, b: float) -> float:
    """Return by how many percent b is more than a."""
    return 100 * (b / a - 1)


EXPERIMENTS = (Experiment("layer_time", 10, layer), Experiment("folded_time", 10, folded))

CLAIMS = (
    Claim(
        "overhead",
        "Batch norm costs less than 5 % of a layer's time.",
        START,
        "under 5 %",
        "Forward and backward of a 3x3 convolution of 64 channels with ReLU on 16 maps of 16x16: how much longer it "
        "takes with batch norm, on one core of a CPU, 10 repetitions.",
        "%",
        Region(high=5),
        of_rows("layer_time", "without", "with", of=percent_more, kind="repetitions"),
        mark=5.0,
    ),
    Claim(
        "folding-time",
        "Folded, batch norm costs nothing.",
        START,
        "nothing",
        "Evaluation of a 20-layer ResNet on 16 images: how much longer it takes folded than a network that never had "
        "norms, on one core of a CPU, 10 repetitions. Nothing is taken as up to 5 %.",
        "%",
        Region(high=5),
        of_rows("folded_time", "without", "folded", of=percent_more, kind="repetitions"),
        mark=0.0,
    ),
)
