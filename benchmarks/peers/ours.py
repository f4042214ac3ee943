"""A federated run of syncnorm, round by round.

python -m peers.ours CLIENTS     so many registered clients, a hundred a round, FedBN with its store on disk
"""

import sys
import time

import torch

from peers.process import Host, peak
from peers.task import BATCH, LR, Task
from syncnorm.config import Clients, Data, Optim, Run
from syncnorm.federated.client.states import ClientStates, InMemory, OnDisk
from syncnorm.federated.engines.engine import AutoEngine
from syncnorm.federated.federation import Federation
from syncnorm.federated.server.network import InProcess
from syncnorm.federated.server.rounds import Rounds

COHORT = 100


DATA = {"two_layer_cnn": Data("digits", size=8), "resnet20": Data("digits-photo", size=32, train_limit=1280)}
"""What a network learns from."""


def run_of(world: Clients, network: str = "two_layer_cnn") -> Run:
    """Return a run of a network on its digits, by plain SGD."""
    optim = Optim(lr=LR, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0)
    return Run(DATA[network], f"peers.task:{network}", world=world, optim=optim)


def begin(federation: Federation, engine: AutoEngine, states: ClientStates | None = None) -> Rounds:
    """Return a run whose rounds are still to be played."""
    return Rounds(federation, InProcess(federation, states or InMemory(), engine))


def played(rounds: Rounds, threads: int = 1) -> float:
    """Play a round on so many threads, and return the seconds it took."""
    torch.set_num_threads(threads)
    started = time.perf_counter()
    rounds.play()
    seconds = time.perf_counter() - started
    torch.set_num_threads(1)
    return seconds


def task_of(federation: Federation, rounds: int) -> Task:
    """Return what other contenders need to take the same steps as so many rounds of a run."""
    population = federation.population
    test_x, test_y = population.global_test
    batches = [
        [list(federation.schedule.plan(client, round_).batches) for client in range(federation.world.count)]
        for round_ in range(rounds)
    ]
    state = {name: value.clone() for name, value in federation.models.template.state_dict().items()}
    network = federation.run.model.partition(":")[2]
    return Task(population.x, population.y, test_x, test_y, batches, state, network)


def main() -> None:
    """Play rounds for the process that has started this one."""
    imported = peak()
    host = Host()
    torch.set_num_threads(1)
    count = int(sys.argv[1])
    world = Clients(
        count=count, participation=COHORT / count, rounds=1000, batch=BATCH, method="fedbn", skew="resampled"
    )
    federation = Federation(run_of(world), torch.device("cpu"))
    rounds = begin(federation, AutoEngine("auto"), OnDisk(count))
    host.serve(lambda: played(rounds))
    metrics = rounds.result(0.0).metrics
    host.say({"imported": imported, "peak": peak(), "accuracy": metrics["accuracy"]})


if __name__ == "__main__":
    main()
