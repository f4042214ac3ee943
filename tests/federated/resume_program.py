"""Plays runs that are killed and resumed: python resume_program.py FOLDER SEED.

A forked process plays each part. Prints a line of JSON a run: its name, the
rounds from which it went on, and the results of the resumed and of an uninterrupted run.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from small_runs import PLAIN, small_run

from syncnorm.config import Execution, Optim, Run
from syncnorm.federated import world
from syncnorm.federated.server.rounds import Rounds

ROUNDS = 15
PAUSE = 0.004
"""Seconds before a round, so that a kill comes before the end."""

MOMENTUM = Optim(lr=0.05, momentum=0.9, schedule="cosine")
RUNS: dict[str, tuple[Run, str]] = {
    "fedbn": (small_run(rounds=ROUNDS, method="fedbn", participation=0.6), "memory"),
    "fedbn on disk": (small_run(rounds=ROUNDS, method="fedbn", participation=0.6), "disk"),
    "scaffold": (small_run(rounds=ROUNDS, algorithm="scaffold", participation=0.6), "memory"),
    "scaffold on disk": (small_run(rounds=ROUNDS, algorithm="scaffold", participation=0.6), "disk"),
    "fedadam": (small_run(rounds=ROUNDS, algorithm="fedadam", optim=PLAIN), "memory"),
    "fedap": (small_run(rounds=ROUNDS, method="fedap", participation=0.6), "memory"),
    "keep_momentum": (small_run(rounds=ROUNDS, keep_momentum=True, optim=MOMENTUM, participation=0.6), "disk"),
    "validation": (small_run(rounds=ROUNDS, method="hbn", validation=0.2, optim=MOMENTUM), "memory"),
    "batched": (small_run(rounds=ROUNDS, method="fbn", algorithm="fedavgm", engine="cohort"), "memory"),
}


def play(run: Run, store: str, checkpoint: Path | None, answer: Path) -> None:
    """Play a run, and write its result and the round at which it started to `answer`.

    A run that was killed after its last round has none left to start at: it is said to start at `ROUNDS`.
    """
    first: list[int] = []
    inner = Rounds.play

    def play_slowly(rounds: Rounds) -> None:
        first.append(rounds.next)
        with answer.with_suffix(".steps").open("a") as steps:  # whose length others watch
            steps.write(".")
        time.sleep(PAUSE if checkpoint else 0)
        inner(rounds)

    torch.set_num_threads(1)
    Rounds.play = play_slowly  # type: ignore[method-assign]
    result = world.simulate(run, Execution(checkpoint, checkpoint_every=0.0), store)  # type: ignore[arg-type]
    found = {"metrics": result.metrics, "history": result.history, "details": result.details}
    answer.write_text(json.dumps({"first": first[0] if first else ROUNDS, "result": found}))


def forked(work: Callable[[], None]) -> int:
    """Do something in a process of its own, and return its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def kill(child: int, checkpoint: Path, random: Random) -> None:
    """Let the child save a little, then kill it."""
    before = _stamp(checkpoint)
    while _stamp(checkpoint) == before and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(random.uniform(0, 5 * PAUSE))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended before it was killed"


def _stamp(checkpoint: Path) -> int:
    newest = checkpoint / "newest.pt"
    try:
        return newest.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def main(folder: Path, seed: int) -> None:
    """Play all runs."""
    random = Random(seed)
    for name, (run, store) in RUNS.items():
        checkpoint, whole, resumed = folder / name, folder / f"{name} whole", folder / f"{name} resumed"
        kill(forked(lambda: play(run, store, checkpoint, resumed)), checkpoint, random)  # noqa: B023
        for child in (
            forked(lambda: play(run, store, checkpoint, resumed)),  # noqa: B023
            forked(lambda: play(run, store, None, whole)),  # noqa: B023
        ):
            assert os.waitpid(child, 0)[1] == 0, name
        again, once = json.loads(resumed.read_text()), json.loads(whole.read_text())
        print(
            json.dumps({"name": name, "first": again["first"], "resumed": again["result"], "whole": once["result"]})
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
