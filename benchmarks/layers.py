"""What the layers cost beside PyTorch's batch norm, as ratios in one run, on one CPU thread or one GPU.

    python benchmarks/layers.py

Each figure is a ratio of medians: forward and backward of the layer and of PyTorch's layer, one after the other in
turn, so that both meet the same disturbances. `F.batch_norm` by itself stands beside, to show what a module costs.

Shapes are sorted by the number of values. At the smallest a step takes less than 0.1 ms on a CPU, nearly all of it
fixed cost. Targets: SyncBatchNorm with one rank at most 1.05, and GhostBatchNorm at most 1.3, at every shape.
GhostBatchNorm misses it where a step takes less than about 0.2 ms: it repeats weight, bias and statistics for every
rank and takes rank 0's back, which is eight small operations more in the forward and four nodes more in the backward,
of a few microseconds each.
"""

import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm import GhostBatchNorm, SyncBatchNorm
from syncnorm.environment import environment

PAIRS = 200
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(64, 128), (32, 64, 4, 4), (32, 32, 8, 8), (32, 16, 16, 16), (16, 64, 32, 32), (64, 64, 16, 16)]
RANKS = [1, 2, 4, 8, 16]
SYNC_TARGET, GHOST_TARGET = 1.05, 1.3


class Bare(nn.BatchNorm2d):
    """`F.batch_norm` without what a module's forward does around it."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the batch, and move the running statistics, without counting."""
        held, own = self._buffers, self._parameters
        mean, var, weight, bias = held["running_mean"], held["running_var"], own["weight"], own["bias"]
        return F.batch_norm(input, mean, var, weight, bias, True, 0.1, 1e-5)


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


def compare(layer: nn.Module, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return the ratio of the median times of `layer` and PyTorch's batch norm, and the latter in milliseconds."""
    x = torch.randn(shape, device=DEVICE, requires_grad=True)
    dy = torch.randn(shape, device=DEVICE)
    plain = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    steps = [forward_backward(each.to(DEVICE), x, dy) for each in (layer, plain(shape[1]))]
    for _ in range(20):
        for step in steps:
            step()
    taken = [[seconds(step) for step in steps] for _ in range(PAIRS)]
    ours, theirs = (statistics.median(column) for column in zip(*taken, strict=True))
    return ours / theirs, theirs * 1e3


def main() -> None:
    """Print a table: a row a shape, a column a layer."""
    torch.set_num_threads(1)
    here = environment()
    name = here["device"] if DEVICE == "cuda" else f"{here['cpu']}, one thread"
    print(f"{name}; torch {here['torch']}; Python {platform.python_version()}; {PAIRS} pairs")
    print("forward + backward over torch.nn.BatchNorm1d or 2d, ratio of medians; * above the target")
    print(f"{'shape':20}{'ms':>8}{'F alone':>9}{'Sync':>8}" + "".join(f"{f'Ghost {r}':>10}" for r in RANKS))
    for shape in SHAPES:
        channels = shape[1]
        bare, milliseconds = compare(Bare(channels), shape)
        sync, _ = compare(SyncBatchNorm(channels), shape)
        above = "*" if sync > SYNC_TARGET else " "
        row = f"{' x '.join(map(str, shape)):20}{milliseconds:8.3f}{bare:9.2f}{sync:7.2f}{above}"
        for ranks in RANKS:
            if shape[0] < 2 * ranks and len(shape) == 2:
                row += f"{'-':>10}"
                continue
            ghost, _ = compare(GhostBatchNorm(channels, virtual_ranks=ranks), shape)
            row += f"{ghost:9.2f}{'*' if ghost > GHOST_TARGET else ' '}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
