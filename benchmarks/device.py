"""What a device gives: bandwidth of the norms, virtual ranks, clients in a cohort, several runs at once.

    python benchmarks/device.py [PART ...] [--device cuda] [--small]

Parts, each a table; contenders of a row take turns, and figures are medians:

bandwidth   SyncBatchNorm with one rank beside `nn.BatchNorm2d` and `F.batch_norm`: the bytes that a step has to move,
            over its time. The forward reads x twice and writes y; the backward reads x and dy twice and writes dx: 8
            times the input. Per cent of what copying a large tensor reaches on the same device.
virtual     GhostBatchNorm with R virtual ranks beside `nn.BatchNorm2d`, as ratios.
cohort      Rounds of clients with 3x32x32 images and ResNet-20: the cohort engine beside the loop.
several     A study of equal runs, by one worker and by several that share the device: seconds a run.

`--small` makes everything tiny: it shows that the parts work, and measures nothing.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import syncnorm
from syncnorm import GhostBatchNorm, SyncBatchNorm
from syncnorm.config import Clients, Data, Devices, Optim, Run
from syncnorm.environment import environment
from syncnorm.federated.client.states import InMemory
from syncnorm.federated.engines.engine import AutoEngine
from syncnorm.federated.federation import Federation
from syncnorm.federated.server.network import InProcess
from syncnorm.federated.server.rounds import Rounds
from syncnorm.study import Curve, Study, run_study
from syncnorm.study.rows import read

MOVED = 8
"""How often a step of batch norm has to move its input at least: see `bandwidth` above."""
WARM_UP = 3
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


@dataclass(frozen=True)
class Scale:
    """How large the work is."""

    shapes: Sequence[tuple[int, ...]] = ((64, 64, 56, 56), (64, 256, 28, 28), (128, 512, 14, 14), (32, 64, 8, 8))
    copied: int = 2**28
    """Elements of the tensor that is copied."""
    repeats: int = 50
    ranks: Sequence[int] = (2, 8, 32)
    clients: Sequence[int] = (10, 100)
    samples: int = 256
    """Training samples of each client."""
    rounds: int = 3
    size: int = 32
    """Height and width of an image."""
    width: int = 16
    """Channels of the first layer."""
    workers: Sequence[int] = (1, 2, 4)
    runs: int = 8
    epochs: int = 4


SMALL = Scale(((4, 8, 8, 8),), 2**16, 3, (2,), (3,), 40, 1, 8, 4, (1,), 1, 1)


@syncnorm.register_data("noise")
def noise(samples: int = 1000, size: int = 32) -> dict[str, Any]:
    """Random images of ten classes: there is nothing to learn in them, and as much to compute as in others."""
    draw = np.random.default_rng(0)
    parts = {"train": samples, "test": 100}
    return {
        name: (draw.standard_normal((count, 3, size, size), dtype=np.float32), np.arange(count) % 10)
        for name, count in parts.items()
    }


class Bare(nn.BatchNorm2d):
    """`F.batch_norm` without what a module's forward does around it."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the batch, and move the running statistics, without counting."""
        held, own = self._buffers, self._parameters
        mean, var, weight, bias = held["running_mean"], held["running_var"], own["weight"], own["bias"]
        return F.batch_norm(input, mean, var, weight, bias, True, 0.1, 1e-5)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of some work, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def medians(contenders: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Return the median seconds of contenders that take turns."""
    for one in contenders * WARM_UP:
        one()
    taken = [[timed(one, device) for one in contenders] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def steps(layers: Sequence[nn.Module], x: Tensor) -> list[Callable[[], object]]:
    """Return what takes a forward and a backward step of each layer."""
    dy = torch.randn_like(x)
    return [lambda one=one: torch.autograd.grad(one(x), (x, *one.parameters()), dy) for one in layers]  # type: ignore[misc]


def words(shape: Sequence[int]) -> str:
    """Return a shape as text."""
    return f"{' x '.join(map(str, shape)):22}"


def bandwidth(device: torch.device, scale: Scale) -> None:
    """Print the bandwidth that forward and backward of each layer reach."""
    source = torch.zeros(scale.copied, device=device)
    target, size = torch.empty_like(source), source.numel() * source.element_size()
    (seconds,) = medians([lambda: target.copy_(source)], scale.repeats, device)
    reached = 2 * size / seconds
    print(f"copying {size / 1e6:.0f} MB: {reached / 1e9:.1f} GB/s")
    kinds = {"F.batch_norm": Bare, "BatchNorm2d": nn.BatchNorm2d, "SyncBatchNorm": SyncBatchNorm}
    print(f"{'shape':22}{'type':>10}{'layout':>15}" + "".join(f"{name:>22}" for name in kinds))
    for shape, kind, layout in product(scale.shapes, TYPES, LAYOUTS):
        x = torch.randn(shape, device=device).to(TYPES[kind]).contiguous(memory_format=LAYOUTS[layout])
        layers = [one(shape[1]).to(device) for one in kinds.values()]
        times = medians(steps(layers, x.requires_grad_()), scale.repeats, device)
        rates = [MOVED * x.numel() * x.element_size() / one for one in times]
        row = "".join(f"{f'{rate / 1e9:.1f} GB/s {100 * rate / reached:4.0f} %':>22}" for rate in rates)
        print(f"{words(shape)}{kind:>10}{layout:>15}{row}", flush=True)


def virtual(device: torch.device, scale: Scale) -> None:
    """Print what virtual ranks cost, over one batch norm."""
    print(f"{'shape':22}{'ms':>9}" + "".join(f"{f'{ranks} ranks':>10}" for ranks in scale.ranks))
    for shape in scale.shapes:
        ghosts = [GhostBatchNorm(shape[1], virtual_ranks=ranks) for ranks in scale.ranks]
        layers = [one.to(device) for one in (nn.BatchNorm2d(shape[1]), *ghosts)]
        x = torch.randn(shape, device=device, requires_grad=True)
        plain, *others = medians(steps(layers, x), scale.repeats, device)
        ratios = "".join(f"{one / plain:10.2f}" for one in others)
        print(f"{words(shape)}{plain * 1e3:9.3f}{ratios}", flush=True)


def cohort(device: torch.device, scale: Scale) -> None:
    """Print seconds of a round, by engine; the first round of each does not count."""
    print(f"{'clients':>8}{'samples each':>14}{'loop, s':>10}{'cohort, s':>11}{'loop / cohort':>15}")
    for count in scale.clients:
        world = Clients(count=count, rounds=scale.rounds + 1, batch=32, method="fedbn")
        data = Data("noise", options={"samples": count * scale.samples, "size": scale.size})
        run = Run(data, "resnet20", {"width": scale.width}, world=world, optim=Optim(lr=0.05))
        federation = Federation(run, device)
        networks = [InProcess(federation, InMemory(), AutoEngine(engine)) for engine in ("loop", "cohort")]
        contenders = [Rounds(federation, network) for network in networks]
        seconds = [[timed(one.play, device) for one in contenders] for _ in range(scale.rounds + 1)][1:]
        loop, together = (statistics.median(column) for column in zip(*seconds, strict=True))
        print(f"{count:8}{scale.samples:14}{loop:10.2f}{together:11.2f}{loop / together:15.2f}", flush=True)


def several(device: torch.device, scale: Scale) -> None:
    """Print seconds a run where workers share the device: a small network on digits."""
    base = Run(
        Data("digits", size=scale.size),
        "small_cnn",
        {"width": scale.width},
        world=Devices(global_batch=32),
        optim=Optim(epochs=scale.epochs),
    )
    plot = Curve("per_device_batch", "norm")
    study = Study("several", "How many at once?", base, {"per_device_batch": [32]}, scale.runs, figures=(plot,))
    print(f"{'workers':>8}{'runs':>6}{'training, s a run':>20}{'start and report too':>23}")
    for workers in scale.workers:
        with TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            whole = timed(lambda out=out, jobs=workers: run_study(study, out, jobs=jobs, wandb="off"), device)  # type: ignore[misc]
            rows = read(out).finished
        inside = statistics.median(row["seconds"] for row in rows)
        print(f"{workers:8}{len(rows):6}{inside:20.2f}{whole / len(rows):23.2f}", flush=True)


PARTS = {"bandwidth": bandwidth, "virtual": virtual, "cohort": cohort, "several": several}


def main() -> None:
    """Print the machine and the parts asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=PARTS, nargs="*", help="all of them if none is named")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny work, to see that the parts run")
    arguments = parser.parse_args()
    if (arguments.device == "cuda") != torch.cuda.is_available():
        there = "a" if torch.cuda.is_available() else "no"
        raise SystemExit(f"device: --device is {arguments.device}, and this process has {there} CUDA device.")
    torch.set_num_threads(1)
    here = environment()
    name = here["device"] if arguments.device == "cuda" else f"{here['cpu']}, one thread"
    print(f"{name}; torch {torch.__version__}; Python {platform.python_version()}; syncnorm {here['commit']}")
    print(f"load average {os.getloadavg()[0]:.1f}")
    if arguments.small:
        print("tiny work: this measures nothing")
    for part in arguments.part or PARTS:
        print(f"\n{part}", flush=True)
        PARTS[part](torch.device(arguments.device), SMALL if arguments.small else Scale())


if __name__ == "__main__":
    main()
