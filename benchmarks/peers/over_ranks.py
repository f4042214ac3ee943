"""A federated run of syncnorm over ranks, round by round; without torchrun, in one process.

python -m peers.over_ranks NETWORK CLIENTS EPOCHS ENGINE STATE     so many clients, all in every round, so many epochs
                                                                   each; a rank trains by that engine; write the last
                                                                   model to STATE
"""

import statistics
import sys
import time
from dataclasses import replace

import torch

from peers.ours import played, run_of
from peers.process import Host
from peers.task import BATCH
from syncnorm.config import Clients, Run
from syncnorm.federated.client.states import InMemory
from syncnorm.federated.engines.engine import AutoEngine
from syncnorm.federated.federation import Federation
from syncnorm.federated.ranks.launch import ranks_of
from syncnorm.federated.ranks.network import OverRanks
from syncnorm.federated.server.network import InProcess
from syncnorm.federated.server.rounds import Rounds


def run_over_ranks(network: str, count: int, epochs: int) -> Run:
    """Return a run whose clients have whole batches alone, so that pfl can take the same steps.

    Clients of the two-layer network have 32 digits each, those of the ResNet equal parts of all.
    """
    world = Clients(count=count, rounds=1000, local_epochs=epochs, batch=BATCH, engine="torchrun")
    dealt = replace(world, skew="resampled") if network == "two_layer_cnn" else replace(world, equal_size=1.0)
    return run_of(dealt, network)


def main() -> None:
    """Play rounds with the other ranks; rank 0 answers the process that has started them."""
    network, count, epochs, engine, file = sys.argv[1:]
    run = run_over_ranks(network, int(count), int(epochs))
    assert isinstance(run.world, Clients)
    ranks = ranks_of(run.world)
    host = Host() if ranks.rank == 0 else None
    torch.set_num_threads(1)
    federation = Federation(run, torch.device("cpu"))
    rounds = Rounds(federation, OverRanks(InProcess(federation, InMemory(), AutoEngine(engine)), ranks))
    if host:
        host.say("ready")
    busy: list[float] = []
    while ranks.told(lambda: host is not None and host.told_to_play()):
        busy.append(-time.process_time())
        seconds = played(rounds)
        busy[-1] += time.process_time()
        if host:
            host.say(seconds)
    most = max(ranks.gather(statistics.median(busy[1:])))
    if host:
        torch.save(dict(rounds.server.state), file)
        host.say({"busy": most})


if __name__ == "__main__":
    main()
