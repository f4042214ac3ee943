"""What SyncBatchNorm's collectives take by ranks and channels, beside the model of an all-gather: one rank's program.

    torchrun --nproc-per-node R -m growth.collective CHANNELS ...

Rank 0 prints JSON: for each number of channels, the medians in seconds of a layer's step (forward and backward), of
the same step without other ranks, of that step with bare collectives around it, of as many numbers as the layer sends
(an all-gather before, an all-reduce after), and of the all-gather alone.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from syncnorm import SyncBatchNorm

REPEATS = 41
PIXELS = (2, 2, 2)
"""Samples, height and width a rank: so few that the collectives are most of a step."""


def row_length(channels: int) -> int:
    """Return how many numbers a rank sends in the forward: its count, and mean and squares by channel."""
    return 1 + 2 * channels


def median_seconds(step: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median seconds of a step that all ranks begin together."""
    taken = []
    for repeat in range(repeats + 3):
        if dist.is_initialized():
            dist.barrier()
        begun = time.perf_counter()
        step()
        if repeat >= 3:
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def step_of(layer: torch.nn.Module, channels: int) -> Callable[[], object]:
    """Return a step of a layer in training: its outputs, and the gradients of its input."""
    samples, height, width = PIXELS
    x = torch.randn(samples, channels, height, width, requires_grad=True)
    dy = torch.randn_like(x)
    return lambda: torch.autograd.grad(layer(x), (x, *layer.parameters()), dy)


def gather_of(channels: int) -> Callable[[], object]:
    """Return an all-gather of as many float32 numbers as the layer sends in the forward."""
    row = torch.randn(row_length(channels))
    rows = torch.empty(dist.get_world_size() * row.numel())
    gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name since torch 2.13
    return lambda: gather(rows, row)


def bare_step(step: Callable[[], object], channels: int) -> Callable[[], object]:
    """Return a step with the layer's two collectives around it: gloo takes longer to begin one after a pause."""
    gather, sums = gather_of(channels), torch.randn(2, channels)

    def both() -> None:
        gather()
        step()
        dist.all_reduce(sums)

    return both


def measured(channels: Sequence[int]) -> list[list[float]]:
    """Return the four medians for each number of channels; all ranks call it."""
    found = []
    for count in channels:
        alone = step_of(torch.nn.BatchNorm2d(count), count)
        steps = (step_of(SyncBatchNorm(count), count), alone, bare_step(alone, count), gather_of(count))
        found.append([median_seconds(step) for step in steps])
    return found


def main() -> None:
    """Measure as one rank of torchrun."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = measured([int(one) for one in sys.argv[1:]])
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
