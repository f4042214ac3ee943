"""What server and clients of a run agree on beforehand: data, model, policy, algorithm, schedule.

Everything follows from the run and its seed alone, so that any process that knows the run can play any client.
"""

from dataclasses import replace

import torch
from torch import Tensor

from syncnorm.config import Clients, Run
from syncnorm.data import make_federated_dataset
from syncnorm.data.partitions.sites import Site
from syncnorm.federated.aggregations import aggregation_of
from syncnorm.federated.algorithms import algorithm_of
from syncnorm.federated.attacks import hostile_clients
from syncnorm.federated.engines.engine import engine_of
from syncnorm.federated.engines.memory import check_momentum, check_without_memory
from syncnorm.federated.inspection import inspect_model
from syncnorm.federated.layout import Layout
from syncnorm.federated.local import Local
from syncnorm.federated.models import Models
from syncnorm.federated.policies import policy_named, policy_options
from syncnorm.federated.schedule import Schedule
from syncnorm.federated.validation import check_clients
from syncnorm.tasks import task_named
from syncnorm.training.building import data_device
from syncnorm.training.precision import PRECISIONS
from syncnorm.worlds import expect

CHUNK = 500
"""Images per batch in passes without training."""


class Federation:
    """A run of the clients world, ready to start.

    aggregation: how the server makes one value of the clients'.
    hostile: the clients that do not send what they have trained.
    schedule: who trains when, on which batches, at which learning rate.
    layout: which entries of the model are sent, kept and combined.
    models: builds the model, and holds the copies that train and evaluate.

    `site` is the one that this process is, in a run whose data lie at their sites.

    Raises:
        UserError: anything in the run that is unknown, out of range or inconsistent.
    """

    def __init__(self, run: Run, device: torch.device | None = None, site: Site | None = None) -> None:
        self.run, self.world = run, expect(run, Clients)
        self.task = task_named(run.task)
        self.policy = policy_named(self.world.method)
        self.options = policy_options(self.world.method, self.world.method_options)
        self.algorithm = algorithm_of(self.world, self.policy, self.options)
        self.aggregation = aggregation_of(self.world.aggregation, self.world.aggregation_options)
        check_clients(run, self.policy, self.algorithm)
        self.hostile = hostile_clients(run)
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype, held = PRECISIONS[run.precision].data, data_device(run, self.device)
        self.population = make_federated_dataset(run.data, self.world, run.seed, held, dtype, run.task, site)
        shape, classes = self.population.shape, self.population.classes
        self.models = Models(run, self.policy, shape, classes, self.device)
        inspect_model(self.models.template, *self._some_samples(), classes, run)
        if engine_of(self.world) == "cohort" or self.algorithm.shares_statistics:
            alone = f"set {'rank_engine' if self.world.engine == 'torchrun' else 'engine'} to loop, or "
            instead = "" if self.algorithm.shares_statistics else alone
            check_without_memory(self.models.template, instead)
            check_momentum(self.models.template, instead)
        self.layout = Layout(self.models.template, self.policy, counts=self.world.send_counts)
        self.schedule = Schedule(run, self.population, self.policy, self.options, self.algorithm)

    def _some_samples(self) -> tuple[Tensor, Tensor]:
        """Return two samples, or one; zeros where all data lie at sites."""
        x, y = self.population.x[:2], self.population.y[:2]
        if not len(x):
            x, y = x.new_zeros(2, *self.population.shape), y.new_zeros(2)
        return x.to(self.device), y.to(self.device)

    def local(self, round_: int) -> Local:
        """Return the settings of local training in a round."""
        return Local(
            classifier=self.models.classifier(self.schedule.is_frozen(round_)),
            optim=replace(self.run.optim, lr=self.schedule.learning_rate(round_)),
            algorithm=self.algorithm,
            shared=tuple(self.layout.shared_parameters),
            clip=self.world.clip,
            augment=self.run.data.augment,
            workers=self.run.data.workers,
        )

    def fresh(self, round_: int) -> dict[str, Tensor]:
        """Return the initial parameters and buffers of the model that trains in a round; shared, so do not modify
        them."""
        return self.models.fresh(self.schedule.is_frozen(round_))

    def train_images(self, client: int, size: int = CHUNK) -> list[Tensor]:
        """Return a client's training images, in parts of at most `size`."""
        samples = self.population.x[self.schedule.samples(client)]
        return [part.to(self.device) for part in torch.split(samples, size)]

    def bytes_inside(self) -> int:
        """Return the bytes that a client sends, and receives, inside the local steps of a round."""
        state = self.models.template.state_dict()
        return self.algorithm.bytes_inside({name: state[name] for name in self.layout.statistics})
