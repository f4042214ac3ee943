"""What server and clients of a run agree on beforehand: data, model, policy, who trains when and on which batches.

Everything is derived from the run and its seed alone, each random choice by a stream of its own, so that any process
that knows the run can play any client in any round.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from syncnorm.config import Clients, Norm, Run
from syncnorm.data import make_federated_dataset
from syncnorm.errors import UserError
from syncnorm.federated.inspection import inspect_model
from syncnorm.federated.local import Local
from syncnorm.federated.policies import (
    KEPT,
    SENT,
    STATISTICS,
    Rule,
    batch_norm_entries,
    policy_named,
    policy_options,
    rules,
)
from syncnorm.federated.validation import algorithm_options, check_run
from syncnorm.seeds import derive
from syncnorm.surgery import batch_norms, convert
from syncnorm.training import Classifier
from syncnorm.training.building import DTYPES, build_model
from syncnorm.training.classifier import learning_rate

CHUNK = 500
"""Images at once in passes that do not train."""


@dataclass(frozen=True)
class Plan:
    """The local steps of a client in a round."""

    batches: tuple[Tensor, ...]
    running: tuple[bool, ...]
    small: int
    """Batches below min_batch, those that are left out too."""


class Federation:
    """A run of the clients world, ready: data, model, and the rules that everybody follows.

    Raises:
        UserError: whatever in the run is unknown, out of range or does not go together.
    """

    def __init__(self, run: Run, device: torch.device | None = None) -> None:
        assert isinstance(run.world, Clients)
        check_run(run)
        self.run, self.world = run, run.world
        self.policy = policy_named(run.world.method)
        self.options = policy_options(run.world.method, run.world.method_options)
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = DTYPES[run.precision]
        self.population = make_federated_dataset(run.data, run.world, run.seed, self.device, dtype)
        self._dtype = dtype
        self.model = self._build()
        inspect_model(self.model, self.population.x[:2], self.population.classes, run.model)
        self.kinds: dict[str, Rule] = rules(self.model, self.policy)
        self.layers = list(batch_norms(self.model))

    def _build(self) -> nn.Module:
        """Build the model anew: a copy's closures, if it has any, would still speak of the original."""
        model = build_model(self.run, self.population.shape, self.population.classes).to(self.device, self._dtype)
        if self.policy.training != "hybrid":
            return model
        rules(model, self.policy)  # of a model that has no batch norm any more, `convert` would bring it back
        return convert(model, "hybrid_bn", **self.run.norm.options)

    # -- who, when

    @cached_property
    def trainees(self) -> range:
        """The clients that train: all but those held out, or the one that holds everything."""
        return range(1 if self.world.method == "centralised" else self.world.count)

    def cohort(self, round_: int) -> list[int]:
        """Return the clients of a round, in ascending order: a sample without replacement."""
        count = len(self.trainees)
        size = max(1, round(self.world.participation * count))
        rng = np.random.default_rng(derive("cohort", self.run.seed, round_))
        return sorted(rng.choice(count, size, replace=False).tolist())

    def train(self, client: int) -> Tensor:
        """Return a client's training samples, as indices into the population's pool."""
        if self.world.method != "centralised" or client >= len(self.trainees):
            return self.population.train(client)
        return self._everything

    @cached_property
    def _everything(self) -> Tensor:
        return torch.cat([self.population.train(client) for client in range(self.world.count)])

    def plan(self, client: int, round_: int) -> Plan:
        """Return a client's local steps: its samples in a new order each epoch, cut into batches.

        A batch that is left out is no step: with local_steps the next one takes its place. Where clients share the
        statistics of their first step (FedTAN), each gives it as many samples as the smallest client has.
        """
        world, samples = self.world, self.train(client)
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
            if not batches:  # nor will there be one in any other order
                break
        if batches and self.policy.training == "synchronised":
            batches[0] = batches[0][: self._smallest_batch(round_)]
        return Plan(tuple(batches), tuple(running), small)

    def _smallest_batch(self, round_: int) -> int:
        """Return the size of the smallest first batch of a round's clients, without those left out."""
        world = self.world
        sizes = (len(self.train(client)) for client in self.cohort(round_))
        return min((size for size in sizes if size >= world.min_batch), default=world.batch)

    def _too_small(self, client: int, batch: Tensor) -> UserError:
        return UserError(
            f"client {client} of {self.world.count} has {len(self.train(client))} training samples, and a batch of "
            f"{len(batch)} is below min_batch {self.world.min_batch}: set small_batch to skip or use_running, lower "
            "min_batch, or make the partition less skewed."
        )

    # -- how

    def learning_rate(self, round_: int) -> float:
        """Return the clients' learning rate in a round: the schedule of `optim`, over rounds."""
        return self.run.optim.lr * learning_rate(round_, self.world.rounds, self.run.optim)

    def is_frozen(self, round_: int) -> bool:
        """Return whether a round trains with frozen statistics (FixBN's second stage)."""
        return self.policy.training == "frozen" and round_ / self.world.rounds >= self.options["frozen_from"]

    def local(self, round_: int) -> Local:
        """Return what local training is in a round."""
        options = algorithm_options(self.world)
        return Local(
            classifier=self._frozen_classifier if self.is_frozen(round_) else self._classifier,
            optim=replace(self.run.optim, lr=self.learning_rate(round_)),
            prox=options.get("mu", 0.0),
            squared=options.get("squared", True),
            shared=self.shared_parameters,
            clip=self.world.clip,
            synchronised=self.policy.training == "synchronised",
            augment=self.run.data.augment,
        )

    @cached_property
    def _classifier(self) -> Classifier:
        layer = Norm("reference_bn", self.run.norm.options) if self.policy.training == "running" else None
        return Classifier(self._build(), norm=layer, optim=self.run.optim)

    @cached_property
    def _frozen_classifier(self) -> Classifier:
        return Classifier(self._build(), norm=Norm("frozen_bn", self.run.norm.options), optim=self.run.optim)

    # -- the model's entries

    @cached_property
    def shared_parameters(self) -> frozenset[str]:
        """The trained parameters that the server averages: what server optimisers and corrections act on."""
        trained = (name for name, parameter in self.model.named_parameters() if parameter.requires_grad)
        return frozenset(name for name in trained if self.kinds[name] == "average")

    @cached_property
    def entries(self) -> dict[str, str]:
        """By name in the model's state: the name under which its parameters and buffers list the same tensor."""
        known = {id(value): name for name, value in everything(self.model)}
        return {name: known[id(value)] for name, value in self.model.state_dict(keep_vars=True).items()}

    @cached_property
    def shared_names(self) -> list[str]:
        """The entries that a broadcast holds in training."""
        return [name for name, rule in self.kinds.items() if rule in SENT and rule not in KEPT]

    @cached_property
    def gathered_names(self) -> list[str]:
        """The entries that no training uses, and a pass over the clients' data fills."""
        return [name for name, rule in self.kinds.items() if rule == "gathered"]

    @cached_property
    def sent_names(self) -> list[str]:
        """The entries that a reply holds."""
        return [name for name, rule in self.kinds.items() if rule in SENT]

    @cached_property
    def kept_names(self) -> list[str]:
        """The entries that stay with a client."""
        return [name for name, rule in self.kinds.items() if rule in KEPT]

    def rules_of_kept(self, statistics: Rule) -> dict[str, Rule]:
        """Return what an average over clients does with the entries that they keep; `statistics` is the pooling."""
        parts = batch_norm_entries(self.model)
        state = self.model.state_dict()
        return {
            name: statistics
            if parts.get(name) in STATISTICS
            else "average"
            if state[name].is_floating_point()
            else "largest"
            for name in self.kept_names
        }

    @cached_property
    def exchanged_bytes(self) -> int:
        """Bytes that a client sends, and receives, inside the steps of a round (FedTAN).

        Each layer's mean and variance, and the gradients with respect to both: 4 C numbers each way.
        """
        if self.policy.training != "synchronised":
            return 0
        state = self.model.state_dict()
        return sum(2 * state[name].numel() * state[name].element_size() for name in self.statistics)

    @cached_property
    def statistics(self) -> list[str]:
        """The running statistics that the server owns."""
        entries = batch_norm_entries(self.model)
        return [name for name, part in entries.items() if part in STATISTICS and self.kinds[name] not in KEPT]

    def fresh(self, round_: int) -> dict[str, Tensor]:
        """Return every parameter and buffer of the round's model as it was built; shared, not to be written to."""
        return self._fresh_frozen if self.is_frozen(round_) else self._fresh

    @cached_property
    def _fresh(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in everything(self._classifier.model)}

    @cached_property
    def _fresh_frozen(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in everything(self._frozen_classifier.model)}

    def model_with(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Return the model that evaluates, with these entries; the same object each time."""
        load(self._evaluated, {**self._initial, **state})
        return self._evaluated

    @cached_property
    def _evaluated(self) -> nn.Module:
        return self._build()

    @cached_property
    def _initial(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in everything(self.model)}

    def with_aliases(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return entries under every name that the state has for them, in the type that it holds them in."""
        state = self.model.state_dict()
        return {name: found[known].to(state[name].dtype) for name, known in self.entries.items() if known in found}

    def train_images(self, client: int, size: int = CHUNK) -> list[Tensor]:
        """Return a client's training images, in parts of at most `size`."""
        return list(torch.split(self.population.x[self.train(client)], size))


def everything(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer of a model once, those that a state_dict leaves out too."""
    return chain(model.named_parameters(), model.named_buffers())


@torch.no_grad()
def load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy values into a model's parameters and buffers."""
    for name, value in everything(model):
        value.copy_(state[name])
