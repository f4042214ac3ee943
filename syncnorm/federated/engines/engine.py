"""Choice of the engine that trains the clients of a round: by name, or the faster one on this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from syncnorm.config import Clients
from syncnorm.errors import unknown
from syncnorm.federated.engines import cohort, loop
from syncnorm.federated.local import Local, Task, Update

Train = Callable[[Local, Tensor, Tensor, Sequence[Task]], list[Update]]

ENGINES: dict[str, Train] = {"cohort": cohort.train, "loop": loop.train}
"""The engines by name. They give the same updates up to rounding."""

PROBED_STEPS = 4
"""Steps per client in a timing probe: its last ones, which include the short batch of an epoch."""


class Engine(Protocol):
    """Trains the clients of a round."""

    name: str

    def train(self, local: Local, x: Tensor, y: Tensor, tasks: Sequence[Task]) -> list[Update]:
        """Return the updates of `tasks`, in their order."""


class AutoEngine:
    """An engine by its name; "auto" becomes the name of the faster one in the first round.

    To resume a run bit-identically, save `name` and restore it.

    Raises:
        UserError: an unknown name.
    """

    def __init__(self, name: str) -> None:
        if name != "auto" and name not in ENGINES:
            raise unknown("engine", name, ["auto", *ENGINES])
        self.name = name

    def train(self, local: Local, x: Tensor, y: Tensor, tasks: Sequence[Task]) -> list[Update]:
        """Return the updates of `tasks`, in their order; raises what the engine raises."""
        if self.name == "auto":
            self.name = faster(local, x, y, tasks)
        return ENGINES[self.name](local, x, y, tasks)


def engine_of(world: Clients) -> str:
    """Return the name of the engine that trains clients within a process: of the engine torchrun, a rank's."""
    return world.rank_engine if world.engine == "torchrun" else world.engine


def faster(local: Local, x: Tensor, y: Tensor, tasks: Sequence[Task]) -> str:
    """Return the name of the engine that trains these tasks faster: each makes a few steps, whose results are
    dropped.

    If the batched engine raises, this is the plain one. If clients share statistics, it is the batched one, since
    only that can do so.
    """
    if local.algorithm.shares_statistics:
        return "cohort"
    probe = [
        replace(task, batches=task.batches[-PROBED_STEPS:], running=task.running[-PROBED_STEPS:])
        for task in tasks[: cohort.TOGETHER]
    ]
    engines: dict[str, Train] = {"cohort": cohort.train_together, "loop": loop.train}
    seconds, local = {}, replace(local, workers=0)  # starting them would be most of what is timed
    for _ in range(2):  # the first pass is a warm-up
        for name, train in engines.items():
            started = time.perf_counter()
            try:
                train(local, x, y, probe)
            except Exception:
                return "loop"
            seconds[name] = time.perf_counter() - started
    return min(seconds, key=lambda name: seconds[name])
