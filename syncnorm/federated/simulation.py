"""One run of the clients world, from its configuration to its result.

from syncnorm.config import Clients, Run
from syncnorm.federated import simulate
print(simulate(Run(world=Clients(count=10, method="fedbn", skew="dirichlet_by_class", alpha=0.3))).metrics)
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from syncnorm.config import Clients, Result, Run
from syncnorm.data.population import forget as forget_population
from syncnorm.errors import UserError
from syncnorm.federated.checkpoint import Checkpoint
from syncnorm.federated.client_states import ClientStates, InMemory, OnDisk
from syncnorm.federated.engine import Chosen
from syncnorm.federated.federation import Federation
from syncnorm.federated.network import InProcess
from syncnorm.federated.rounds import Rounds

CHECKED = 1000
"""Clients whose batches are looked at before a study starts, and those of the first round."""
IN_MEMORY = 1 << 28
"""Bytes of client states that are held in memory, if every client were sampled."""


def simulate(run: Run, checkpoint: Path | None = None, store: Literal["auto", "memory", "disk"] = "auto") -> Result:
    """Train and evaluate one run; the same configuration gives the same result on the same machine.

    The engine "auto" goes by a short measurement, and may take the one time `cohort` and another time `loop`, whose
    results differ by rounding: name one for the same bits. The result's environment says which it was.

    `checkpoint` is a folder that the run carries on from if it was killed, to the bit-identical end, and leaves its
    state in every half minute. `store` says where clients' states are kept between rounds.

    Raises:
        UserError: for anything in `run` that does not work, before training starts; a round that failed.
    """
    started = time.perf_counter()
    world = _clients(run)
    if world.engine == "flower":
        return _with_flower(run)
    federation = Federation(run)
    engine = Chosen(world.engine)
    network = InProcess(federation, _store(federation, store), engine)
    rounds = Rounds(federation, network)
    kept = Checkpoint(checkpoint, run, rounds, network) if checkpoint else None
    if kept:
        kept.resume()
    for _ in range(rounds.next, world.rounds):
        rounds.play()
        if kept:
            kept.save_if_due()
    before = kept.seconds_before if kept else 0.0
    result = rounds.result(before + time.perf_counter() - started)
    return replace(result, environment={**result.environment, "engine": engine.name})


def check(run: Run) -> None:
    """Raise the `UserError` that `run` would end with, without training it; its data stay loaded until `forget`."""
    federation = Federation(run, torch.device("cpu"))
    for client in {*federation.cohort(0), *federation.trainees[:CHECKED]}:
        federation.plan(client, 0)


def forget() -> None:
    """Drop the data sets that this process keeps for its next run."""
    forget_population()


def _with_flower(run: Run) -> Result:
    try:
        from syncnorm.federated.flower.simulation import simulate_with_flower  # the one part that needs flwr
    except ImportError as error:
        raise UserError(
            f"the engine flower needs the package '{error.name}', which is not installed: pip install "
            "'syncnorm[federated]', or choose the engine cohort or loop."
        ) from error
    return simulate_with_flower(run)


def _clients(run: Run) -> Clients:
    if isinstance(run.world, Clients):
        return run.world
    raise UserError("this run is one of devices, not of clients: give it to syncnorm.training.fit.")


def _store(federation: Federation, store: Literal["auto", "memory", "disk"]) -> ClientStates:
    count, model = len(federation.trainees), federation.model.state_dict()
    kept = sum(model[name].numel() * model[name].element_size() for name in federation.kept_names)
    on_disk = count * kept > IN_MEMORY if store == "auto" else store == "disk"
    return OnDisk(count, device=federation.device) if on_disk else InMemory()
