"""A federated run of syncnorm over ranks, round by round; without torchrun, in one process.

python -m peers.over_ranks CLIENTS ENGINE     so many clients, all in every round, each rank trains by that engine
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


def main() -> None:
    """Play rounds with the other ranks; rank 0 answers the process that has started them."""
    count, engine = int(sys.argv[1]), sys.argv[2]
    world = Clients(
        count=count, rounds=1000, local_epochs=5, batch=BATCH, method="fedbn", skew="resampled", engine="torchrun"
    )
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
    metrics = rounds.result(0.0).metrics
    if host:
        host.say({"busy": most, "loss": metrics["loss"]})


if __name__ == "__main__":
    main()
