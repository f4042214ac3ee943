"""How costs grow: SyncBatchNorm's collectives with ranks and channels, and results folders with rows.

    python benchmarks/scale.py [--part 1]

1. SyncBatchNorm over 2 to 16 gloo processes, 16 to 4,096 channels, so few values that the collectives are most of a
   step: the layer's own share of it, beside bare collectives of what it sends and beside the alpha-beta model of an
   all-gather (`growth.model`), fitted to the same figures.
2. A study of 10,000 runs with all but one row: seconds until that one trains, and of the report. Both beside a study
   of 300 runs, since a program that starts needs seconds to import torch. Targets: 2 s more until it trains, 10 s in
   all for the report.
3. 100,000 rows: the report, and the merge of two folders that hold half of them each.

A million registered clients are part 3 of `benchmarks/federated.py`.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from growth.collective import row_length
from growth.model import fit
from growth.rows import PEAK, RUNS_OF_A_SEED, study_of, write_folder, write_study
from peers.process import HERE

from syncnorm.environment import environment

RANKS = (2, 4, 8, 16)
CHANNELS = (16, 64, 256, 1024, 4096)
BYTES = 4
"""Of a float32 number."""
TRAINS = "data:"
"""How the line begins that `syncnorm run` prints as its first run is handed out."""


def python(*arguments: str) -> subprocess.Popen[str]:
    """Start Python with the benchmarks and this syncnorm, on one thread."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    settings = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **settings},
    )


def collectives(ranks: Sequence[int] = RANKS, channels: Sequence[int] = CHANNELS) -> None:
    """Part 1: print milliseconds of the layer's collectives by ranks and channels, beside the model."""
    found: dict[tuple[int, int], list[float]] = {}
    for size in ranks:
        launch = (
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={size}",
            "-m",
            "growth.collective",
        )
        process = python(*launch, *map(str, channels))
        out, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the ranks ended:\n{out[-3000:]}")
        medians = json.loads(next(line for line in out.splitlines() if line.startswith("[[")))
        found |= {(size, count): medians[number] for number, count in enumerate(channels)}
    cores = os.cpu_count() or 1
    model = fit([(size, BYTES * row_length(count), found[size, count][3]) for size, count in found], cores)
    print(
        "\n1. SyncBatchNorm's step over gloo, less BatchNorm2d's; the same with bare collectives around BatchNorm2d\n"
        "   (an all-gather, an all-reduce); the all-gather alone, without pause; and that of the model\n"
        f"   (R - 1) max(1, R / {cores}) (alpha + beta bytes), alpha {1e6 * model.alpha:.3g} us, beta "
        f"{1e9 * model.beta:.3g} ns. Medians, in ms."
    )
    print(f"{'ranks':>6}{'channels':>10}{'layer':>10}{'bare':>10}{'layer / bare':>14}{'all-gather':>12}{'model':>10}")
    for (size, count), (step, alone, bare, gather) in found.items():
        predicted, ratio = model.seconds(size, BYTES * row_length(count)), (step - alone) / (bare - alone)
        print(
            f"{size:6}{count:10,}{1e3 * (step - alone):10.3f}{1e3 * (bare - alone):10.3f}{ratio:14.2f}"
            f"{1e3 * gather:12.3f}{1e3 * predicted:10.3f}"
        )
    errors = [abs(found[key][3] / model.seconds(key[0], BYTES * row_length(key[1])) - 1) for key in found]
    middle, most = 100 * statistics.median(errors), 100 * max(errors)
    print(f"The model is off by {middle:.0f} % in the median, {most:.0f} % at most.")


def command(*arguments: str) -> tuple[float, float, float]:
    """Run a command of syncnorm; return seconds until it trains (of a report: none), in all, and peak bytes."""
    begun, trains = time.perf_counter(), 0.0
    process = python("-m", "growth.rows", *arguments)
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith(TRAINS) and not trains:
            trains = time.perf_counter() - begun
    if process.wait():
        raise RuntimeError(f"syncnorm {' '.join(arguments)} failed:\n{''.join(printed)[-3000:]}")
    peak = re.search(f"{PEAK}([0-9]+)", printed[-1])
    assert peak is not None
    return trains, time.perf_counter() - begun, int(peak[1]) / 1e6


def resumed(counts: Sequence[int] = (RUNS_OF_A_SEED, 10_000), repeats: int = 3) -> None:
    """Part 2: print seconds until a study with one missing row trains it, and of its report."""
    print(f"\n2. A study that lacks one row, and its report: medians of {repeats}")
    print(f"{'rows':>8}{'s until it trains':>20}{'more':>8}{'s of the report':>18}{'more':>8}{'peak memory':>16}")
    first: list[float] = []
    with TemporaryDirectory() as place:
        for count in counts:
            file = Path(place) / f"study_{count}.py"
            write_study(file, count)
            taken = []
            for repeat in range(repeats):
                folder = Path(place) / f"{count}-{repeat}"
                rows = write_folder(folder, study_of(count), slice(-1)) + 1
                trains, *_ = command("run", str(file), "--out", str(folder), "--jobs", "1", "--wandb", "off")
                _, report, peak = command("report", str(folder))
                taken.append((trains, report, peak))
            trains, report, peak = (statistics.median(column) for column in zip(*taken, strict=True))
            first = first or [trains, report]
            more, longer = trains - first[0], report - first[1]
            print(f"{rows:8,}{trains:20.2f}{more:8.2f}{report:18.2f}{longer:8.2f}{peak:13.0f} MB")


def merged(count: int = 100_000) -> None:
    """Part 3: print seconds of the report of many rows, and of their merge from two folders."""
    print(f"\n3. {count:,} rows: their report, and the merge of two folders of half of them")
    with TemporaryDirectory() as place:
        study, halves = study_of(count), [Path(place) / "first", Path(place) / "second"]
        rows = sum(write_folder(half, study, slice(number, None, 2)) for number, half in enumerate(halves))
        out = Path(place) / "merged"
        _, seconds, peak = command("merge", *map(str, halves), "--out", str(out))
        print(f"{'merge':10}{rows:9,} rows{seconds:10.2f} s{peak:10.0f} MB")
        _, seconds, peak = command("report", str(out))
        print(f"{'report':10}{rows:9,} rows{seconds:10.2f} s{peak:10.0f} MB")


def main() -> None:
    """Print the machine and the parts asked for."""
    parser = argparse.ArgumentParser(description="How costs grow with ranks, channels and rows.")
    parser.add_argument("--part", type=int, choices=(1, 2, 3), help="only this part")
    part = parser.parse_args().part
    here = environment()
    print(f"{here['cpu']}, {here['cores']} cores, one thread a process; Python {platform.python_version()};")
    print(f"torch {here['torch']}, commit {here['commit']}.")
    for number, one in enumerate((collectives, resumed, merged), start=1):
        if part in (None, number):
            one()
            print(f"Load average at the end: {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
