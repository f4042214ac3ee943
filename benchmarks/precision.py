"""What each precision of a run buys in time, as ratios in one run, on one CPU thread or one GPU.

    python benchmarks/precision.py

A training step (forward, backward, SGD) in each precision over the same step in float32. Each figure is a ratio of
medians of steps taken in turn; below 1 the precision is faster. On a CPU the time is that of this process alone, so
that other work on the machine does not count. A processor without instructions for bfloat16 (the first line says
which it has) widens every number before it computes.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from syncnorm.config import Optim
from syncnorm.environment import environment
from syncnorm.models import make_model
from syncnorm.training.learner import Learner, make_optimizer
from syncnorm.training.precision import in_precision

REPEATS = 9
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODELS: dict[str, dict[str, Any]] = {"small_cnn": {"width": 16}, "resnet20": {"width": 16}}
SIZES = [8, 16, 32]
"""Height and width of an image."""
BATCHES = [8, 32]
PRECISIONS = ["float32", "float64", "bf16-mixed", "bf16-true", *(["16-mixed"] if DEVICE.type == "cuda" else [])]
FLAGS = ("avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16")
"""What Linux calls a processor's instructions for short types."""


def step_in(precision: str, kind: str, size: int, batch: int) -> Callable[[], float]:
    """Return a function that takes a training step and returns its seconds. A scale of the loss is left out."""
    torch.manual_seed(0)
    model = in_precision(make_model(kind, (3, size, size), 10, **MODELS[kind]), precision, DEVICE).train()
    learner = Learner(model, precision=precision)
    optimizer = make_optimizer(learner.named_parameters(), Optim())
    x = torch.randn(batch, 3, size, size, device=DEVICE, dtype=torch.float64 if precision == "float64" else None)
    y = torch.randint(0, 10, (batch,), device=DEVICE)

    clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time

    def step() -> float:
        start = clock()
        optimizer.zero_grad()
        learner.training_step((x, y), 0).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        learner.forget_losses()
        return clock() - start

    return step


def compare(kind: str, size: int, batch: int, repeats: int = REPEATS) -> dict[str, float]:
    """Return the median seconds of a step, by precision."""
    steps = {precision: step_in(precision, kind, size, batch) for precision in PRECISIONS}
    for step in steps.values():
        step(), step()  # the first ones choose and compile kernels
    taken: dict[str, list[float]] = {precision: [] for precision in steps}
    for _ in range(repeats):
        for precision, step in steps.items():
            taken[precision].append(step())
    return {precision: statistics.median(times) for precision, times in taken.items()}


def short_types() -> str:
    """Return which instructions for short types the processor names, in words."""
    try:
        known = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return "no flags of the processor are known"
    found = [flag for flag in FLAGS if flag in known]
    return f"instructions for short types: {', '.join(found) or 'none'}"


def main(repeats: int = REPEATS) -> None:
    """Print a table: a row a model, image size and batch."""
    torch.set_num_threads(1)
    here = environment()
    name = here["device"] if DEVICE.type == "cuda" else f"{here['cpu']}, one thread, {short_types()}"
    print(f"{name}; torch {torch.__version__}, syncnorm {here['commit']}")
    print("seconds of a training step over those in float32:")
    others = PRECISIONS[1:]
    print(
        f"{'model':<12}{'images':>8}{'batch':>7}" + "".join(f"{name:>12}" for name in others) + f"{'float32, ms':>13}"
    )
    for kind in MODELS:
        for size in SIZES:
            for batch in BATCHES:
                found = compare(kind, size, batch, repeats)
                ratios = "".join(f"{found[name] / found['float32']:>12.2f}" for name in others)
                row = f"{kind:<12}{f'{size}x{size}':>8}{batch:>7}"
                print(f"{row}{ratios}{found['float32'] * 1e3:>13.1f}", flush=True)


if __name__ == "__main__":
    main()
