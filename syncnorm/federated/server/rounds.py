"""The rounds of a federated run, over any network: sample, train, aggregate, and measure what came of it."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np
from torch import Tensor

from syncnorm.config import Result, describe, evaluated_at, run_id
from syncnorm.environment import environment
from syncnorm.errors import UserError
from syncnorm.federated.aggregation import combine, normalised_weights
from syncnorm.federated.client.client import Own, section, statistics_entries
from syncnorm.federated.federation import Federation
from syncnorm.federated.messages import Broadcast, size
from syncnorm.federated.policies import Rule
from syncnorm.federated.server.evaluation import drift, evaluated_by, score, summary, uniform, weighted
from syncnorm.federated.server.network import Network
from syncnorm.federated.server.server import Server
from syncnorm.moments import Moments
from syncnorm.seeds import derive
from syncnorm.training.classifier import latest

EVALUATED = 1000
"""At most so many clients are evaluated, and give gathered statistics: a sample that the seed draws once."""


class Rounds:
    """A run under way. `next` is the round to be played, from 0."""

    def __init__(self, federation: Federation, network: Network) -> None:
        self.federation, self.network = federation, network
        self.server = Server(federation)
        self.next = 0
        self._history: dict[str, list[float]] = {"train_loss": [], "left_out": []}
        self._counts = dict.fromkeys(("bytes_down", "bytes_up", "clients_left_out", "small_batches", "idle"), 0)
        self._left_out: dict[str, str] = {}
        self._last_seen: dict[int, int] = {}
        self._best: dict[str, Any] | None = None
        self._kept: dict[int, Own] | None = None

    def play(self) -> None:
        """Play one round.

        Raises:
            UserError: too few clients gave a usable update.
        """
        round_, clients = self.next, self.federation.cohort(self.next)
        replies = self.network.train(clients, self._to)
        if not replies:
            world = self.federation.world
            raise UserError(
                f"round {round_ + 1}: none of its {len(clients)} clients has a batch of {world.min_batch} samples or "
                "more: lower min_batch, set small_batch to use_running, or use fewer clients."
            )
        exchanged = len(replies) * self.federation.exchanged_bytes
        self._counts["bytes_down"] += exchanged + sum(self._to(client).bytes for client in clients)
        self._counts["bytes_up"] += exchanged + sum(reply.bytes for reply in replies)
        self._counts["idle"] += len(clients) - len(replies)
        self._counts["small_batches"] += sum(reply.small_batches for reply in replies)
        received = self.server.receive(round_, replies)
        self._counts["clients_left_out"] += len(received.left_out)
        self._left_out |= {f"round {round_ + 1}, client {client}": why for client, why in received.left_out.items()}
        self._last_seen |= dict.fromkeys(received.used, round_)
        self._history["train_loss"].append(received.loss)
        self._history["left_out"].append(float(len(received.left_out)))
        self.next += 1
        if self.federation.world.validation:
            self._validate()
        if evaluated_at(self.federation.run, self.next, self.federation.world.rounds):
            self._follow()

    def result(self, seconds: float) -> Result:
        """Evaluate what the rounds came to, or take the round that validation chose."""
        run = self.federation.run
        chosen = self._return_to_best()
        metrics, details = self._measure()
        metrics |= chosen
        counts = {name: float(value) for name, value in self._counts.items()}
        never = len(self.federation.trainees) - len(self._last_seen)
        metrics |= counts | {
            "bytes_total": counts["bytes_down"] + counts["bytes_up"],
            "train_loss": self._history["train_loss"][-1],
            "never_sampled": float(never),
            "staleness": fmean(self.next - 1 - last for last in self._last_seen.values()),
            "batch_norms": float(len(self.federation.layers)),
        }
        if self._left_out:
            details["left_out"] = self._left_out
        return Result(
            run_id=run_id(run),
            config=describe(run),
            metrics=metrics,
            evaluated_by=evaluated_by(self.federation),
            seconds=seconds,
            environment=environment(),
            history=self._history,
            details={"partition": self.federation.population.card(), **details},
        )

    def final(self) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
        """Return what `result` evaluated: the global model's entries, and what each client keeps of its model."""
        kept = self.network.kept(self._evaluated()) if self._kept is None else self._kept
        own = {client: section(known, "state") for client, known in kept.items()}
        return self._global_state(), {client: state for client, state in own.items() if state}

    def latest(self) -> dict[str, float]:
        """Return what the last round gave, by series of the history."""
        return latest(self._history, self.next)

    def remember(self) -> dict[str, Any]:
        """Return everything that the coming rounds depend on, as plain data and tensors."""
        return {
            "next": self.next,
            "server": self.server.remember(),
            "history": self._history,
            "counts": self._counts,
            "left_out": self._left_out,
            "last_seen": self._last_seen,
            "best": self._best,
        }

    def recall(self, known: Mapping[str, Any]) -> None:
        """Go back to what `remember` returned."""
        self.next, self._history, self._counts = known["next"], known["history"], known["counts"]
        self._left_out, self._last_seen, self._best = known["left_out"], known["last_seen"], known["best"]
        self.server.recall(known["server"])

    def _to(self, client: int) -> Broadcast:
        return self.server.broadcast(self.next, client)

    def _to_be_evaluated(self, client: int) -> Broadcast:
        """Return what a client evaluates: of an earlier round, also what it kept then."""
        now = self.server.broadcast(self.next, client, evaluate=True)
        if self._kept is None:
            return now
        built = {name: self.server.state[name] for name in self.federation.kept_names}
        kept = section(self._kept.get(client, self._fallback()), "state")
        return Broadcast(now.round, {**now.state, **built, **kept})

    def _validate(self) -> None:
        """Remember this round if no earlier one did better on the clients' validation samples, on average."""
        trained, clients = self.server.state, self._evaluated()
        self._gather()
        accuracy = fmean(self.network.validate(clients, self._to_be_evaluated, self._fallback()))
        self._history.setdefault("validation_accuracy", []).append(accuracy)
        if self._best is None or accuracy > self._best["accuracy"]:
            kept, server = self.network.kept(clients), self.server.remember()
            self._best = {"accuracy": accuracy, "round": self.next, "server": server, "kept": kept}
        self.server.state = trained  # training goes on from what it made: nobody but evaluation gathers here

    def _follow(self) -> None:
        """Take the accuracy at clients, and the global model's, into the history; nothing else changes."""
        trained, counts = self.server.state, dict(self._counts)
        self._gather()
        scores = self.network.score(self._evaluated(), self._to_be_evaluated, self._fallback())
        metrics = summary(self.federation, scores) | self._global_scores()
        self._history.setdefault("accuracy_at", []).append(float(self.next))
        for name in ("accuracy", "global_accuracy"):
            if name in metrics:
                self._history.setdefault(name, []).append(metrics[name])
        self.server.state, self._counts = trained, counts

    def _return_to_best(self) -> dict[str, float]:
        """Go back to the round that validation chose, and return what to say of it; else gather for the last."""
        if self._best is None:
            self._gather()
            return {}
        self.server.recall(self._best["server"])
        self._kept = self._best["kept"]
        return {"round": float(self._best["round"]), "validation_accuracy": self._best["accuracy"]}

    def _measure(self) -> tuple[dict[str, float], dict[str, Any]]:
        """Evaluate the model at clients, globally, and at clients held out; return metrics and details."""
        federation = self.federation
        scores = self.network.score(self._evaluated(), self._to_be_evaluated, self._fallback())
        metrics = summary(federation, scores)
        details: dict[str, Any] = {"accuracy_by_client": {one.client: one.accuracy for one in scores}}
        seen = [one for one in scores if one.moments]
        if seen:
            details["drift"] = drift(seen)
        metrics |= self._global_scores()
        if federation.world.held_out:
            metrics |= self._held_out()
        return metrics, details

    def _global_scores(self) -> dict[str, float]:
        """Evaluate the global model on all test data, where there is one."""
        if self.federation.policy.personal and self.federation.world.global_norm == "none":
            return {}
        x, y = self.federation.population.global_test
        accuracy, loss = weighted(self.federation.model_with(self._global_state()), x, y, uniform(len(y)))
        return {"global_accuracy": accuracy, "global_loss": loss}

    def _held_out(self) -> dict[str, float]:
        """Evaluate clients that never trained, with averaged batch norm, and re-estimated on their own images."""
        state, count = self._global_state(), self.federation.world.count
        ids = range(count, count + self.federation.world.held_out)
        scores = [score(self.federation, client, state) for client in ids]
        found = {"heldout_accuracy": fmean(one.accuracy for one in scores)}
        again = [one.reestimated for one in scores if one.reestimated is not None]
        return found | ({"heldout_reestimated_accuracy": fmean(again)} if again else {})

    def _evaluated(self) -> list[int]:
        """Return the clients that are evaluated: all that are not held out, if they are not too many."""
        count = self.federation.world.count
        if count <= EVALUATED:
            return list(range(count))
        rng = np.random.default_rng(derive("evaluated", self.federation.run.seed))
        chosen: list[int] = np.sort(rng.choice(count, EVALUATED, replace=False)).tolist()
        return chosen

    def _gather(self) -> None:
        """Let the server's statistics be those of a pass over the clients' data, where the policy has such a pass."""
        if self.federation.policy.gathered not in ("before", "after"):
            return
        found = self.network.measure(self._evaluated(), self._to)
        found = [moments for moments in found if moments]
        if not found:
            return
        pooled = {layer: Moments.pool([moments[layer] for moments in found]) for layer in found[0]}
        statistics = self.federation.with_aliases(statistics_entries(pooled))
        self.server.set_statistics(statistics)
        self._counts["bytes_up"] += len(found) * size(statistics)
        self._counts["bytes_down"] += sum(self._to(client).bytes for client in self._evaluated())

    def _fallback(self) -> dict[str, Tensor]:
        """Return what stands in for what a client keeps, at clients that were never sampled."""
        if self.federation.world.unsampled == "initial" or not self.federation.kept_names:
            return {}
        return {f"state.{name}": value for name, value in self._average_kept("average").items()}

    def _global_state(self) -> dict[str, Tensor]:
        """Return the global model's entries; what stays with clients is averaged, or pooled if the run says so."""
        if not self.federation.policy.personal:
            return self.server.state
        rule = self.federation.world.global_norm
        return {**self.server.state, **self._average_kept("average" if rule == "none" else rule)}

    def _average_kept(self, statistics: Rule) -> dict[str, Tensor]:
        """Return the mean over clients of what they keep of the model, each weighted as in the rounds."""
        federation = self.federation
        kept = self.network.kept(list(self._last_seen)) if self._kept is None else self._kept
        states = [section(own, "state") for _, own in sorted(kept.items())]
        states = [state for state in states if state]
        if not states:
            return {}
        alike = federation.world.weighting == "uniform"
        weights = [1.0 if alike else float(len(federation.train(client))) for client in sorted(kept)]
        kinds = federation.rules_of_kept(statistics)
        return combine(self.server.state, kinds, states, normalised_weights(states, weights))
