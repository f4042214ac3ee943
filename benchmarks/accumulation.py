"""What exact gradient accumulation costs beside the usual one, as ratios in one run, on one CPU thread or one GPU.

    python benchmarks/accumulation.py

A step of 32 images in micro-batches, forward and backward: `syncnorm.accumulate`, whose norms see the whole step,
over a plain loop, whose norms see one micro-batch each, and over one batch of 32. Each figure is a ratio of medians
of steps taken in turn.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm import accumulate
from syncnorm.environment import environment
from syncnorm.models import make_model

REPEATS = 15
IMAGES = 32
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODELS: dict[str, dict[str, Any]] = {"small_cnn": {"width": 16}, "resnet20": {"width": 16}}
SIZES = [8, 16, 32]
"""Height and width of an image."""
MICRO_BATCHES = [2, 4, 16]


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """Return a part of a mean over the step."""
    y: Tensor = model(x)
    return y.square().sum() / IMAGES


def seconds(step: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    step()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(model: nn.Module, x: Tensor, micro_batches: int) -> tuple[float, float, float]:
    """Return the medians of exact accumulation, the usual loop, and one batch."""
    parts = x.chunk(micro_batches)

    def loop() -> None:
        for part in parts:
            loss(model, part).backward()

    steps: list[Callable[[], object]] = [
        lambda: accumulate(model, parts, loss),
        loop,
        lambda: loss(model, x).backward(),
    ]
    for step in steps:
        step()
    taken = [[seconds(step) for step in steps] for _ in range(REPEATS)]
    exact, usual, large = (statistics.median(column) for column in zip(*taken, strict=True))
    return exact, usual, large


def main() -> None:
    """Print a table: a row a model, size and number of micro-batches."""
    torch.set_num_threads(1)
    here = environment()
    name = here["device"] if DEVICE == "cuda" else f"{here['cpu']}, one thread"
    print(f"{name}, torch {torch.__version__}, syncnorm {here['commit']}")
    columns = ("exact / loop", "exact / one batch", "loop, ms")
    print(f"{'model':<12}{'images':>8}{'micro-batches':>15}" + "".join(f"{column:>19}" for column in columns))
    for kind, options in MODELS.items():
        model = make_model(kind, (3, 32, 32), 10, **options).to(DEVICE)
        for size in SIZES:
            x = torch.randn(IMAGES, 3, size, size, device=DEVICE)
            for count in MICRO_BATCHES:
                exact, usual, large = compare(model, x, count)
                row = f"{kind:<12}{f'{size}x{size}':>8}{count:>15}"
                print(f"{row}{exact / usual:>19.2f}{exact / large:>19.2f}{usual * 1e3:>19.1f}", flush=True)


if __name__ == "__main__":
    main()
