"""Who trains in a round, on which batches, and at which learning rate.

Everything follows from the run and its seed, with a separate random stream for each choice, so that any process that
knows the run can play any client in any round.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from syncnorm.config import Clients, Run
from syncnorm.data import FederatedDataset
from syncnorm.errors import UserError
from syncnorm.federated.algorithms.base import Algorithm
from syncnorm.federated.policies import Policy
from syncnorm.seeds import derive
from syncnorm.training.learner import learning_rate
from syncnorm.worlds import expect


@dataclass(frozen=True)
class Plan:
    """The local steps of a client in a round."""

    batches: tuple[Tensor, ...]
    """Indices into the population's pool, one tensor per step."""
    running: tuple[bool, ...]
    """For each step, whether running statistics normalise it."""
    small: int
    """Number of batches below min_batch, including skipped ones."""


class Schedule:
    """The rounds of a run."""

    def __init__(
        self,
        run: Run,
        population: FederatedDataset,
        policy: Policy,
        options: Mapping[str, float],
        algorithm: Algorithm,
    ) -> None:
        self.run, self.world = run, expect(run, Clients)
        self._population, self._algorithm = population, algorithm
        self._one_client = policy.data == "all"
        self._frozen_from = options["frozen_from"] if policy.training == "frozen" else None

    @cached_property
    def trainees(self) -> range:
        """The clients that train: all except held-out ones, or the one client with all data."""
        return range(1 if self._one_client else self.world.count)

    def cohort(self, round_: int) -> list[int]:
        """Return the clients of a round, in ascending order: a sample without replacement."""
        count = len(self.trainees)
        size = self.world.sampled(count)
        rng = np.random.default_rng(derive("cohort", self.run.seed, round_))
        return sorted(rng.choice(count, size, replace=False).tolist())

    def samples(self, client: int) -> Tensor:
        """Return a client's training samples, as indices into the population's pool."""
        if not self._one_client or client >= len(self.trainees):
            return self._population.train(client)
        return self._all_samples

    @cached_property
    def _all_samples(self) -> Tensor:
        return torch.cat([self._population.train(client) for client in range(self.world.count)])

    def plan(self, client: int, round_: int) -> Plan:
        """Return a client's local steps: its samples in a new order each epoch, cut into batches.

        A skipped batch does not count as a step: with local_steps, the next batch takes its place.
        """
        world, samples = self.world, self.samples(client)
        rng = np.random.default_rng(derive("order", self.run.seed, round_, client))
        batches: list[Tensor] = []
        running: list[bool] = []
        small = epoch = 0
        while epoch < world.local_epochs if world.local_steps is None else len(batches) < world.local_steps:
            order = torch.from_numpy(rng.permutation(len(samples))).to(samples.device)
            for batch in torch.split(samples[order], world.batch):
                if len(batches) == world.local_steps:
                    break
                is_small = len(batch) < world.min_batch
                small += is_small
                if is_small and world.small_batch == "error":
                    raise self._too_small(client, batch)
                if not is_small or world.small_batch == "use_running":
                    batches.append(batch)
                    running.append(is_small)
            epoch += 1
            if not batches:  # no other order would give one
                break
        changed = self._algorithm.local_batches(batches, lambda: self._smallest(round_))
        return Plan(tuple(changed), tuple(running), small)

    def work(self, client: int) -> int:
        """Return the number of samples on which a client takes steps in a round: its samples in each epoch, or a
        batch a step. A client with too few for any batch has none; a last batch that is skipped is not taken off."""
        own, world = len(self.samples(client)), self.world
        if own < world.min_batch and world.small_batch == "skip":
            return 0
        return world.local_epochs * own if world.local_steps is None else world.local_steps * min(world.batch, own)

    def learning_rate(self, round_: int) -> float:
        """Return the clients' learning rate in a round: the schedule of `optim` over rounds."""
        return self.run.optim.lr * learning_rate(round_, self.world.rounds, self.run.optim)

    def is_frozen(self, round_: int) -> bool:
        """Return whether a round trains with frozen statistics (FixBN's second stage)."""
        return self._frozen_from is not None and round_ / self.world.rounds >= self._frozen_from

    def _smallest(self, round_: int) -> int:
        """Return the number of samples of the round's smallest client that has a batch."""
        world = self.world
        sizes = (len(self.samples(client)) for client in self.cohort(round_))
        return min((size for size in sizes if size >= world.min_batch), default=world.batch)

    def _too_small(self, client: int, batch: Tensor) -> UserError:
        return UserError(
            f"client {client} of {self.world.count} has {len(self.samples(client))} training samples, and a batch of "
            f"{len(batch)} is below min_batch {self.world.min_batch}: set small_batch to skip or use_running, lower "
            "min_batch, or make the partition less skewed."
        )
