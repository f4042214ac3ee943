"""Trains runs that are killed and resumed: python kill_program.py FOLDER SEED NAME...

Each rank is a forked process. Prints a line of JSON a run: the steps at
which its three lives started, and the results and the states of the resumed and of an uninterrupted run.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import torch
from ports import free_port

from syncnorm.config import Data, Devices, Domains, Execution, Norm, Optim, Run
from syncnorm.devices import training as devices_training
from syncnorm.domains import world as domains_world
from syncnorm.training.checkpoints import module_state
from syncnorm.training.lightning.classifier import Classifier
from syncnorm.worlds import fit

PAUSE = 0.01
"""Seconds before a step, so that a kill comes before the end."""
STEPS = 30
DATA = Data("digits", train_limit=160, test_limit=60, augment="shift")
OPTIM = Optim(epochs=3)


def devices(norm: str, engine: Any, ranks: int = 2, batch: int = 8, **options: Any) -> Run:
    world = Devices(ranks=ranks, per_device_batch=batch, engine=engine)
    return Run(data=DATA, model_options={"width": 4}, norm=Norm(norm, options), world=world, optim=OPTIM)


def domains(**fields: Any) -> Run:
    names = ("digits", "digits-inverted", "digits-noisy")
    world = Domains(names, unseen=("digits-noisy",), batch=16, test_batch=20, **fields)
    data = Data("few", train_limit=80, test_limit=40, augment="shift")
    return Run(data=data, model_options={"width": 4}, norm=Norm("domain_bn"), world=world, optim=OPTIM)


def best(run: Run, train_limit: int) -> Run:
    """Return the run with its model chosen by validation, and as many training samples as before beside these."""
    return replace(run, data=replace(run.data, train_limit=train_limit, validation=0.2), select="best")


RUNS: dict[str, tuple[Run, int]] = {
    "virtual": (devices("bn", "virtual"), 1),
    "virtual, by channel": (devices("brn", "virtual", warmup=5, r_end=20, d_end=20), 1),
    "virtual, copies": (devices("cbn", "virtual", window=4), 1),
    "virtual, copies, best": (best(devices("cbn", "virtual", window=4), 200), 1),
    "domains": (domains(), 1),
    "domains, best": (best(domains(), 100), 1),
    "two ranks": (devices("bn", "torchrun"), 2),
    "two ranks, best": (best(devices("bn", "torchrun"), 200), 2),
    "two ranks, one killed": (devices("sync_bn", "torchrun"), 2),
    "domains, two ranks": (domains(ranks=2, domain_skew=100.0, engine="torchrun"), 2),
    "four ranks": (devices("mixstyle", "torchrun", ranks=4, batch=4), 4),
}
"""By name, a run and in how many processes it trains."""


def train(run: Run, checkpoint: Path | None, answer: Path) -> None:
    """Train a run, and write its first step, its result and what its modules end with to `answer`."""
    first: list[int] = []
    ends = {"state": ""}

    def slowly(self: Classifier, batch: Any, batch_idx: int) -> None:
        first.append(self.trainer.current_epoch * (STEPS // 3) + batch_idx)
        if len(first) == 1:
            draft = answer.with_suffix(".draft")  # renamed, so that a kill never leaves half of it
            draft.write_text(str(first[0]))
            draft.rename(answer.with_suffix(".first"))
        with answer.with_suffix(".steps").open("a") as steps:  # whose length others watch
            steps.write(".")
        time.sleep(PAUSE if checkpoint else 0)

    def run_trainer(*args: Any, inner: Any, **options: Any) -> None:
        inner(*args, **options)
        tensors = module_state(args[1])["tensors"]
        ends["state"] = sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()

    torch.set_num_threads(1)
    Classifier.on_train_batch_start = slowly  # type: ignore[assignment]
    for world in (devices_training, domains_world):
        inner = world.run_trainer
        world.run_trainer = lambda *args, inner=inner, **options: run_trainer(*args, inner=inner, **options)  # type: ignore[attr-defined]
    result = fit(run, Execution(checkpoint, checkpoint_every=0.0))
    found = {"metrics": result.metrics, "history": result.history, "details": result.details, **ends}
    answer.write_text(json.dumps({"first": first[0], "result": found}))


def start(run: Run, ranks: int, checkpoint: Path | None, answer: Path) -> list[int]:
    """Train a run in processes of its own, one a rank; return their ids."""
    return in_processes(ranks, lambda rank: train(run, checkpoint, answer.with_name(f"{answer.name} {rank}")))


def in_processes(ranks: int, play: Callable[[int], None]) -> list[int]:
    """Have each rank of a launch play in a process of its own; return their ids."""
    at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    world = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, **at}

    def work(rank: int) -> None:
        if ranks > 1:
            values = {**world, "RANK": rank, "LOCAL_RANK": rank}
            os.environ.update({name: str(value) for name, value in values.items()})
            os.environ["TORCHELASTIC_RUN_ID"] = "test"  # as torchrun does
        play(rank)

    return [forked(lambda rank=rank: work(rank)) for rank in range(ranks)]  # type: ignore[misc]


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


def kill(children: list[int], victims: list[int], checkpoint: Path, random: Random) -> None:
    """Let all ranks save, then kill some of them; those that are left end by themselves, or are ended."""
    before = _stamps(checkpoint)
    saved: set[str] = set()
    while len(saved) < len(children):
        assert os.waitpid(-1, os.WNOHANG) == (0, 0), "a rank ended before all had saved"
        time.sleep(0.001)
        saved |= {name for name, stamp in _stamps(checkpoint).items() if stamp != before.get(name)}
    time.sleep(random.uniform(0, 6 * PAUSE))
    for child in victims:
        os.kill(child, signal.SIGKILL)
    time.sleep(0.1)
    for child in children:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert status, "it ended before it was killed"


def _stamps(checkpoint: Path) -> dict[str, int]:
    """Return when each rank saved last."""
    stamps = {}
    for path in checkpoint.glob("*newest.pt"):
        with suppress(FileNotFoundError):  # while it becomes the one before
            stamps[path.name] = path.stat().st_mtime_ns
    return stamps


def main(folder: Path, seed: int, names: list[str]) -> None:
    """Train the runs of those names."""
    random = Random(seed)
    for name in names:
        run, ranks = RUNS[name]
        checkpoint, answers, firsts = folder / name, {}, []
        for _ in range(2):
            children = start(run, ranks, checkpoint, folder / f"{name} killed")
            victims = [random.choice(children)] if name.endswith("one killed") else children
            kill(children, victims, checkpoint, random)
            firsts.append(int((folder / f"{name} killed 0.first").read_text()))
        for kind, kept in (("resumed", checkpoint), ("whole", None)):
            for child in start(run, ranks, kept, folder / f"{name} {kind}"):
                assert os.waitpid(child, 0)[1] == 0, name
            answers[kind] = [json.loads((folder / f"{name} {kind} {rank}").read_text()) for rank in range(ranks)]
        firsts.append(answers["resumed"][0]["first"])
        print(json.dumps({"firsts": firsts, **{kind: [a["result"] for a in answers[kind]] for kind in answers}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
