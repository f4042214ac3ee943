"""Stand-ins for training: deterministic results, and faults that a run's model name asks for."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from syncnorm.config import Result, Run, describe, layout, run_id
from syncnorm.errors import UserError
from syncnorm.seeds import derive


def fit(run: Run) -> Result:
    """Return numbers drawn from the run's id; `run.model_options` may ask for a fault, and for time."""
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
    if run.world.engine == "torchrun":
        _ranks_meet(run)
    metrics: dict[str, Any] = {"accuracy": derive("accuracy", run.seed, run_id(run)) / 2**63, "loss": 1.0}
    if fault == "unstorable":
        metrics["accuracy"] = 1j
    history = {"train_loss": [2.0, 1.0]}
    return Result(run_id(run), describe(run), metrics, "own", 0.1, {}, history)


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
