"""Stand-ins for training: deterministic results, and faults that a run's model name asks for."""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from syncnorm.config import Clients, Execution, Result, Run, describe, layout, run_id
from syncnorm.errors import UserError
from syncnorm.seeds import derive


def fit(run: Run, execution: Execution) -> Result:
    """Return numbers drawn from the run's id; `run.model_options` may ask for a fault, and for time.

    A run of clients plays rounds, each of which depends on the one before, and keeps its state in its checkpoint.
    """
    options = run.model_options
    if "pids" in options:
        Path(options["pids"], str(os.getpid())).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    time.sleep(options.get("sleep", 0.0))
    fault = options.get("fault")
    rank = int(os.environ.get("RANK", "0"))
    if fault == "raise" and rank == options.get("rank", rank) and not _there(options.get("until")):
        raise ZeroDivisionError("no such thing")
    if fault == "mistake" and rank == options.get("rank", rank):
        raise UserError("the model cannot do that: choose another.")
    if fault == "exit":
        sys.exit(3)
    if fault == "kill" and rank == options.get("rank", rank) and _first(options.get("once")):
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "segfault":
        ctypes.string_at(0)
    if isinstance(run.world, Clients):
        return _rounds(run, run.world, execution.checkpoint)
    if run.world.engine == "torchrun":
        _ranks_meet(run)
    metrics: dict[str, Any] = {"accuracy": derive("accuracy", run.seed, run_id(run)) / 2**63, "loss": 1.0}
    if fault == "unstorable":
        metrics["accuracy"] = 1j
    history = {"train_loss": [2.0, 1.0]}
    return Result(run_id(run), describe(run), metrics, "own", 0.1, {}, history)


def check(run: Run) -> None:
    """Find no mistake in any run."""


def summary(run: Run) -> str:
    """Have no data to speak of."""
    return ""


def forget() -> None:
    """Have nothing to forget."""


def _rounds(run: Run, world: Clients, checkpoint: Path | None) -> Result:
    """Play the rounds that no checkpoint holds; every one leaves a line in the file options["journal"]."""
    assert checkpoint is not None, "a run of clients has a folder for its checkpoint"
    file, states = checkpoint / "state.json", [derive("round", run.seed)]
    if file.exists():
        states = json.loads(file.read_text())
    for number in range(len(states), world.rounds + 1):
        states.append(derive("round", states[-1], number))
        if "journal" in run.model_options:  # before the checkpoint: one that is killed in between plays it again
            with Path(run.model_options["journal"]).open("a") as journal:
                journal.write(f"{run_id(run)} {number}\n")
        checkpoint.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".tmp").write_text(json.dumps(states))
        file.with_suffix(".tmp").replace(file)
        time.sleep(run.model_options.get("round", 0.0))
        if run.model_options.get("end") == number and _first(run.model_options.get("once")):
            os.kill(os.getpid(), signal.SIGKILL)
    history = {"train_loss": [state / 2**63 for state in states[1:]]}
    return Result(run_id(run), describe(run), {"accuracy": states[-1] / 2**63}, "own", 0.1, {}, history)


def _there(mark: str | None) -> bool:
    return mark is not None and Path(mark).exists()


def _first(mark: str | None) -> bool:
    """Return whether nobody has been here before; always, without a file to remember by."""
    if mark is None:
        return True
    try:
        Path(mark).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _ranks_meet(run: Run) -> None:
    """Reduce over the ranks, as training would: a rank that is missing makes the others wait."""
    import torch
    import torch.distributed as dist

    ones = torch.ones(())
    dist.all_reduce(ones)
    assert int(ones) == layout(run.world)[0]
