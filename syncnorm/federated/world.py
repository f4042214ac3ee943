"""One run of the clients world, from its configuration to its result.

from syncnorm.config import Clients, Run
from syncnorm.federated import simulate
print(simulate(Run(world=Clients(count=10, method="fedbn", skew="dirichlet_by_class", alpha=0.3))).metrics)
"""

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from syncnorm.baselines import Problem
from syncnorm.config import Clients, Execution, Norm, Result, Run, marked, silent, validated_at
from syncnorm.data import FederatedDataset, make_federated_dataset
from syncnorm.data.partitions.build import forget as forget_data
from syncnorm.data.plain import plain_problem
from syncnorm.errors import UserError
from syncnorm.federated.checkpoint import Checkpoint
from syncnorm.federated.client.states import ClientStates, InMemory, OnDisk
from syncnorm.federated.engines.engine import AutoEngine, engine_of
from syncnorm.federated.federation import Federation
from syncnorm.federated.ranks.launch import ranks_of
from syncnorm.federated.ranks.network import OverRanks
from syncnorm.federated.server.evaluator import evaluated_clients
from syncnorm.federated.server.network import InProcess
from syncnorm.federated.server.rounds import Rounds
from syncnorm.norms.make import options_in_world
from syncnorm.progress import Pace
from syncnorm.tasks import task_named
from syncnorm.training.kept import LastTraining
from syncnorm.training.metrics import other_metrics
from syncnorm.training.precision import PRECISIONS
from syncnorm.training.profiles.small_groups import warn_of_small_groups
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.training.ranks.launch import agreed, apart
from syncnorm.training.ranks.work import Work, of_all
from syncnorm.training.saved import check_saving, save_model
from syncnorm.training.selection import by_validation
from syncnorm.worlds import expect

METRICS = [  # of classification; `Task.named` gives those of another task
    *("accuracy", "client_accuracy_worst", "client_accuracy_std", "client_accuracy_weighted", "loss"),
    *("reestimated_accuracy", "reestimated_accuracy_worst", "global_accuracy", "global_loss"),
    *("global_reestimated_accuracy", "global_batch_accuracy"),
    *("heldout_accuracy", "heldout_reestimated_accuracy"),
    *("bytes_down", "bytes_up", "bytes_total", "clients_left_out", "small_batches", "idle"),
    *("train_loss", "never_sampled", "staleness", "batch_norms"),
]
CHECKED = 1000
"""Number of clients whose batches are checked before a study starts, in addition to those of the first round."""
IN_MEMORY = 1 << 28
"""Client states are kept in memory up to this size in bytes, computed as if every client were sampled."""


@apart
def simulate(
    run: Run, execution: Execution | None = None, store: Literal["auto", "memory", "disk"] = "auto"
) -> Result:
    """Train and evaluate one run; the same configuration gives the same result on the same machine.

    With the engine "torchrun", every rank of a torchrun launch calls this and returns the same result. A round's
    clients are dealt to the ranks; the result equals that of one process up to rounding, on any number of ranks.

    The engine "auto" measures which of `cohort` and `loop` is faster. Their results differ by rounding, so name one
    to get the same bits. The result's environment says which it was.

    Runs that differ only in `world.unsampled` and `world.global_norm` share one training if they follow each other in
    one process; `seconds` then covers the evaluation only. (A run that is evaluated while it trains shares with
    none.)

    `execution` says where the run keeps its checkpoint: an interrupted run resumes from it bit-identically. `store`
    says where clients' states are kept between rounds.

    Raises:
        UserError: anything in `run` that does not work, before training starts; a round that failed.
    """
    started = time.perf_counter()
    world = expect(run, Clients)
    check_saving(execution)
    if world.engine == "flower":
        if execution and execution.model:
            raise UserError("the engine flower saves no models: choose the engine cohort or loop.")
        return marked(_with_flower(run, execution))
    ranks = ranks_of(world) if world.engine == "torchrun" else None
    federation = Federation(run) if ranks is None else _agreed(run, ranks)
    where = f"{federation.device} {store} {ranks}"
    _check_data_are_here(federation)
    own = _listening(execution, ranks)
    anywhere = bool if ranks is None else ranks.anywhere
    played, fresh = _KEPT.of(run, where, lambda: _play(federation, own, store, ranks), anywhere)
    rounds = Rounds(federation, _network(federation, played.states, played.engine, ranks))
    rounds.recall({**played.rounds, "log": copy.deepcopy(played.rounds["log"])})  # the evaluation adds to it
    before = played.seconds_before if fresh else 0.0
    result = rounds.result(before + time.perf_counter() - started)
    known = {"engine": played.engine} | ({} if ranks is None else {"ranks": str(ranks.size)})
    result = marked(replace(result, environment={**result.environment, **known}, ranks=played.ranks))
    if execution and execution.model:
        _save(execution.model, federation, rounds, result, writes=ranks is None or ranks.rank == 0)
    return result


def _check_data_are_here(federation: Federation) -> None:
    """Raise `UserError` if clients' data lie at sites that this process knows nothing of."""
    if not federation.population.complete:
        raise UserError(
            "the data lie at their sites: give data.path, the file with their function, to simulate all of them "
            "here, or start the run in a federation (launch/federation)."
        )


def _agreed(run: Run, ranks: Ranks) -> Federation:
    """Return the federation that all ranks have made alike."""
    return agreed(ranks, run, lambda: Federation(run, ranks.device), lambda made: made.models.template)


@dataclass(frozen=True)
class Played:
    """A run after its last round."""

    states: ClientStates
    """What its clients keep."""
    rounds: dict[str, Any]
    """What `Rounds` remembers."""
    engine: str
    seconds_before: float
    """Training time in seconds before interruptions."""
    ranks: list[dict[str, Any]]
    """What each rank did."""


_KEPT: LastTraining[Played] = LastTraining()


def _listening(execution: Execution | None, ranks: Ranks | None) -> Execution:
    """Return the execution on this rank: rank 0 alone reports progress."""
    execution = execution or Execution()
    return replace(execution, report=silent) if ranks and ranks.rank else execution


def _network(
    federation: Federation, states: ClientStates, engine: str, ranks: Ranks | None = None
) -> InProcess | OverRanks:
    """Return all clients in this process, or over ranks."""
    here = InProcess(federation, states, AutoEngine(engine))
    return here if ranks is None else OverRanks(here, ranks)


def _play(
    federation: Federation,
    execution: Execution,
    store: Literal["auto", "memory", "disk"],
    ranks: Ranks | None,
) -> Played:
    """Play all rounds of a run, from its checkpoint if it has one."""
    run, world = federation.run, federation.world
    states, work = _store(federation, store), Work(federation.device)
    network = _network(federation, states, engine_of(world), ranks)
    rounds = Rounds(federation, network)
    kept = None
    if execution.checkpoint:
        every = execution.checkpoint_every
        kept = Checkpoint(execution.checkpoint, run, rounds, network, every, ranks or Ranks())
        kept.resume()
    pace = Pace(execution, "round", world.rounds, begin=rounds.next)
    for _ in range(rounds.next, world.rounds):
        rounds.play()
        latest = rounds.latest()
        pace.tell(rounds.next, latest["train_loss"], latest)
        if kept:
            kept.save_if_due()
    work.samples = network.samples if isinstance(network, OverRanks) else 0
    did, before = of_all(ranks or Ranks(), work.record()), kept.seconds_before if kept else 0.0
    return Played(states, rounds.remember(), network.engine.name, before, did)


def _save(folder: Path, federation: Federation, rounds: Rounds, result: Result, writes: bool) -> None:
    """Write the global model and the clients' kept entries; of several ranks, all gather them and one writes."""
    layer = ("hybrid_bn", federation.run.norm.options) if federation.policy.training == "hybrid" else None
    shape, classes = federation.population.shape, federation.population.classes
    model = federation.models.with_state(rounds.evaluator.global_state())
    clients = rounds.evaluator.kept_state()
    if writes:
        save_model(folder, federation.run, result, model, shape, classes, layer=layer, clients=clients)


def _with_flower(run: Run, execution: Execution | None) -> Result:
    try:
        from syncnorm.federated.flower.simulation import simulate_with_flower  # the only part that needs flwr
    except ImportError as error:
        raise UserError(
            f"the engine flower needs the package '{error.name}', which is not installed: pip install "
            "'syncnorm[federated]', or choose the engine cohort or loop."
        ) from error
    return simulate_with_flower(run, execution)


def _store(federation: Federation, store: Literal["auto", "memory", "disk"]) -> ClientStates:
    count, model = len(federation.schedule.trainees), federation.models.template.state_dict()
    kept = sum(model[name].numel() * model[name].element_size() for name in federation.layout.kept)
    on_disk = count * kept > IN_MEMORY if store == "auto" else store == "disk"
    return OnDisk(count, device=federation.device) if on_disk else InMemory()


class ClientsWorld:
    """The clients world (`syncnorm.worlds.World`)."""

    def fit(self, run: Run, execution: Execution) -> Result:
        """Train and evaluate a run."""
        return simulate(run, execution)

    def check(self, run: Run) -> None:
        """Raise the `UserError` that the run would raise, without training it."""
        federation = Federation(run, torch.device("cpu"))
        _check_data_are_here(federation)
        for client in {*federation.schedule.cohort(0), *federation.schedule.trainees[:CHECKED]}:
            federation.schedule.plan(client, 0)
        warn_of_small_groups(run, federation.models.template, federation.population.x)

    def forget(self) -> None:
        """Drop the data sets and the training that this process caches."""
        forget_data()
        _KEPT.forget()

    def data(self, run: Run) -> FederatedDataset:
        """Return a run's data."""
        cpu, dtype = torch.device("cpu"), PRECISIONS[run.precision].data
        return make_federated_dataset(run.data, expect(run, Clients), run.seed, cpu, dtype, run.task)

    def pixels(self, run: Run) -> Problem:
        """Return all clients' training samples together, and the test samples of the clients that are evaluated.

        A client's test samples have its weights, and clients weigh alike, as in `accuracy`.
        """
        people, clients = self.data(run), evaluated_clients(run)
        every = torch.cat([people.train(client) for client in range(people.count)])
        train = torch.from_numpy(np.unique(every.numpy()))
        x, y = people.x[train], people.y[train]
        if people.world.noise:  # each client sees test samples of its own
            tests = [people.test(client) for client in clients]
            test_x, test_y, weights = (torch.cat(parts) for parts in zip(*tests, strict=True))
            return plain_problem(x, y, test_x, test_y, weights)
        total = torch.zeros(len(people.pool.test_y), dtype=torch.float64)
        for client in clients:
            total[people.test_index(client)] += people.test_weights(client)
        used = total > 0
        return plain_problem(x, y, people.pool.test_x[used], people.pool.test_y[used], total[used])

    def metrics(self, run: Run) -> list[str]:
        """Return the names of the metrics that a run may have."""
        world = expect(run, Clients)
        own = [name for metric in other_metrics(run) for name in (metric, f"global_{metric}")]
        main = [*METRICS, *(f"accuracy_{name}" for name in world.domains)]
        return [*map(task_named(run.task).named, main), *own, *by_validation(run)]

    def histories(self, run: Run) -> list[str]:
        """Return the names of the histories that a run will have."""
        chosen = [task_named(run.task).named("validation_accuracy")] if validated_at(run, 1, 1) else []
        return ["train_loss", "left_out", *chosen]

    def profiles(self, run: Run) -> list[str]:
        """Return the names of the profiles that a run will have: none."""
        return []

    def norm_layer(self, norm: Norm, world: Clients) -> tuple[str, dict[str, Any]]:
        """Return the layer that computes `norm`, with the training batch size filled in: clients are not ranks."""
        return norm.name, options_in_world(norm.name, norm.options, {"batch": world.batch})


WORLD = ClientsWorld()
