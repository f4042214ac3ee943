"""Who holds what in the clients world: training, validation and test samples of every client.

A sample is an index into one pool of images, so that what a round trains on is one gather. Every random choice
draws from a stream of its own: one more domain, noise or a validation set moves no sample between clients.
"""

from dataclasses import dataclass
from math import floor, isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syncnorm.config import Clients, Data
from syncnorm.data.domain_pool import Pool, load_pool
from syncnorm.data.partitions.card import partition_card
from syncnorm.data.partitions.client_noise import noisy_test, noisy_training
from syncnorm.data.partitions.deal import METHODS, default_options
from syncnorm.data.partitions.holdings import RESAMPLED, Dealt, Holdings, Homes, Indices, Resampled
from syncnorm.errors import UserError, unknown


@dataclass(frozen=True, eq=False)
class Population:
    """The clients of a run and what they hold, as `make_population` builds it.

    Clients 0 .. count-1 train; the `held_out` ones after them hold data and never train. `x` (N, ...) and `y`
    int64 (N,), on the device, pool all domains' training samples, with noise; `train` and `validation` index them.
    """

    world: Clients
    seed: int
    pool: Pool
    homes: Homes
    holdings: Holdings
    x: Tensor
    train_size: int | None
    """Samples that training is cut to; None keeps all that are not validation."""
    validation_size: int

    @property
    def count(self) -> int:
        """Clients that train."""
        return self.homes.count

    @property
    def held_out(self) -> int:
        """Further clients, which never train."""
        return self.homes.held_out

    @property
    def y(self) -> Tensor:
        """Labels of `x`: int64 (N,)."""
        return self.pool.y

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.pool.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) of an image, (C, L) of a signal."""
        return tuple(self.x.shape[1:])

    @property
    def domains(self) -> tuple[str, ...]:
        """All domains: those of the training clients, then those that only held-out clients hold."""
        return self.pool.names

    @property
    def global_test(self) -> tuple[Tensor, Tensor]:
        """Test images and labels of all domains that clients train on, without noise."""
        end = self.pool.test_starts[self.homes.domains]
        return self.pool.test_x[:end], self.pool.test_y[:end]

    def domain(self, client: int) -> str:
        """Return the name of the domain that a client holds."""
        return self.pool.names[self.homes.of(client)]

    def train(self, client: int) -> Tensor:
        """Return the client's training samples: int64 indices into `x` and `y`, on the CPU, in random order."""
        return self._pooled(client, self._split(client)[0])

    def validation(self, client: int) -> Tensor:
        """Return the client's validation samples, as `train` does, and none of those; held-out clients have none."""
        train, validation = self._split(client)
        # A resampled client may hold a sample twice.
        return self._pooled(client, validation[~np.isin(validation, train)])

    def test(self, client: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the client's own test set: images (n, C, H, W), labels (n,), weights float64 (n,) that sum to 1.

        It has all test images of the client's domain, with the client's noise. Each class weighs what it weighs in
        the client's training samples, so that the weighted accuracy estimates, without bias, the accuracy on the
        client's own distribution of labels, with less noise than a small split of the client's own. Skews that leave
        labels alike have uniform weights. A class without test images weighs nothing, and the others make up for it.

        Raises `UserError` where none of the client's classes has a test image.
        """
        place = self.pool.tests(self.homes.of(client))
        x, y = noisy_test(self.pool.test_x[place], self.world, client, self.seed), self.pool.test_y[place]
        return x, y, self.test_weights(client)

    def test_weights(self, client: int) -> Tensor:
        """Return the weights of `test` alone, without its images."""
        y = self.pool.test_y[self.pool.tests(self.homes.of(client))]
        if _labels_alike(self.world):
            return torch.full((len(y),), 1 / len(y), dtype=torch.float64, device=y.device)
        tested = torch.bincount(y, minlength=self.classes)
        share = self.histogram(client).double().to(y.device).where(tested > 0, 0)
        if share.sum() == 0:
            raise UserError(
                f"no class that client {client} trains on has a test image in domain '{self.domain(client)}': use "
                "more test samples (data.test_limit)."
            )
        return (share / share.sum() / tested.clamp(min=1))[y]

    def histogram(self, client: int) -> Tensor:
        """Return how many training samples of each class a client has: int64 (classes,)."""
        return torch.bincount(self.y[self.train(client).to(self.y.device)], minlength=self.classes).cpu()

    def card(self) -> dict[str, Any]:
        """Return the partition card: who holds what and how it was drawn, as plain data. See `partition_card`."""
        return partition_card(self)

    def _split(self, client: int) -> tuple[Indices, Indices]:
        """Return training and validation samples, as indices in the client's domain."""
        samples = self.holdings.samples(client)
        held = len(samples) - (self.validation_size if client < self.count else 0)
        return samples[: held if self.train_size is None else self.train_size], samples[held:]

    def _pooled(self, client: int, samples: Indices) -> Tensor:
        return torch.from_numpy(samples + self.pool.starts[self.homes.of(client)])


def make_population(
    data: Data,
    world: Clients,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Population:
    """Load the domains and give every client what it holds.

    Client k holds domain k mod D of `world.domains` (or of `data.name` alone); `world.skew` deals the training
    samples of a domain to all of its clients, held-out ones included. With several domains `data.path` is a folder
    in which each lies under its name, the limits of `data` hold for each, and all share the
    fixed scale of `load`. The skew "resampled" lets clients share samples and costs nothing per client.

    `world.equal_size` keeps the first samples of each client, in random order, and `world.validation` takes its
    samples off the end, both in units of the smallest training client (FedBN's protocol, arXiv 2102.07623).

    Raises `UserError` for whatever of this is unknown, out of range or does not go together.
    """
    _check(world)
    trained = world.domains or (data.name,)
    names = tuple(dict.fromkeys((*trained, *world.unseen)))
    apart = bool(world.domains or world.unseen)
    pool = load_pool(data, names, apart, torch.device(device), dtype)
    homes = Homes(world.count, world.held_out, len(trained), tuple(names.index(name) for name in world.unseen))
    holdings = _hold(world, homes, pool, seed)
    train_size, validation_size = _sizes(world, holdings.smallest())
    x = pool.x
    if world.noise and isinstance(holdings, Dealt):
        parts = {
            client: torch.from_numpy(part + pool.starts[homes.of(client)]) for client, part in holdings.parts.items()
        }
        x = noisy_training(pool.x, parts, world, seed)
    population = Population(world, seed, pool, homes, holdings, x, train_size, validation_size)
    if isinstance(holdings, Dealt):
        for client in holdings.parts:  # a client without a test image is better found now than after training
            population.test_weights(client)
    return population


def forget() -> None:
    """Drop the domains that this process keeps for its next run."""
    load_pool.cache_clear()


def _check(world: Clients) -> None:
    for name, value, holds, rule in (
        ("count", world.count, world.count >= 1, "at least 1"),
        ("held_out", world.held_out, world.held_out >= 0, "0 or more"),
        ("noise", world.noise, isfinite(world.noise) and world.noise >= 0, "0 or more"),
        ("equal_size", world.equal_size, 0 <= world.equal_size <= 1, "from 0 to 1"),
        ("validation", world.validation, 0 <= world.validation < 1, "from 0 to below 1"),
    ):
        if not holds:
            raise UserError(f"world.{name} is {value}: it must be {rule}.")
    if world.equal_size + world.validation > 1 + 1e-9:
        raise UserError(
            f"world.equal_size {world.equal_size:g} and world.validation {world.validation:g} are more than the "
            "smallest client has: together they must be at most 1."
        )
    for name, domains, holders in (
        ("domains", world.domains, ("count", world.count)),
        ("unseen", world.unseen, ("held_out", world.held_out)),
    ):
        for domain in domains:
            if domains.count(domain) > 1:
                raise UserError(f"world.{name} has '{domain}' twice: name each domain once.")
        if len(domains) > holders[1]:
            raise UserError(
                f"world.{name} names {len(domains)} of them but world.{holders[0]} is {holders[1]}: each needs a "
                f"client, so set {holders[0]} to {len(domains)} or more."
            )
    _check_skew(world)


def _check_skew(world: Clients) -> None:
    if world.skew not in (*METHODS, RESAMPLED):
        raise unknown("skew", world.skew, (*METHODS, RESAMPLED))
    if "alpha" in world.skew_options:
        raise UserError("alpha stands in world.skew_options: write it as world.alpha.")
    dirichlet = [*(method for method in METHODS if "alpha" in default_options(method)), RESAMPLED]
    if world.alpha is not None and world.skew not in dirichlet:
        raise UserError(
            f"world.alpha is {world.alpha} but the skew '{world.skew}' has no such option: leave alpha out, or "
            f"choose {', '.join(dirichlet[:-1])} or {dirichlet[-1]}."
        )
    if world.noise and world.skew == RESAMPLED:
        raise UserError(
            f"world.noise is {world.noise:g} but clients of the skew {RESAMPLED} share images, and an image has one "
            "level of noise: leave noise out, or choose another skew."
        )


def _hold(world: Clients, homes: Homes, pool: Pool, seed: int) -> Holdings:
    labels = {name: pool.labels(number) for number, name in enumerate(pool.names)}
    options = world.skew_options if world.alpha is None else {**world.skew_options, "alpha": world.alpha}
    if world.skew == RESAMPLED:
        return Resampled(homes, list(labels.values()), seed, options)
    return Dealt(homes, labels, world.skew, seed, options)


def _sizes(world: Clients, smallest: int) -> tuple[int | None, int]:
    """Return how many samples training is cut to (None: to none) and how many of the last are validation."""
    sizes = {}
    for name, fraction in (("equal_size", world.equal_size), ("validation", world.validation)):
        # Rounded down, but 0.29 of 100 is 29 and not 28.
        sizes[name] = floor(fraction * smallest + 1e-9)
        if fraction > 0 and sizes[name] == 0:
            raise UserError(
                f"world.{name} is {fraction:g} of the smallest client's data, which has {smallest} samples: that is "
                "none, so raise it or use fewer clients."
            )
    return sizes["equal_size"] or None, sizes["validation"]


def _labels_alike(world: Clients) -> bool:
    return world.skew in ("iid", "quantity") or (world.skew == RESAMPLED and world.alpha is None)
