# mypy: disable-error-code=import-not-found
"""The task on pfl-research (Granqvist et al., arXiv 2404.06430), as its user would write it.

    python -m peers.with_pfl TASK STATE     train the task's clients, write the last model to STATE

Under torchrun, pfl deals the clients to the ranks and sums their updates over them. Needs torch and pfl, not
syncnorm. pfl averages parameters alone: running statistics go on from client to client.
"""

import os
import statistics
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from peers.process import Host
from peers.task import BATCH, LR, Task, load


class Network(nn.Module):
    """The task's model with the two methods that pfl asks of one."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.layers = task.model(task.state)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch in training."""
        self.train()
        return F.cross_entropy(self.layers(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """Return nothing: no round evaluates."""
        return {}


class OnDemand(TrainingProcessCallback[Any]):  # type: ignore[misc]
    """Stops after each round until another is wanted; the first rank hears of it, and tells the others."""

    def __init__(self, host: Host | None) -> None:
        self._host, self._begun, self._cpu = host, 0.0, 0.0
        self.round = 0
        self.busy: list[float] = []
        """Seconds of this process's CPU, by round."""

    def on_train_begin(self, *, model: Any) -> Metrics:
        """Say that all is ready, and wait."""
        self._say("ready")
        self._wait()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Say how long the round took, and wait."""
        self.busy.append(time.process_time() - self._cpu)
        self._say(time.perf_counter() - self._begun)
        self.round += 1
        return not self._wait(), Metrics()

    def _say(self, word: Any) -> None:
        if self._host:
            self._host.say(word)

    def _wait(self) -> bool:
        told = torch.tensor(self._host is not None and self._host.told_to_play())
        if dist.is_initialized():
            dist.broadcast(told, 0)
        self._begun, self._cpu = time.perf_counter(), time.process_time()
        return bool(told)


def busiest(busy: list[float]) -> float:
    """Return the median CPU seconds a round, without the first, of the rank with most."""
    most = torch.tensor(statistics.median(busy[1:]))
    if dist.is_initialized():
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return most.item()


def main() -> None:
    """Play rounds with the other ranks; the first answers the process that has started them."""
    host = Host() if os.environ.get("RANK", "0") == "0" else None
    torch.set_num_threads(1)
    task = load(Path(sys.argv[1]))
    on_demand = OnDemand(host)

    def dataset(client: int) -> PyTorchTensorDataset:
        order = torch.cat(task.batches[on_demand.round][client])
        return PyTorchTensorDataset((task.x[order], task.y[order]), user_id=str(client))

    clients = cycle(range(task.clients))
    data = FederatedDataset(dataset, lambda: next(clients))
    network = Network(task)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=task.rounds,  # the first alone, which does not count
            train_cohort_size=task.clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()]),
        PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0)),
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=BATCH),
        callbacks=[on_demand],
    )
    most = busiest(on_demand.busy)
    if host:
        torch.save(network.layers.state_dict(), sys.argv[2])
        host.say({"busy": most})


if __name__ == "__main__":
    main()
