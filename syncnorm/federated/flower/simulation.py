"""A run of the clients world on Flower's own simulation: each client's work is a message to a Ray process."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Event
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from syncnorm.config import Clients, Execution, Result, Run
from syncnorm.errors import UserError
from syncnorm.federated.flower.apps import client_app, federation_of, forget, play
from syncnorm.federated.flower.wire import run_as_text
from syncnorm.registry import environment_of_plugins
from syncnorm.worlds import expect


def simulate_with_flower(run: Run, execution: Execution | None = None) -> Result:
    """Train and evaluate one run with clients in Ray's processes, one per core; they share a GPU if there is one.

    An interrupted run resumes from the checkpoint of its execution, in which clients' states are, too.

    Raises:
        UserError: anything in `run` that does not work; a round that failed.
    """
    world = expect(run, Clients)
    if find_spec("ray") is None:
        raise UserError(
            "the engine flower needs Ray: install syncnorm[federated], or choose the engine cohort or loop."
        )
    results: list[Result] = []
    text, ended = run_as_text(run), Event()
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        results.append(play(grid, text, ended, execution=execution or Execution()))

    with _quiet():
        try:
            federation_of(text)  # mistakes in the run raise before Ray starts
            os.environ.update(environment_of_plugins())
            run_simulation(app, client_app, num_supernodes=world.count, backend_config=_backend())
        finally:
            ended.set()
            forget()
    return results[0]


def _backend() -> Any:
    gpus = torch.cuda.device_count() / (os.cpu_count() or 1)
    return {
        "client_resources": {"num_cpus": 1, "num_gpus": round(gpus, 4)},
        "init_args": {"logging_level": logging.ERROR, "log_to_driver": False},
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Flower's and Ray's logs, and restore the environment afterwards."""
    logger, before = logging.getLogger("flwr"), dict(os.environ)
    level = logger.level
    if "FLWR_LOG_LEVEL" not in os.environ and level == logging.DEBUG:
        logger.setLevel(logging.CRITICAL)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # avoids a warning from Ray
    try:
        yield
    finally:
        logger.setLevel(level)
        os.environ.clear()
        os.environ.update(before)
