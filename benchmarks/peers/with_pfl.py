# mypy: disable-error-code=import-not-found
"""The task on pfl-research (Granqvist et al., arXiv 2404.06430), as its user would write it.

    python -m peers.with_pfl TASK STATE     train the task's clients, write the last model to STATE

Needs torch and pfl, not syncnorm. pfl averages parameters alone: running statistics go on from client to client.
"""

import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
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
    """Stops after each round until another is wanted."""

    def __init__(self, host: Host) -> None:
        self._host, self._begun = host, 0.0
        self.round = 0

    def on_train_begin(self, *, model: Any) -> Metrics:
        """Say that all is ready, and wait."""
        self._host.say("ready")
        self._wait()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Say how long the round took, and wait."""
        self._host.say(time.perf_counter() - self._begun)
        self.round += 1
        return not self._wait(), Metrics()

    def _wait(self) -> bool:
        told = self._host.told_to_play()
        self._begun = time.perf_counter()
        return told


def main() -> None:
    """Play rounds for the process that has started this one."""
    host = Host()
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
    torch.save(network.layers.state_dict(), sys.argv[2])
    host.say({})


if __name__ == "__main__":
    main()
