"""Runs in one computation beside the same runs one by one: `syncnorm run --stack`.

    python benchmarks/stacked.py [--part 1] [--small]

Contenders take turns in one process, on one thread. Figures are seconds of processor time, which other work on the
machine changes less than wall time (on a GPU, of wall time), and ratios: how many times as fast the stack is.

1. A training step, under Lightning's Trainer for one run and of the stack for all, by model, image size, virtual
   ranks and runs: the median step of each turn, and of the turns the median, in brackets the least and the most.
2. Whole runs of a line, with their measurements: what a study gains. And how far their rows are apart.

`--small` makes everything tiny: it shows that the parts work, and measures nothing.
"""

import argparse
import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch

from syncnorm.config import Data, Devices, Execution, Norm, Optim, Result, Run, silent
from syncnorm.devices import fit
from syncnorm.devices.prepare import prepare
from syncnorm.devices.stacked import ready
from syncnorm.environment import environment
from syncnorm.training.building import device_of_rank
from syncnorm.training.stacked import choice
from syncnorm.worlds import forget

STACKS = (1, 5, 20)
MODELS = {"small_cnn": (8, 16, 32), "strided_cnn": (16, 32)}
RANKS = 8
BATCH = 32


def run_of(model: str, size: int, ranks: int, **more: object) -> Run:
    """Return a run of 32 images a step, with batch norm on so many virtual ranks."""
    data = Data("digits-photo", size=size, train_limit=512, test_limit=200)
    world = Devices(ranks=ranks, per_device_batch=BATCH // ranks)
    return Run(data, model, world=world, optim=Optim(epochs=1), **more)  # type: ignore[arg-type]


def line(run: Run, count: int, seeds: bool = False) -> list[Run]:
    """Return runs that differ in learning rate, or in their seed."""
    if seeds:
        return [replace(run, seed=seed) for seed in range(count)]
    return [replace(run, optim=replace(run.optim, lr=0.01 * (number + 1))) for number in range(count)]


def together(runs: Sequence[Run]) -> tuple[tuple[Run, None], ...]:
    """Return the runs as an execution names those of a stack."""
    return tuple((run, None) for run in runs)


def steps(run: Run, count: int, turns: int) -> list[float]:
    """Return how many times as fast a step of a stack is, turn by turn."""
    runs, device = line(run, count), device_of_rank()
    members = list(ready(runs[0], prepare(runs[0], device), device, Execution(together=together(runs))))
    assert len(members) == count
    return [count * choice.seconds_alone(members[0]) / choice.seconds_together(members) for _ in range(turns)]


def step_table(models: dict[str, tuple[int, ...]], stacks: Sequence[int], turns: int) -> None:
    """Part 1: print how many times as fast a step is."""
    print(f"\n1. A step of {BATCH} images a run: how many times as fast in one computation; {turns} turns")
    print(f"{'':32}" + "".join(f"{f'{count} runs':>22}" for count in stacks))
    for model, sizes in models.items():
        for size in sizes:
            cells = []
            for count in stacks:
                found = steps(run_of(model, size, RANKS), count, turns)
                cells.append(f"{median(found):.2f} ({min(found):.2f} - {max(found):.2f})")
            label = f"{model}, {size}x{size}, {RANKS} ranks"
            print(f"{label:32}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


def timed(runs: Sequence[Run], named: tuple[tuple[Run, None], ...] = ()) -> tuple[float, list[Result]]:
    """Return the seconds that runs take, in one computation if they are named, and their results."""
    forget()
    began = choice.now(device_of_rank())
    found = [fit(run, Execution(report=silent, together=named)) for run in runs]
    return choice.now(device_of_rank()) - began, found


def apart(got: Sequence[Result], expected: Sequence[Result]) -> dict[str, float]:
    """Return by how much metrics of the same runs differ at most."""
    names = ("train_loss", "loss", "accuracy")
    return {
        name: max(abs(one.metrics[name] - other.metrics[name]) for one, other in zip(got, expected, strict=True))
        for name in names
    }


def whole_runs(cases: Sequence[tuple[int, str, str, int]], epochs: int) -> None:
    """Part 2: print how many times as fast runs with different seeds are, and how far their rows are apart."""
    print(f"\n2. Runs of small_cnn of {epochs} epochs with their measurements, of different seeds")
    print(f"{'':44}{'times as fast':>14}   rows apart by at most: train loss, loss, accuracy")
    for size, norm, precision, count in cases:
        run = run_of("small_cnn", size, RANKS, norm=Norm(norm), precision=precision)
        runs = line(replace(run, optim=replace(run.optim, epochs=epochs)), count, seeds=True)
        stacked, got = timed(runs, together(runs))
        alone, expected = timed(runs)
        far = ", ".join(f"{value:.0e}" for value in apart(got, expected).values())
        label = f"{size}x{size}, {RANKS} ranks, {norm}, {precision}, {count} runs"
        print(f"{label:44}{alone / stacked:14.2f}   {far}", flush=True)


def main() -> None:
    """Print the machine and the parts asked for."""
    parser = argparse.ArgumentParser(description="Runs in one computation beside the same runs one by one.")
    parser.add_argument("--part", type=int, choices=(1, 2), help="only this part")
    parser.add_argument("--small", action="store_true", help="tiny: it measures nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    here = environment()
    print(
        f"{here['cpu']}, {here['cores']} cores, one thread; Python {platform.python_version()}, torch {here['torch']}"
    )
    if arguments.part in (None, 1):
        models, stacks = ({"small_cnn": (8,)}, (1, 2)) if arguments.small else (MODELS, STACKS)
        step_table(models, stacks, turns=1 if arguments.small else 2)
    if arguments.part in (None, 2):
        every = [(8, "bn", "float32", 5), (8, "bn", "float32", 20), (8, "gn", "float32", 5), (8, "bn", "float64", 5)]
        cases = [(8, "bn", "float32", 2)] if arguments.small else [*every, (16, "bn", "float32", 5)]
        whole_runs(cases, epochs=1 if arguments.small else 3)
    print(f"Load average, the contenders included: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
