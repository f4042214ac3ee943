"""SIGKILL at random moments of a training: while it starts, steps, saves, is evaluated; of all ranks, or of one.

A case is a training that is killed some times and then goes on to its end, which must be that of an undisturbed one,
to the bit: metrics, history, details, and where they are at hand all tensors of the model. Of ranks of which one is
killed, the others must end by themselves, once all have begun their first step; before, while they may be waiting in
the launch's store, a launcher ends them, as torchrun does.
"""

import faulthandler
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kill_program
import resume_program
from fates import Fate, codes_of, until
from small_runs import small_run

START = 0.4
"""Seconds that a forked process takes about to come to its first step."""


@dataclass(frozen=True)
class Training:
    """A training that can be killed."""

    train: Callable[[Path | None, Path], None]
    """Trains in this process, with a checkpoint or without, and writes the answer."""
    steps: int
    pause: float
    ranks: int = 1
    kills: int = 4
    one: bool = False
    """Whether one rank is killed, and not all at once."""


def _lightning(name: str, kills: int) -> Training:
    run, ranks = kill_program.RUNS[name]

    def train(checkpoint: Path | None, answer: Path) -> None:
        kill_program.train(run, checkpoint, answer)

    return Training(train, kill_program.STEPS, kill_program.PAUSE, ranks, kills)


def _clients(name: str, ranks: int = 1) -> Training:
    run, store = resume_program.RUNS[name]
    if ranks > 1:
        world = {"engine": "torchrun", "rank_engine": run.world.engine, "ranks": ranks}  # type: ignore[union-attr]
        run = replace(run, world=replace(run.world, **world))

    def train(checkpoint: Path | None, answer: Path) -> None:
        resume_program.play(run, store, checkpoint, answer)

    return Training(train, resume_program.ROUNDS, resume_program.PAUSE, ranks, 3)


resume_program.RUNS["two ranks"] = (
    small_run(rounds=resume_program.ROUNDS, count=4, method="silobn", algorithm="scaffold", participation=0.7),
    "memory",
)
TRAININGS: dict[str, Training] = {
    **{f"devices, {name}": _lightning(name, 4) for name in kill_program.RUNS if name.startswith("virtual")},
    **{name: _lightning(name, 4) for name in ("domains", "domains, best")},
    **{f"devices, {name}": _lightning(name, 4) for name in ("two ranks", "two ranks, best")},
    "devices, two ranks, one killed": replace(_lightning("two ranks, one killed", 6), one=True),
    "devices, four ranks": _lightning("four ranks", 2),
    "domains, two ranks": _lightning("domains, two ranks", 4),
    "domains, two ranks, one killed": replace(_lightning("domains, two ranks", 4), one=True),
    **{f"clients, {name}": _clients(name) for name in resume_program.RUNS if name != "two ranks"},
    "clients, two ranks": _clients("two ranks", 2),
    "clients, two ranks, one killed": replace(_clients("two ranks", 2), one=True),
}
SMALL = ("devices, virtual, copies", "domains, two ranks, one killed", "clients, scaffold on disk")


def lacks() -> str:
    """Lack nothing."""
    return ""


def cases(small: bool) -> list[str]:
    """Return the names of the trainings."""
    return list(SMALL if small else TRAININGS)


def play(name: str, folder: Path) -> Counter[str]:
    """Kill a training some times, and compare what it ends with."""
    training, fate = TRAININGS[name], Fate("kills", name)
    whole = end_of(training, start(training, None, folder / "whole"), folder / "whole")
    kills = 0
    for life in range(training.kills):
        answer = folder / f"life {life}"
        children = start(training, folder / "checkpoint", answer)
        kills += strike(training, children, answer, fate)
    assert kills, "it ended before every moment at which it was to be killed"
    last, saved = folder / "last", list((folder / "checkpoint").glob("*newest.pt"))
    resumed = end_of(training, start(training, folder / "checkpoint", last), last)
    first = max(answer["first"] for answer in resumed)
    assert first > 0 or not saved, "it began anew although it had a checkpoint"
    assert [one["result"] for one in resumed] == [one["result"] for one in whole], "it did not end as if undisturbed"
    return Counter({f"SIGKILLs of {kind_of(name)}": kills, f"ends of {kind_of(name)}, identical to the bit": 1})


def kind_of(name: str) -> str:
    """Return what a training counts as."""
    world = name.split(",")[0]
    return f"{world} on ranks" if "ranks" in name else f"{world} in one process"


def start(training: Training, checkpoint: Path | None, answer: Path) -> list[int]:
    """Start a training in processes of its own, one a rank."""

    def work(rank: int) -> None:
        log = os.open(f"{answer} {rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        faulthandler.register(signal.SIGUSR1)
        training.train(checkpoint, answer.with_name(f"{answer.name} {rank}"))

    return kill_program.in_processes(training.ranks, work)


def end_of(training: Training, children: list[int], answer: Path) -> list[dict[str, Any]]:
    """Wait for a training that nobody kills; return what each rank ended with."""
    codes = codes_of(children)
    assert not any(codes), f"ended with {codes}: {said(training, answer)}"
    return [json.loads(answer.with_name(f"{answer.name} {rank}").read_text()) for rank in range(training.ranks)]


def said(training: Training, answer: Path) -> str:
    """Return what the ranks wrote."""
    return "\n".join(Path(f"{answer} {rank}.log").read_text()[-1500:] for rank in range(training.ranks))


def strike(training: Training, children: list[int], answer: Path, fate: Fate) -> int:
    """Kill all ranks, or one of them, at a moment that is drawn; return how many moments there were.

    The lives before may have gone further than was drawn: what ends before its moment is not killed.
    """
    steps, victim = fate.whole(0, training.steps // training.kills), fate.one(children)
    watched, over = Path(f"{answer} 0.steps"), answer.with_name(f"{answer.name} 0")

    def come() -> bool:
        with suppress(FileNotFoundError):
            return over.exists() or watched.stat().st_size >= steps
        return steps == 0

    until(come, what=f"step {steps} did not come")
    time.sleep(fate.share() * (START if steps == 0 else 3 * training.pause))
    began = all(Path(f"{answer} {rank}.steps").exists() for rank in range(training.ranks))
    for child in [victim] if training.one and began else children:
        os.kill(child, signal.SIGKILL)
    try:
        codes = codes_of(children)  # those that are left must end by themselves
    except TimeoutError as error:
        raise TimeoutError(
            f"{error}: killed {victim} of {children} at step {steps}: {said(training, answer)}"
        ) from error
    if not any(codes) and over.exists():
        return 0
    assert all(codes), f"a rank went on without the others: {codes}"
    assert codes[children.index(victim)] == -signal.SIGKILL, "it ended by itself, and not well"
    return 1
