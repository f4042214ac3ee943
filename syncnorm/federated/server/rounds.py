"""The rounds of a federated run, over any network: sample, train, aggregate, and evaluate the result."""

from collections.abc import Mapping
from typing import Any

from syncnorm.config import Result, describe, evaluated_at, run_id, validated_at
from syncnorm.data import partition_card
from syncnorm.environment import environment
from syncnorm.errors import UserError
from syncnorm.federated.federation import Federation
from syncnorm.federated.messages import Broadcast
from syncnorm.federated.server.evaluator import Evaluator
from syncnorm.federated.server.log import Log
from syncnorm.federated.server.network import Network
from syncnorm.federated.server.scores import evaluated_by
from syncnorm.federated.server.server import Server
from syncnorm.training.learner import latest


class Rounds:
    """A run in progress. `next` is the next round, from 0.

    server: the global model.
    log: the log of the rounds so far.
    evaluator: evaluates the server's and the clients' models.
    """

    def __init__(self, federation: Federation, network: Network) -> None:
        self.federation, self.network = federation, network
        self.server, self.log = Server(federation), Log()
        self.evaluator = Evaluator(federation, network, self.server, self.log)
        self.next = 0
        self._best: dict[str, Any] | None = None

    def play(self) -> None:
        """Play one round.

        Raises:
            UserError: too few clients gave a usable update.
        """
        round_, clients = self.next, self.federation.schedule.cohort(self.next)
        replies = self.network.train(clients, self.broadcast)
        if not replies:
            world = self.federation.world
            raise UserError(
                f"round {round_ + 1}: none of its {len(clients)} clients has a batch of {world.min_batch} samples or "
                "more: lower min_batch, set small_batch to use_running, or use fewer clients."
            )
        inside = len(replies) * self.federation.bytes_inside()
        self.log.add(
            bytes_down=inside + sum(self.broadcast(client).bytes for client in clients),
            bytes_up=inside + sum(reply.bytes for reply in replies),
            idle=len(clients) - len(replies),
            small_batches=sum(reply.small_batches for reply in replies),
        )
        received = self.server.receive(round_, replies)
        self.log.close_round(round_, received.used, received.left_out, received.loss)
        self.next += 1
        if validated_at(self.federation.run, self.next, self.federation.world.rounds):
            self.validate()
        if evaluated_at(self.federation.run, self.next, self.federation.world.rounds):
            self.evaluator.follow(self.next)

    def broadcast(self, client: int) -> Broadcast:
        """Return the broadcast to a client in the next round."""
        return self.server.broadcast(self.next, client)

    def validate(self) -> None:
        """Note the validation accuracy; if the run selects by it, remember the first of the best rounds."""
        trained, counts = self.server.state, dict(self.log.counts)
        self.evaluator.gather(self.next)
        metrics, name = self.evaluator.validate(self.next), self.federation.task.named("validation_accuracy")
        accuracy = metrics[name]
        self.log.note(name, accuracy)
        if self.federation.run.select != "best":
            self.log.counts = counts  # clients would not have to send anything
        elif self._best is None or accuracy > self._best["metrics"][name]:
            kept, server = self.network.client_states(self.evaluator.clients), self.server.remember()
            self._best = {"metrics": metrics, "round": self.next, "server": server, "kept": kept}
        self.server.state = trained  # training continues from its own statistics, not from gathered ones

    def result(self, seconds: float) -> Result:
        """Evaluate the last round, or the one that validation chose."""
        federation, run = self.federation, self.federation.run
        chosen = self._return_to_best()
        metrics, details = self.evaluator.measure(self.next)
        metrics |= chosen | self.log.metrics(len(federation.schedule.trainees), self.next)
        metrics["batch_norms"] = float(len(federation.layout.layers))
        if self.log.left_out:
            details["left_out"] = self.log.left_out
        return Result(
            run_id=run_id(run),
            config=describe(run),
            metrics=metrics,
            evaluated_by=evaluated_by(federation),
            seconds=seconds,
            environment=environment(),
            history=self.log.history,
            details={"partition": partition_card(federation.population), **details},
        )

    def latest(self) -> dict[str, float]:
        """Return the last round's values of the history, by name."""
        return latest(self.log.history, self.next)

    def remember(self) -> dict[str, Any]:
        """Return the state that later rounds depend on, as plain data and tensors."""
        return {
            "next": self.next,
            "server": self.server.remember(),
            "log": self.log.remember(),
            "best": self._best,
        }

    def recall(self, known: Mapping[str, Any]) -> None:
        """Restore the state that `remember` returned."""
        self.next, self._best = known["next"], known["best"]
        self.server.recall(known["server"])
        self.log.recall(known["log"])

    def _return_to_best(self) -> dict[str, float]:
        """Restore the round that validation chose; without a choice, gather statistics for the last. Return the
        metrics of its validation."""
        if self._best is None:
            self.evaluator.gather(self.next)
            return self.evaluator.validate(self.next) if self.federation.run.data.validation else {}
        self.server.recall(self._best["server"])
        self.evaluator.chosen = self._best["kept"]
        metrics: dict[str, float] = self._best["metrics"]
        return {"round": float(self._best["round"]), **metrics}
