"""The data of the clients world: training, validation and test samples of every client.

A sample is an index into one pool of images, so that a round's batch is one gather. Every random choice has its own
stream: an additional domain, noise or a validation set moves no sample between clients.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from syncnorm.config import RESAMPLED, Clients, Data
from syncnorm.data.domain_pool import Pool
from syncnorm.data.partitions.client_noise import noisy_test
from syncnorm.data.partitions.client_partition import DisjointPartition, DomainAssignment, Indices, Partition
from syncnorm.data.partitions.client_validation import divide
from syncnorm.data.split import seed_of
from syncnorm.errors import UserError

NATURAL = "natural"
"""The skew under which each client is one value of the natural column."""
COUNTED = 1000
"""Up to this many clients, those without a validation sample are counted."""


@dataclass(frozen=True, eq=False, repr=False)
class FederatedDataset:
    """The clients of a run and their data, as `make_federated_dataset` builds it.

    Clients 0 .. count-1 train; the `held_out` ones after them have data but never train. `x` (N, ...) and `y` int64
    (N,), on the device, contain all domains' training samples, with noise; `train` and `validation` index them.
    """

    world: Clients
    seed: int
    pool: Pool
    assignment: DomainAssignment
    partition: Partition
    x: Tensor
    train_size: int | None
    """Largest number of training samples per client; None keeps all that are not for validation."""
    data: Data
    """The run's data; its `validation` is the fraction that each client holds out."""
    loaded: Pool | None = None
    """The pool before it was normalised without validation samples; None: it was not."""
    here: frozenset[int] | None = None
    """The clients whose data this process has; None: all."""
    _divided: dict[int, tuple[Indices, Indices]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Clients that train."""
        return self.assignment.count

    @property
    def held_out(self) -> int:
        """Number of additional clients, which never train."""
        return self.assignment.held_out

    @property
    def complete(self) -> bool:
        """Whether the data of all clients are here, and not at their sites."""
        return self.here is None or len(self.here) == self.count

    @property
    def y(self) -> Tensor:
        """Labels of `x`: int64 (N,)."""
        return self.pool.y

    @property
    def classes(self) -> int:
        """Number of classes, or of outputs of another task."""
        return len(self.pool.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) of an image, (C, L) of a signal."""
        return tuple(self.x.shape[1:])

    @property
    def domains(self) -> tuple[str, ...]:
        """All domains: those of the training clients, then those of held-out clients only."""
        return self.pool.names

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the content of its pool as loaded, see `syncnorm.data.fingerprint`."""
        return (self.loaded or self.pool).fingerprint

    def summary(self) -> str:
        """Return one line: the data and the number of clients."""
        held_out = f" and {self.held_out} held out" if self.held_out else ""
        said = f"{self.pool.summary()}; {self.count:,} clients{held_out}, skew {self.world.skew}"
        if self.data.validation:
            small = self.without_validation
            said += f", {self.data.validation:g} of each for validation"
            said += f" ({len(small)} of {len(self.counted):,} too small for it)" if small else ""
        return said

    def __repr__(self) -> str:
        return f"<FederatedDataset {self.summary()}>"

    @property
    def global_test(self) -> tuple[Tensor, Tensor]:
        """Test images and labels of all domains that clients train on, without noise."""
        end = self.pool.test_starts[self.assignment.domains]
        return self.pool.test_x[:end], self.pool.test_y[:end]

    @property
    def global_origin(self) -> Tensor | None:
        """What each of these test images shows: int64 (N,); None if each is its own."""
        return (
            None if self.pool.origin is None else self.pool.origin[: self.pool.test_starts[self.assignment.domains]]
        )

    def domain(self, client: int) -> str:
        """Return the name of a client's domain."""
        return self.pool.names[self.assignment.of(client)]

    @property
    def counted(self) -> range:
        """The clients whose validation samples are counted: those that train, at most the first thousand."""
        return range(min(self.count, COUNTED))

    @cached_property
    def without_validation(self) -> tuple[int, ...]:
        """Those of `counted` that are too small for a validation sample, and train on all they have."""
        if not self.data.validation:
            return ()
        return tuple(client for client in self.counted if len(self._split(client)[1]) == 0)

    def train(self, client: int) -> Tensor:
        """Return the client's training samples: int64 indices into `x` and `y`, on the CPU, in random order."""
        return self._pooled(client, self._split(client)[0])

    def validation(self, client: int) -> Tensor:
        """Return the client's validation samples, disjoint from `train`; held-out clients have none."""
        return self._pooled(client, self._split(client)[1])

    def natural(self, client: int) -> str:
        """Return the client's value of the natural column; empty for skews other than "natural"."""
        column = self.pool.natural[self.assignment.of(client)]
        samples = self.partition.samples(client)
        if self.world.skew != NATURAL or column is None or not len(samples):
            return ""
        value: int = column.train[samples[0]]
        return column.names[value]

    def test(self, client: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the client's own test set: images (n, C, H, W), labels (n,), weights float64 (n,) that sum to 1.

        With the skew "natural", a client has the test samples of its own value, with uniform weights. Otherwise it
        has all test samples of its domain, with the client's noise. Each class has the weight that it has in the
        client's training samples, so that the weighted accuracy is an unbiased estimate of the accuracy on the
        client's own label distribution, with less variance than a small split of the client's own data. Skews that do
        not change labels have uniform weights. A class without test samples has weight 0, and the other weights are
        rescaled.

        Raises `UserError` if the client, or every one of its classes, has no test sample.
        """
        index = self.test_index(client)
        x, y = noisy_test(self.pool.test_x[index], self.world, client, self.seed), self.pool.test_y[index]
        return x, y, self.test_weights(client)

    def test_weights(self, client: int) -> Tensor:
        """Return only the weights of `test`."""
        y = self.pool.test_strata[self.test_index(client)]
        if self._labels_alike():
            return torch.full((len(y),), 1 / len(y), dtype=torch.float64, device=y.device)
        share = self.histogram(client).double().to(y.device)
        tested = torch.bincount(y, minlength=len(share))
        share = share.where(tested > 0, 0)
        if share.sum() == 0:
            raise UserError(
                f"no class that client {client} trains on has a test image in domain '{self.domain(client)}': use "
                "more test samples (data.test_limit)."
            )
        return (share / share.sum() / tested.clamp(min=1))[y]

    def test_places(self, client: int) -> Tensor:
        """Return the places of the client's test samples among those of the pool: int64 (n,), on the CPU."""
        index = self.test_index(client)
        return torch.arange(index.start, index.stop) if isinstance(index, slice) else index.cpu()

    def histogram(self, client: int) -> Tensor:
        """Return the number of a client's training samples of each class, or stratum: int64 (classes,)."""
        strata = self.pool.strata[self.train(client).to(self.y.device)]
        return torch.bincount(strata, minlength=len(self.pool.strata_names)).cpu()

    def _split(self, client: int) -> tuple[Indices, Indices]:
        """Return training and validation samples, as indices in the client's domain."""
        if client in self._divided:
            return self._divided[client]
        samples, validation = self.partition.samples(client), np.zeros(0, np.int64)
        if self.data.validation and client < self.count:
            places = samples + self.pool.starts[self.assignment.of(client)]
            labels, seed = self._labels[places], seed_of(self.data, self.seed)
            samples, validation = divide(samples, labels, self._numbers[places], self.data.validation, seed)
        divided = samples[: self.train_size], validation
        if isinstance(self.partition, DisjointPartition):  # of other clients, nothing is stored
            self._divided[client] = divided
        return divided

    @cached_property
    def _labels(self) -> Indices:
        labels: Indices = self.pool.strata.cpu().numpy()
        return labels

    @cached_property
    def _numbers(self) -> Indices:
        """The number of what each training sample shows."""
        origin = self.pool.train_origin
        return np.arange(len(self.y)) if origin is None else origin.numpy()

    def _pooled(self, client: int, samples: Indices) -> Tensor:
        return torch.from_numpy(samples + self.pool.starts[self.assignment.of(client)])

    def test_index(self, client: int) -> slice | Tensor:
        """Return the index of the client's test samples among the pool's."""
        domain = self.assignment.of(client)
        place, column, value = self.pool.tests(domain), self.pool.natural[domain], self.natural(client)
        if not value or column is None:
            return place
        own = np.flatnonzero(column.test == column.names.index(value))
        if len(own) == 0:
            raise UserError(
                f"client {client}, '{value}' of the natural column, has no test sample: give it some, or leave it "
                "out."
            )
        return torch.from_numpy(own + place.start).to(self.pool.test_y.device)

    def _labels_alike(self) -> bool:
        """Return whether every client's test samples represent it without weights."""
        skew = self.world.skew
        return skew in ("iid", "quantity", NATURAL) or (skew == RESAMPLED and self.world.alpha is None)
