"""A federated run of syncnorm over ranks, round by round; without torchrun, in one process.

python -m peers.over_ranks CLIENTS EPOCHS ENGINE STATE     so many clients, all in every round, so many epochs each; a
                                                            rank trains by that engine; write the last model to STATE
"""

import statistics
import sys
import time

import torch

from peers.ours import played, run_of
from peers.process import Host
from peers.task import BATCH
from syncnorm.config import Clients
from syncnorm.federated.client.states import InMemory
from syncnorm.federated.engines.engine import AutoEngine
from syncnorm.federated.federation import Federation
from syncnorm.federated.ranks.launch import ranks_of
from syncnorm.federated.ranks.network import OverRanks
from syncnorm.federated.server.network import InProcess
from syncnorm.federated.server.rounds import Rounds


def world_of(count: int, epochs: int) -> Clients:
    """Return the world: clients of 32 digits each, with whole batches alone, so that pfl can take the same steps."""
    return Clients(count=count, rounds=1000, local_epochs=epochs, batch=BATCH, skew="resampled", engine="torchrun")


def main() -> None:
    """Play rounds with the other ranks; rank 0 answers the process that has started them."""
    world, engine = world_of(int(sys.argv[1]), int(sys.argv[2])), sys.argv[3]
    ranks = ranks_of(world)
    host = Host() if ranks.rank == 0 else None
    torch.set_num_threads(1)
    federation = Federation(run_of(world), torch.device("cpu"))
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
        torch.save(dict(rounds.server.state), sys.argv[4])
        host.say({"busy": most})


if __name__ == "__main__":
    main()
