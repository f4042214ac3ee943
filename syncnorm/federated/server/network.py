"""The interface between server and clients, and its implementation within one process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from syncnorm.errors import UserError
from syncnorm.federated.client.client import finish, report, start, start_state
from syncnorm.federated.client.states import ClientState, ClientStates, kept_by
from syncnorm.federated.engines.engine import Engine
from syncnorm.federated.federation import Federation
from syncnorm.federated.messages import Broadcast, Reply
from syncnorm.federated.server.scores import Score, score, validate
from syncnorm.moments import Moments

To = Callable[[int], Broadcast]
"""Returns the broadcast to a client, by its id."""
Answer = TypeVar("Answer")


class Network(Protocol):
    """The requests of a server to its clients. Answers come in the order of `clients`; lost ones are missing."""

    def train(self, clients: Sequence[int], to: To) -> list[Reply]:
        """Let clients train from what they receive."""

    def measure(self, clients: Sequence[int], to: To) -> list[dict[str, Moments]]:
        """Gather the moments of each batch norm's inputs over each client's data, with the model it receives."""

    def score(self, clients: Sequence[int], to: To, fallback: ClientState) -> list[Score]:
        """Evaluate what each client receives, with what it keeps, or `fallback` if it keeps nothing."""

    def validate(self, clients: Sequence[int], to: To, fallback: ClientState) -> list[tuple[float, float]]:
        """Return each client's accuracy and loss on its validation samples."""

    def client_states(self, clients: Sequence[int]) -> dict[int, ClientState]:
        """Return what each client keeps; clients that keep nothing are left out."""

    def shared_out(self, parts: Sequence[int], work: Callable[[int], Answer]) -> list[Answer]:
        """Return the work of the server itself that can be done in parts, in their order."""


class InProcess:
    """Clients in this process; one call of an engine trains those of a round.

    over_ranks: whether other ranks of torch.distributed train further clients of the same round.
    """

    def __init__(self, federation: Federation, states: ClientStates, engine: Engine) -> None:
        self.federation, self.states, self.engine = federation, states, engine
        self.over_ranks = False

    def train(self, clients: Sequence[int], to: To) -> list[Reply]:
        """Let clients train from what they receive; a client without a batch is missing, one that raises gives an
        error."""
        federation = self.federation
        started, replies = [], []
        for client in clients:
            try:
                started.append(start(federation, client, to(client), self.states.get(client)))
            except UserError:
                raise
            except Exception as error:  # from the user's model, in a pass over this client's data
                replies.append(Reply(client, {}, error=f"{type(error).__name__}: {error}"))
        started = [one for one in started if one.task.batches]
        if not started:
            return replies
        pool = federation.population
        local = replace(federation.local(started[0].received.round), over_ranks=self.over_ranks)
        updates = self.engine.train(local, pool.x, pool.y, [one.task for one in started])
        for one, update in zip(started, updates, strict=True):
            reply, kept = finish(federation, one, update)
            replies.append(reply)
            if kept:
                self.states.put(update.client, kept)
        return replies

    def measure(self, clients: Sequence[int], to: To) -> list[dict[str, Moments]]:
        """Gather the moments of each batch norm's inputs over each client's data, with the model it receives."""
        return [report(self.federation, client, to(client)) for client in clients]

    def score(self, clients: Sequence[int], to: To, fallback: ClientState) -> list[Score]:
        """Evaluate what each client receives, with what it keeps, or `fallback` if it keeps nothing."""
        return [score(self.federation, client, self.model_state(client, to, fallback)) for client in clients]

    def validate(self, clients: Sequence[int], to: To, fallback: ClientState) -> list[tuple[float, float]]:
        """Return each client's accuracy and loss on its validation samples."""
        return [validate(self.federation, client, self.model_state(client, to, fallback)) for client in clients]

    def client_states(self, clients: Sequence[int]) -> dict[int, ClientState]:
        """Return what each client keeps; clients that keep nothing are left out."""
        found = {client: self.states.get(client) for client in clients}
        return {client: state for client, state in found.items() if state is not None}

    def shared_out(self, parts: Sequence[int], work: Callable[[int], Answer]) -> list[Answer]:
        """Return the work of the server itself that can be done in parts, in their order."""
        return [work(part) for part in parts]

    def remember(self) -> dict[str, Any]:
        """Return the clients' states and the engine's name, as plain data and tensors."""
        return {"engine": self.engine.name, "clients": dict(kept_by(self.states))}

    def recall(self, known: Mapping[str, Any]) -> None:
        """Restore the state that `remember` returned."""
        self.engine.name = known["engine"]
        for client, own in known["clients"].items():
            self.states.put(client, own)

    def model_state(self, client: int, to: To, fallback: ClientState) -> ClientState:
        """Return the model entries that a client evaluates."""
        kept = self.states.get(client)
        return start_state(self.federation, to(client), fallback if kept is None else kept)
