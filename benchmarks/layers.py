"""What the layers cost beside `torch.nn.functional.batch_norm`, as ratios in one run, on one CPU thread or one GPU.

    python benchmarks/layers.py

Each figure is the median over pairs: one forward and backward of the layer, one of the reference, in turn.
Targets: SyncBatchNorm at 16 x 64 x 32 x 32 at most 2.0 (what it computes besides communication), GhostBatchNorm at
64 x 64 x 16 x 16 at most 1.2 for every number of virtual ranks from 2 to 32.
"""

import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from syncnorm import GhostBatchNorm, SyncBatchNorm
from syncnorm.environment import environment

PAIRS = 200
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def forward_backward(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], None]:
    """Return one step of `layer` in training mode: outputs, and gradients of input, weight and bias."""
    inputs = (x, *layer.parameters())

    def step() -> None:
        torch.autograd.grad(layer(x), inputs, dy)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Time one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def compare(layer: nn.Module, shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Return the quartiles of the ratio of `layer` to plain batch norm over pairs of runs."""
    x = torch.randn(shape, device=DEVICE, requires_grad=True)
    dy = torch.randn(shape, device=DEVICE)
    ours = forward_backward(layer.to(DEVICE), x, dy)
    plain = forward_backward(nn.BatchNorm2d(shape[1]).to(DEVICE), x, dy)
    for _ in range(10):
        ours(), plain()
    ratios = [seconds(ours) / seconds(plain) for _ in range(PAIRS)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return low, middle, high


def main() -> None:
    """Print a line a layer."""
    torch.set_num_threads(1)
    here = environment()
    name = here["device"] if DEVICE == "cuda" else f"{here['cpu']}, one thread"
    print(f"{name}; torch {here['torch']}; Python {platform.python_version()}; {PAIRS} pairs")
    print("forward + backward, ratio to F.batch_norm: median (quartiles)")
    cases: list[tuple[str, nn.Module, tuple[int, ...]]] = [
        ("SyncBatchNorm, one rank", SyncBatchNorm(64), (16, 64, 32, 32)),
        *(
            (f"GhostBatchNorm, {ranks} virtual ranks", GhostBatchNorm(64, virtual_ranks=ranks), (64, 64, 16, 16))
            for ranks in (2, 4, 8, 16, 32)
        ),
    ]
    for label, layer, shape in cases:
        low, middle, high = compare(layer, shape)
        print(f"{label:36} {' x '.join(map(str, shape)):18} {middle:5.2f} ({low:.2f} - {high:.2f})")


if __name__ == "__main__":
    main()
