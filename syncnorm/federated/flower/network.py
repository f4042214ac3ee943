"""The clients of a run behind any Flower Grid: in this process, in Flower's simulation, or deployed."""

import time
from collections.abc import Mapping, Sequence
from threading import Event

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from syncnorm.errors import UserError
from syncnorm.federated.client.states import ClientState
from syncnorm.federated.federation import Federation
from syncnorm.federated.flower import wire
from syncnorm.federated.flower.grid import CohortGrid, reason
from syncnorm.federated.messages import Reply
from syncnorm.federated.server.network import To
from syncnorm.federated.server.scores import Score
from syncnorm.moments import Moments

PATIENCE = 300.0
"""Seconds to wait for nodes to connect before the first round."""
TIMEOUT = 600.0
"""Seconds to wait for the replies to a round's messages."""
PAUSE = 0.05
"""Seconds between two polls for replies."""


class OverFlower:
    """A run's clients behind a Grid: a `syncnorm.federated.server.network.Network`.

    A client that does not reply within `timeout` seconds counts as lost.

    Raises:
        UserError: fewer nodes than the run has clients, or several nodes for the same client.
    """

    def __init__(self, federation: Federation, grid: Grid, text: str, ended: Event, timeout: float = TIMEOUT) -> None:
        self.federation, self.grid, self._text, self._ended = federation, grid, text, ended
        self._timeout = timeout
        self.nodes = self._find_nodes(federation.world.count)
        """The node of each client."""
        self._client = {node: client for client, node in self.nodes.items()}

    def train(self, clients: Sequence[int], to: To) -> list[Reply]:
        """Let clients train from what they receive; a client without a batch is missing, a lost one gives an
        error."""
        answers = self._ask("train", self._broadcasts(clients, to))
        replies = []
        for client in clients:
            answer = answers.get(client)
            if answer is None or answer.has_error():
                why = self._silence() if answer is None else reason(answer)
                replies.append(Reply(client, {}, error=why))
            elif reply := wire.unpack_reply(client, answer.content, self.federation.device):
                replies.append(reply)
        return replies

    def measure(self, clients: Sequence[int], to: To) -> list[dict[str, Moments]]:
        """Gather the moments of each batch norm's inputs over each client's data, with the model it receives."""
        found = self._contents("query.moments", self._broadcasts(clients, to))
        return [wire.unpack_moments(content, self.federation.device) for content in found.values()]

    def score(self, clients: Sequence[int], to: To, fallback: ClientState) -> list[Score]:
        """Evaluate what each client receives, with what it keeps, or `fallback` if it keeps nothing."""
        found = self._contents("evaluate", self._broadcasts(clients, to, fallback))
        return [wire.unpack_score(client, content, self.federation.device) for client, content in found.items()]

    def validate(self, clients: Sequence[int], to: To, fallback: ClientState) -> list[tuple[float, float]]:
        """Return each client's accuracy and loss on its validation samples."""
        found = self._contents("evaluate.validation", self._broadcasts(clients, to, fallback))
        names = ("accuracy", "loss")
        pairs = [[wire.number(content, wire.METRICS, name) for name in names] for content in found.values()]
        return [(accuracy, loss) for accuracy, loss in pairs]

    def client_states(self, clients: Sequence[int]) -> dict[int, ClientState]:
        """Return what each client keeps; clients that keep nothing are left out."""
        request = wire.pack_request(self._text)
        found = self._contents("query.kept", dict.fromkeys(clients, request))
        states = {client: wire.kept(content, self.federation.device) for client, content in found.items()}
        return {client: state for client, state in states.items() if state is not None}

    def _broadcasts(
        self, clients: Sequence[int], to: To, fallback: ClientState | None = None
    ) -> dict[int, RecordDict]:
        """Return what each client is sent; clients with the same tensors share one record."""
        packed: dict[tuple[int, ...], RecordDict] = {}
        contents = {}
        for client in clients:
            broadcast = to(client)
            same = tuple(id(value) for value in broadcast.state.values())
            if same not in packed:
                packed[same] = wire.pack_broadcast(broadcast, self._text, fallback)
            contents[client] = packed[same]
        return contents

    def _ask(self, kind: str, contents: Mapping[int, RecordDict]) -> dict[int, Message]:
        messages = [Message(content, self.nodes[client], kind) for client, content in contents.items()]
        replies = self._exchange(messages)
        return {
            self._client[node]: reply for reply in replies if (node := reply.metadata.src_node_id) in self._client
        }

    def _contents(self, kind: str, contents: Mapping[int, RecordDict]) -> dict[int, RecordDict]:
        """Return the clients' answers, in the order asked; a missing answer would change a mean, so it is an
        error."""
        answers = self._ask(kind, contents)
        for client in contents:
            answer = answers.get(client)
            if answer is None or answer.has_error():
                why = self._silence() if answer is None else reason(answer)
                raise UserError(f"client {client} failed at '{kind}', which every client must answer: {why}.")
        return {client: answers[client].content for client in contents}

    def _exchange(self, messages: Sequence[Message]) -> list[Message]:
        """Send messages and wait for the replies, as `send_and_receive` does, but stop when the grid ends."""
        replies: list[Message] = []
        waiting = set(self.grid.push_messages(messages))
        deadline = time.monotonic() + self._timeout
        while waiting:
            found = list(self.grid.pull_messages(waiting))
            replies += found
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            if waiting and time.monotonic() >= deadline:
                break
            if waiting:
                self._pause()
        return replies

    def _silence(self) -> str:
        return f"it did not reply within {self._timeout:g} s"

    def _pause(self) -> None:
        if self._ended.wait(PAUSE):
            raise ConnectionError("the simulation of the clients has ended before they replied")

    def _find_nodes(self, count: int) -> dict[int, int]:
        """Return the node of each client, once enough nodes are connected."""
        if isinstance(self.grid, CohortGrid):
            _check_count(self.grid.num_clients, count)
            return {client: client + 1 for client in range(count)}
        deadline = time.monotonic() + PATIENCE
        while len(nodes := list(self.grid.get_node_ids())) < count and time.monotonic() < deadline:
            self._pause()
        _check_count(len(nodes), count)
        found: dict[int, int] = {}
        for reply in self._exchange([Message(RecordDict(), node, "query.partition") for node in nodes]):
            if reply.has_error():
                raise UserError(f"a node does not say which client it is: {reason(reply)}.")
            client = int(wire.number(reply.content, wire.METRICS, "partition-id"))
            if client in found:
                raise UserError(f"two nodes have the partition-id {client}: give each SuperNode one of its own.")
            found[client] = reply.metadata.src_node_id
        missing = sorted(set(range(count)) - found.keys())
        if missing:
            raise UserError(
                f"no node has the partition-id {missing[0]}: the run has {count} clients, 0 to {count - 1}."
            )
        return found


def _check_count(nodes: int, count: int) -> None:
    if nodes < count:
        raise UserError(
            f"the run has {count} clients and the grid {nodes} nodes: lower world.count, or start as many nodes, in "
            f'a simulation with --federation-config "num-supernodes={count}".'
        )
