"""The evaluation of a run: at its clients, of its global model, and at held-out clients."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from syncnorm.config import Clients, Run
from syncnorm.federated.aggregation import check_moments, combine, merged, normalised_weights
from syncnorm.federated.client.client import section
from syncnorm.federated.client.states import ClientState
from syncnorm.federated.federation import CHUNK, Federation
from syncnorm.federated.messages import Broadcast, size
from syncnorm.federated.policies import Reduction
from syncnorm.federated.server.log import Log
from syncnorm.federated.server.network import Network
from syncnorm.federated.server.scores import drift, score, scores_by_sample, summary, uniform, weighted
from syncnorm.federated.server.server import Server
from syncnorm.moments import Moments
from syncnorm.samples import ACCURACY, FURTHER, sample_details
from syncnorm.seeds import derive
from syncnorm.surgery.adaptation.recalibrate import layer_statistics, statistics_entries
from syncnorm.training.evaluation import predict, score_and_loss
from syncnorm.training.metrics import own_metrics
from syncnorm.worlds import expect

EVALUATED = 1000
"""Maximum number of clients that are evaluated and contribute to gathered statistics; the seed draws a sample
once."""


def evaluated_clients(run: Run) -> list[int]:
    """Return the clients that a run evaluates: all that are not held out, or a sample if there are too many."""
    count = expect(run, Clients).count
    if count <= EVALUATED:
        return list(range(count))
    rng = np.random.default_rng(derive("evaluated", run.seed))
    chosen: list[int] = np.sort(rng.choice(count, EVALUATED, replace=False)).tolist()
    return chosen


class Evaluator:
    """Evaluates the server's and the clients' models after the rounds so far.

    chosen: clients' kept entries of an earlier round, to evaluate that round; None evaluates the last round.
    """

    def __init__(self, federation: Federation, network: Network, server: Server, log: Log) -> None:
        self.federation, self.network, self.server, self._log = federation, network, server, log
        self.chosen: dict[int, ClientState] | None = None

    @property
    def clients(self) -> list[int]:
        """The clients that are evaluated."""
        return evaluated_clients(self.federation.run)

    def gather(self, round_: int) -> None:
        """Set the server's statistics by a pass over the clients' data, if the policy has such a pass."""
        if self.federation.policy.statistics_source not in ("before", "after"):
            return
        clients = self.clients
        answers = self.network.measure(clients, lambda client: self.server.broadcast(round_, client))
        found = self._usable(round_, [moments for moments in answers if moments])
        if not found:
            return
        pooled = merged(found, self.federation.aggregation)
        statistics = self.federation.layout.with_aliases(statistics_entries(pooled))
        self.server.set_statistics(statistics)
        down = sum(self.server.broadcast(round_, client).bytes for client in clients)
        self._log.add(bytes_up=len(found) * size(statistics), bytes_down=down)

    def _usable(self, round_: int, answers: Sequence[Mapping[str, Moments]]) -> list[Mapping[str, Moments]]:
        """Return the answers to a pass that may enter the statistics; the log says why others may not."""
        layout, usable = self.federation.layout, []
        names = sorted({layout.listed[name] for name in layout.statistics})
        for place, moments in enumerate(answers):
            try:
                check_moments(moments, self.server.state, names)
                usable.append(moments)
            except ValueError as error:
                self._log.left_out[f"pass after round {round_}, answer {place + 1}"] = f"sent {error}"
                self._log.add(clients_left_out=1)
        return usable

    def broadcast(self, round_: int, client: int) -> Broadcast:
        """Return what a client evaluates; for an earlier round, this includes what it kept then."""
        now = self.server.broadcast(round_, client, evaluate=True)
        if self.chosen is None:
            return now
        built = {name: self.server.state[name] for name in self.federation.layout.kept}
        kept = section(self.chosen.get(client, self.fallback()), "state")
        return Broadcast(now.round, {**now.state, **built, **kept})

    def validate(self, round_: int) -> dict[str, float]:
        """Return the means over clients of accuracy and loss on their own validation samples; clients that are too
        small for any do not count."""
        clients = [client for client in self.clients if len(self.federation.population.validation(client))]
        found = self.network.validate(clients, lambda k: self.broadcast(round_, k), self.fallback())
        accuracies, losses = zip(*found, strict=True)
        named = self.federation.task.named("validation_accuracy")
        return {named: fmean(accuracies), "validation_loss": fmean(losses)}

    def measure(self, round_: int) -> tuple[dict[str, float], dict[str, Any]]:
        """Evaluate the model at clients, globally, and at held-out clients; return metrics and details."""
        federation = self.federation
        scores = self.network.score(self.clients, lambda k: self.broadcast(round_, k), self.fallback())
        metrics = summary(federation, scores)
        details: dict[str, Any] = {"accuracy_by_client": {one.client: one.accuracy for one in scores}}
        if federation.population.complete:
            details |= scores_by_sample(federation, scores)
        seen = [one for one in scores if one.moments]
        if seen:
            details |= {"drift": drift(seen), "layers": federation.layout.described}
        found, further = self._global_scores()
        metrics |= found | self._with_other_statistics()
        if further:
            details[FURTHER] = details.get(FURTHER, {}) | further
        if federation.world.held_out:
            metrics |= self._held_out()
        return metrics, details

    def follow(self, round_: int) -> None:
        """Append the main metric at clients and the global model's to the history; nothing else changes."""
        trained, counts = self.server.state, dict(self._log.counts)
        self.gather(round_)
        scores = self.network.score(self.clients, lambda k: self.broadcast(round_, k), self.fallback())
        metrics = summary(self.federation, scores) | self._global_scores()[0]
        self._log.note("accuracy_at", float(round_))
        for name in map(self.federation.task.named, ("accuracy", "global_accuracy")):
            if name in metrics:
                self._log.note(name, metrics[name])
        self.server.state, self._log.counts = trained, counts

    def fallback(self) -> ClientState:
        """Return the entries that replace a client's kept ones at clients that were never sampled."""
        if self.federation.world.unsampled == "initial" or not self.federation.layout.kept:
            return {}
        return {f"state.{name}": value for name, value in self._average_kept("average").items()}

    def global_state(self) -> Mapping[str, Tensor]:
        """Return the global model's entries; entries that stay with clients are averaged, or pooled if the run says
        so."""
        if not self.federation.policy.personal:
            return self.server.state
        rule = self.federation.world.global_norm
        return {**self.server.state, **self._average_kept("average" if rule == "none" else rule)}

    def kept_state(self) -> dict[int, dict[str, Tensor]]:
        """Return the model entries that each evaluated client keeps, by client; clients that keep none are left
        out."""
        kept = self.network.client_states(self.clients) if self.chosen is None else self.chosen
        own = {client: section(known, "state") for client, known in kept.items()}
        return {client: state for client, state in own.items() if state}

    def _global_scores(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Evaluate the global model, if there is one, on all test data, if they are here; return metrics, and details
        on the samples behind the main one."""
        federation = self.federation
        personal = federation.policy.personal and federation.world.global_norm == "none"
        if personal or not federation.population.complete:
            return {}, {}
        x, y = federation.population.global_test
        model, parts = federation.models.with_state(self.global_state()), torch.split(x, CHUNK)
        found = self.network.shared_out(range(len(parts)), lambda place: predict(model, parts[place], CHUNK))
        outputs = torch.cat(found)
        y = y.to(outputs.device)
        score, loss = score_and_loss(federation.run.task, outputs, y, uniform(len(y)))
        own = {f"global_{name}": value for name, value in own_metrics(federation.run, outputs, y).items()}
        name, main = federation.task.named("global_accuracy"), federation.task.metric
        labels = y.cpu() if main == ACCURACY else None
        scores = federation.task.scores(outputs, y).cpu()
        samples = sample_details(scores, labels, origin=federation.population.global_origin, metric=main)
        return {name: score, "global_loss": loss, **own}, {name: samples}

    def _with_other_statistics(self) -> dict[str, float]:
        """Evaluate the global model with running statistics of all clients' training images, and of the test's own.

        Both replace the statistics of every batch norm at once, under the final weights (`layer_statistics`). The
        first is what a server could re-estimate with everybody's help; the second is prediction-time batch norm with
        the whole test set as one batch. A model without running statistics, or without a global one, has neither.
        """
        federation = self.federation
        personal = federation.policy.personal and federation.world.global_norm == "none"
        if personal or not federation.layout.has_statistics or not federation.population.complete:
            return {}
        people = federation.population
        everyone = torch.cat([people.train(client) for client in self.clients])
        order = np.random.default_rng(derive("re-estimation order", federation.run.seed)).permutation(len(everyone))
        shuffled = everyone[order].to(people.x.device)
        x, y = people.global_test
        state = self.global_state()

        def scored(place: int) -> float:
            parts = (shuffled, x)[place].tensor_split(-(-len((shuffled, x)[place]) // CHUNK))
            batches = ((part if place else people.x[part]).to(federation.device) for part in parts)
            moments = layer_statistics(federation.models.with_state(state), batches)
            again = {**state, **federation.layout.with_aliases(statistics_entries(moments))}
            return weighted(federation.models.with_state(again), x, y, uniform(len(y)), federation.run.task)[0]

        names = map(federation.task.named, ("global_reestimated_accuracy", "global_batch_accuracy"))
        return dict(zip(names, self.network.shared_out(range(2), scored), strict=True))

    def _held_out(self) -> dict[str, float]:
        """Evaluate clients that never trained, with averaged batch norm, and re-estimated on their own images."""
        state, count = self.global_state(), self.federation.world.count
        ids = range(count, count + self.federation.world.held_out)
        scores = self.network.shared_out(ids, lambda client: score(self.federation, client, state))
        found = {"heldout_accuracy": fmean(one.accuracy for one in scores)}
        again = [one.reestimated for one in scores if one.reestimated is not None]
        found |= {"heldout_reestimated_accuracy": fmean(again)} if again else {}
        return {self.federation.task.named(name): value for name, value in found.items()}

    def _average_kept(self, statistics: Reduction) -> dict[str, Tensor]:
        """Return the mean over clients of the model entries that they keep, weighted as in the rounds."""
        federation = self.federation
        kept = self.network.client_states(list(self._log.last_seen)) if self.chosen is None else self.chosen
        states = [section(own, "state") for _, own in sorted(kept.items())]
        states = [state for state in states if state]
        if not states:
            return {}
        alike = federation.world.weighting == "uniform"
        weights = [1.0 if alike else float(len(federation.schedule.samples(client))) for client in sorted(kept)]
        reductions = federation.layout.reductions_of_kept(statistics)
        shares = normalised_weights(states, weights)
        return combine(self.server.state, reductions, states, shares, federation.aggregation)
