"""What simulating clients costs beside Flower's Ray simulation and pfl-research, and with a million of them.

    python benchmarks/federated.py [--part 1] [--pfl-python PATH] [--into FOLDER]

All contenders of a part take turns in one run, round by round, so what is compared is ratios: the median over rounds,
in brackets the quartiles. The first round of each does not count. pfl may live in an environment of its own: it needs
pfl and torch alone, and takes its ranks from torchrun (0.6 does, without Horovod). With --into, each part is written
to a file of its own, and the same command goes on with the parts that are not there.

1. Clients that train, the same steps on the same samples. Targets: Ray at least 6 times, pfl at least 2 times
   the seconds of syncnorm's default engine.
2. Clients that do nothing, on CohortGrid and on Ray. Target: at least 15 times.
3. A million registered clients beside a thousand, a hundred of them a round. Targets: at most 1.3 times the seconds,
   less than 2 GB of memory.
4. Clients over two ranks beside one process, and beside pfl on as many, one thread each, the same steps on the same
   samples. Target: at least 1.8 times as fast as one process on two free cores, and faster than pfl on as many.
5. Clients with a ResNet-20 and images of CIFAR-10's size, whose arithmetic decides: one process, two ranks, Ray's two
   processes and pfl. Target: at least as fast as each on as many processes.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peers.ours import COHORT, begin, played, run_of, task_of
from peers.over_ranks import run_over_ranks
from peers.process import Contender, alternate
from peers.task import BATCH, State, farthest

from syncnorm.config import Clients
from syncnorm.environment import environment
from syncnorm.federated.engines.engine import AutoEngine
from syncnorm.federated.federation import Federation
from syncnorm.files import write_file

CPU = torch.device("cpu")
PFL = "pfl-research"
EVERY_CORE = "syncnorm, cohort, all cores"
VERSION = "from importlib.metadata import version; print(version('{0}'))"


def quartiles(times: Sequence[float], reference: Sequence[float]) -> str:
    """Return the median and quartiles of the ratios of two contenders' rounds, as text."""
    ratios = [one / other for one, other in zip(times, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:6.2f} ({low:.2f} - {high:.2f})"


def has(package: str, python: str = sys.executable) -> bool:
    """Return whether a Python can import a package."""
    if python == sys.executable:
        return find_spec(package) is not None
    return subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode == 0


def version(package: str, python: str = sys.executable) -> str:
    """Return the version of a package in some Python, or that it is missing."""
    found = subprocess.run([python, "-c", VERSION.format(package)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "not installed"


def training(python_of_pfl: str = sys.executable, rounds: int = 15, count: int = 20) -> dict[str, State]:
    """Part 1: print seconds a round of clients that train, and how far the models are apart; return these."""
    engines = {name: AutoEngine(name) for name in ("loop", "cohort", "auto")}
    world = Clients(count=count, rounds=rounds + 1, batch=BATCH, equal_size=1.0)
    federation = Federation(run_of(world), CPU)
    ours = {f"syncnorm, {name}": begin(federation, engine) for name, engine in engines.items()}
    ours[EVERY_CORE] = begin(federation, AutoEngine("cohort"))
    task = task_of(federation, rounds + 1)
    samples = max(task.samples(client) for client in range(count))
    print(
        f"\n1. {count} clients x {samples} digits (8x8), two-layer CNN with batch norm, one epoch of SGD in batches"
    )
    print(f"   of {BATCH} a round, the same first model and batches for all: median of {rounds} rounds")
    with TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "task"
        task.save(path)
        others: dict[str, Contender] = {}
        if has("ray"):
            arguments = ("ray", str(path), f"{folder}/Flower, Ray")
            others["Flower, Ray"] = stack.enter_context(Contender("with_flower", *arguments))
        if has("pfl", python_of_pfl):
            contender = Contender("with_pfl", str(path), f"{folder}/{PFL}", python=python_of_pfl)
            others[PFL] = stack.enter_context(contender)
        for contender in others.values():
            contender.wait()
        threads = {EVERY_CORE: os.cpu_count() or 1}
        plays = [partial(played, one, threads.get(name, 1)) for name, one in ours.items()]
        seconds = alternate([*plays, *(contender.play for contender in others.values())], rounds)
        states: dict[str, State] = {name: one.server.state for name, one in ours.items()}
        for name, contender in others.items():
            contender.end()
            contender.wait()
            states[name] = torch.load(Path(folder) / name, weights_only=True)
    default = list(states).index("syncnorm, auto")
    print(f"{'':28}{'s a round':>10}   times syncnorm, auto     accuracy   parameters apart by at most")
    for (name, state), times in zip(states.items(), seconds, strict=True):
        print(
            f"{name:28}{statistics.median(times):10.3f}   {quartiles(times, seconds[default]):24}"
            f"{task.accuracy(state):9.3f}   {farthest(states['syncnorm, auto'], state):.0e}"
        )
    print(f"auto trained by {engines['auto'].name}; on one thread where nothing else is said, Ray in two processes.")
    if PFL in states:
        print("pfl does not average running statistics, which its accuracy is with: they pass from client to client.")
    return states


def doing_nothing(rounds: int = 5, count: int = 2000, ray: bool = True) -> None:
    """Part 2: print milliseconds a client that sends back what it gets, a tenth of all in a round."""
    print(f"\n2. Clients that send back what they get, {count // 10} of {count} a round: median of {rounds} rounds")
    with ExitStack() as stack:
        engines = {"CohortGrid": "grid"} | ({"Flower, Ray": "ray"} if ray and has("ray") else {})
        contenders = [
            stack.enter_context(Contender("with_flower", engine, "noop", str(count))) for engine in engines.values()
        ]
        for contender in contenders:
            contender.wait()
        seconds = alternate([contender.play for contender in contenders], rounds)
        for contender in contenders:
            contender.end()
        replies = [contender.wait()["replies"] for contender in contenders]
    print(f"{'':24}{'ms a client':>12}   times CohortGrid         replies")
    for name, times, replied in zip(engines, seconds, replies, strict=True):
        each = 1000 * statistics.median(times) / (count // 10)
        print(f"{name:24}{each:12.2f}   {quartiles(times, seconds[0]):24}{replied:8}")


def scale(rounds: int = 10, counts: Sequence[int] = (1000, 1_000_000)) -> None:
    """Part 3: print seconds a round and memory of few and many registered clients."""
    print(f"\n3. Registered clients, {COHORT} of them in a round, FedBN, store on disk: median of {rounds} rounds")
    with ExitStack() as stack:
        contenders = [stack.enter_context(Contender("ours", str(count))) for count in counts]
        for contender in contenders:
            contender.wait()
        seconds = alternate([contender.play for contender in contenders], rounds)
        for contender in contenders:
            contender.end()
        words = [contender.wait() for contender in contenders]
    print(f"{'':24}{'s a round':>10}   times {counts[0]:<19,}peak memory")
    for count, times, said in zip(counts, seconds, words, strict=True):
        ratio, memory = quartiles(times, seconds[0]), said["peak"] / 1e6
        print(f"{count:<24,}{statistics.median(times):10.3f}   {ratio:24}{memory:8.0f} MB")
    with Contender("nothing") as nothing:
        torch_alone = nothing.wait() / 1e6
    imported = words[0]["imported"] / 1e6
    print(f"of which importing torch takes {torch_alone:.0f} MB, all that syncnorm imports {imported:.0f} MB")


def over_ranks(
    python_of_pfl: str = sys.executable,
    rounds: int = 10,
    count: int = 100,
    epochs: int = 10,
    engines: Sequence[str] = ("loop", "cohort"),
) -> dict[str, State]:
    """Part 4: print seconds a round of one process and of two ranks, ours and pfl's; return the last models."""
    print(f"\n4. {count} clients in every round, {epochs} epochs of 32 digits each: median of {rounds} rounds")
    with TemporaryDirectory() as folder, ExitStack() as stack:
        contenders: dict[tuple[str, int], Contender] = {}
        for engine in engines:
            for ranks in (1, 2):
                rest = ("two_layer_cnn", str(count), str(epochs), engine, f"{folder}/{engine} {ranks}")
                contenders[engine, ranks] = stack.enter_context(Contender("over_ranks", *rest, ranks=ranks))
        if has("pfl", python_of_pfl):
            path = Path(folder) / "task"
            run = run_over_ranks("two_layer_cnn", count, epochs)
            task_of(Federation(run, CPU), rounds + 1).save(path)
            for ranks in (1, 2):
                rest = (str(path), f"{folder}/{PFL} {ranks}")
                contender = Contender("with_pfl", *rest, python=python_of_pfl, ranks=ranks)
                contenders[PFL, ranks] = stack.enter_context(contender)
        for contender in contenders.values():
            contender.wait()
        turns = alternate([contender.play for contender in contenders.values()], rounds)
        seconds = dict(zip(contenders, turns, strict=True))
        for contender in contenders.values():
            contender.end()
        busy = {who: contender.wait()["busy"] for who, contender in contenders.items()}
        files = {f"{name}, {ranks}": f"{folder}/{name} {ranks}" for name, ranks in contenders}
        states: dict[str, State] = {who: torch.load(file, weights_only=True) for who, file in files.items()}
    print(
        f"{'':27}{'s a round':>10}   {'one process / this':22}{'pfl on as many / this':25}{'CPU s, busiest rank':>20}"
        "   parameters apart by at most"
    )
    first = next(iter(states.values()))
    for (name, ranks), times in seconds.items():
        to_one = quartiles(seconds[name, 1], times)
        to_pfl = quartiles(seconds[PFL, ranks], times) if (PFL, ranks) in seconds else "no pfl"
        who = f"{name}, {'one process' if ranks == 1 else f'{ranks} ranks'}"
        print(
            f"{who:27}{statistics.median(times):10.3f}   {to_one:22}{to_pfl:25}{busy[name, ranks]:20.3f}"
            f"   {farthest(first, states[f'{name}, {ranks}']):.0e}"
        )
    return states


def arithmetic(python_of_pfl: str = sys.executable, rounds: int = 5, count: int = 10) -> dict[str, State]:
    """Part 5: print seconds a round of clients whose arithmetic is nearly all that they cost; return the models."""
    network = "resnet20"
    federation = Federation(run_over_ranks(network, count, 1), CPU)
    task = task_of(federation, rounds + 1)
    samples, shape = task.samples(0), " x ".join(map(str, task.x.shape[1:]))
    print(f"\n5. {count} clients x {samples} images ({shape}), ResNet-20, one epoch of SGD in batches of {BATCH} a")
    print(f"   round, the same first model and batches for all: median of {rounds} rounds")
    with TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "task"
        task.save(path)
        contenders: dict[tuple[str, int], Contender] = {}

        def add(who: str, module: str, *rest: str, processes: int, **options: Any) -> None:
            contender = Contender(module, *rest, f"{folder}/{who} {processes}", **options)
            contenders[who, processes] = stack.enter_context(contender)

        for ranks in (1, 2):
            add("syncnorm", "over_ranks", network, str(count), "1", "auto", processes=ranks, ranks=ranks)
            if has("pfl", python_of_pfl):
                add(PFL, "with_pfl", str(path), processes=ranks, ranks=ranks, python=python_of_pfl)
        if has("ray"):
            add("Flower, Ray", "with_flower", "ray", str(path), processes=2)
        for contender in contenders.values():
            contender.wait()
        turns = alternate([contender.play for contender in contenders.values()], rounds)
        for contender in contenders.values():
            contender.end()
            contender.wait()
        seconds = dict(zip(contenders, turns, strict=True))
        states: dict[str, State] = {
            f"{who}, {processes}": torch.load(f"{folder}/{who} {processes}", weights_only=True)
            for who, processes in contenders
        }
    print(f"{'processes':28}{'s a round':>10}   times syncnorm on as many   parameters apart by at most")
    for who, processes in sorted(seconds, key=lambda one: one[1]):
        times, name = seconds[who, processes], f"{who}, {processes}"
        ratio, apart = quartiles(times, seconds["syncnorm", processes]), farthest(states["syncnorm, 1"], states[name])
        print(f"{name:28}{statistics.median(times):10.3f}   {ratio:25}   {apart:.0e}")
    return states


class Both(StringIO):
    """What is printed, printed and kept."""

    def write(self, text: str) -> int:
        """Print and keep."""
        sys.__stdout__.write(text)  # type: ignore[union-attr]
        return super().write(text)


def heading(python_of_pfl: str) -> None:
    """Print the machine, the versions, the commit, and what else the machine does."""
    here = environment()
    versions = [f"{name} {version(name)}" for name in ("torch", "flwr", "ray")]
    print(f"{here['cpu']}, {here['cores']} cores, one thread a process; Python {platform.python_version()};")
    print(f"{', '.join(versions)}, pfl {version('pfl', python_of_pfl)}; commit {here['commit'][:12]}.")
    print(f"Contenders take turns; median ratio (quartiles). Load average before: {os.getloadavg()[0]:.1f}")


def main() -> None:
    """Print the machine and the parts asked for."""
    parser = argparse.ArgumentParser(description="Federated benchmarks, as ratios within one run.")
    parser.add_argument("--part", type=int, choices=(1, 2, 3, 4, 5), help="only this part")
    parser.add_argument("--pfl-python", default=sys.executable, help="the Python that has pfl, if it is another one")
    parser.add_argument(
        "--into", type=Path, help="folder for what each part prints; a part that is there is left out"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    python = arguments.pfl_python
    parts: list[Callable[[], object]] = [
        *(partial(training, python), doing_nothing, scale),
        *(partial(over_ranks, python), partial(arithmetic, python)),
    ]
    for number, part in enumerate(parts, 1):
        file = arguments.into and arguments.into / f"part-{number}.txt"
        if arguments.part not in (None, number):
            continue
        if file and file.exists():
            print(f"{file} is there: remove it to measure this part again.")
            continue
        with redirect_stdout(Both()) as said:
            heading(python)
            part()
            # Whoever waits, as Ray's simulation does, loses less on a busy machine than whoever computes.
            print(f"Load average, the contenders included: {os.getloadavg()[0]:.1f}\n")
        if file:
            write_file(file, said.getvalue())


if __name__ == "__main__":
    main()
