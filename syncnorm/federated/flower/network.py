"""The clients of a run behind any Flower Grid: in this process, in Flower's simulation, or deployed."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Event
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from syncnorm.errors import UserError
from syncnorm.federated.client.states import ClientState
from syncnorm.federated.federation import Federation
from syncnorm.federated.flower import wire
from syncnorm.federated.flower.grid.cohort_grid import CohortGrid, reason
from syncnorm.federated.flower.handshake import word_in
from syncnorm.federated.flower.strategy.replies import ABSENT
from syncnorm.federated.messages import Reply
from syncnorm.federated.server.network import Answer, To
from syncnorm.federated.server.scores import Score
from syncnorm.moments import Moments

log = logging.getLogger(__name__)

PATIENCE = 300.0
"""Seconds to wait for nodes to connect before the first round."""
TIMEOUT = 600.0
"""Seconds to wait for the replies to a round's messages."""
INTRODUCTION = 30.0
"""Seconds to wait for a new node to say which client it plays."""
WHO = "partition-id"
PAUSE = 0.05
"""Seconds between two polls for replies."""


class OverFlower:
    """A run's clients behind a Grid: a `syncnorm.federated.server.network.Network`.

    Nodes may leave and join at any time: a client is known by its partition-id, and a node that restarts has another
    id. A client without a node, or one that does not reply within `timeout` seconds, is left out of a round. What
    every client should answer is answered by those who are there; `missing` names the others.

    Raises:
        UserError: at the start, fewer nodes than the run has clients, or several nodes for the same client.
    """

    def __init__(self, federation: Federation, grid: Grid, text: str, ended: Event, timeout: float = TIMEOUT) -> None:
        self.federation, self.grid, self._text, self._ended = federation, grid, text, ended
        self._timeout = timeout
        self._seen: set[int] = set()
        self.nodes = self._find_nodes(federation.world.count)
        """The node of each client."""
        self.missing: list[str] = []
        """Clients that were absent where every client should answer, one sentence each."""
        self.lost: list[str] = []
        """Clients that had lost what they keep between rounds, one sentence each."""
        self._trained: set[int] = set()
        self._kept: dict[int, ClientState] = {}
        self._changed: set[int] = set()

    def train(self, clients: Sequence[int], to: To) -> list[Reply]:
        """Let clients train from what they receive; a client without a batch is missing, a lost one gives an
        error."""
        answers = self._ask("train", self._broadcasts(clients, to))
        replies = []
        for client in clients:
            answer = answers[client]
            if isinstance(answer, str) or answer.has_error():
                replies.append(Reply(client, {}, error=answer if isinstance(answer, str) else reason(answer)))
            elif reply := self._reply(client, answer):
                replies.append(reply)
        return replies

    def _reply(self, client: int, answer: Message) -> Reply | None:
        """Return what a client sent after training; an error if it is not in the form of a reply."""
        try:
            reply = wire.unpack_reply(client, answer.content, self.federation)
        except Exception as error:  # a reply that somebody else's code has made
            return Reply(client, {}, error=f"its reply cannot be read ({type(error).__name__}: {error})")
        if reply:
            self._note_loss(client, answer.content)
            self._changed.add(client)
        return reply

    def measure(self, clients: Sequence[int], to: To) -> list[dict[str, Moments]]:
        """Gather the moments of each batch norm's inputs over each client's data, with the model it receives."""
        found = self._contents("query.moments", self._broadcasts(clients, to))
        return self._read("query.moments", found, lambda _, one: wire.unpack_moments(one, self.federation.device))

    def score(self, clients: Sequence[int], to: To, fallback: ClientState) -> list[Score]:
        """Evaluate what each client receives, with what it keeps, or `fallback` if it keeps nothing."""
        found = self._contents("evaluate", self._broadcasts(clients, to, fallback))
        return self._read("evaluate", found, lambda k, one: wire.unpack_score(k, one, self.federation.device))

    def validate(self, clients: Sequence[int], to: To, fallback: ClientState) -> list[tuple[float, float]]:
        """Return each client's accuracy and loss on its validation samples."""
        found = self._contents("evaluate.validation", self._broadcasts(clients, to, fallback))

        def pair(_: int, content: RecordDict) -> tuple[float, float]:
            return wire.number(content, wire.METRICS, "accuracy"), wire.number(content, wire.METRICS, "loss")

        return self._read("evaluate.validation", found, pair)

    def _read(
        self, kind: str, found: Mapping[int, RecordDict], read: Callable[[int, RecordDict], Answer]
    ) -> list[Answer]:
        """Return what clients answered; those whose answer cannot be read are named in `missing`."""
        answers = []
        for client, content in found.items():
            try:
                answers.append(read(client, content))
            except Exception as error:  # an answer that somebody else's code has made
                why = f"{type(error).__name__}: {error}"
                self.missing.append(f"client {client} sent an answer to '{kind}' that cannot be read: {why}")
                log.warning(self.missing[-1])
        if found and not answers:
            raise UserError(f"no client's answer to '{kind}' can be used: {self.missing[-1]}.")
        return answers

    def client_states(self, clients: Sequence[int]) -> dict[int, ClientState]:
        """Return what each client keeps; clients that keep nothing are left out."""
        request = wire.pack_request(self._text)
        found = self._contents("query.kept", dict.fromkeys(clients, request))
        states = {client: wire.kept(content, self.federation.device) for client, content in found.items()}
        return {client: state for client, state in states.items() if state is not None}

    def remember(self) -> dict[str, Any]:
        """Return what the clients keep, as plain data and tensors: asks those that have trained since the last call.

        For a simulation: in a deployment, what a client keeps does not leave it.
        """
        self._kept |= self.client_states(sorted(self._changed))
        self._changed.clear()
        return {"engine": "flower", "clients": dict(sorted(self._kept.items()))}

    def recall(self, known: Mapping[str, Any]) -> None:
        """Give the clients back what `remember` returned."""
        self._kept = dict(known["clients"])
        self._trained |= self._kept.keys()
        states = {client: wire.pack_restored(state, self._text) for client, state in self._kept.items()}
        self._contents("query.restore", states)

    def shared_out(self, parts: Sequence[int], work: Callable[[int], Answer]) -> list[Answer]:
        """Do work of the server itself, here."""
        return [work(part) for part in parts]

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

    def details(self) -> dict[str, Any]:
        """Return what a result should say of clients that were absent or lost their state; nothing if none were."""
        found = {"missing_clients": self.missing, "lost_states": self.lost}
        return {name: sentences for name, sentences in found.items() if sentences}

    def _note_loss(self, client: int, content: RecordDict) -> None:
        word = word_in(content)
        if self.federation.layout.kept and word and not word.own and client in self._trained:
            self.lost.append(f"client {client} had lost what it keeps between rounds, and began from initial values")
            log.warning(self.lost[-1])
        self._trained.add(client)

    def _ask(self, kind: str, contents: Mapping[int, RecordDict]) -> dict[int, Message | str]:
        """Return each client's reply, or why there is none. A reply names the message that it is to, not always the
        node: Flower's own errors come from the server."""
        self._refresh()
        started = time.monotonic()
        answers: dict[int, Message | str] = {}
        messages: dict[int, Message] = {}
        for client, content in contents.items():
            if client in self.nodes:
                messages[client] = Message(content, self.nodes[client], kind)
            else:
                answers[client] = f"no node with the partition-id {client} is connected"
        replies = {reply.metadata.reply_to_message_id: reply for reply in self._exchange(list(messages.values()))}
        late = time.monotonic() - started >= self._timeout
        silence = f"it did not reply within {self._timeout:g} s" if late else "its node has left"
        for client, message in messages.items():
            answers[client] = replies.get(message.metadata.message_id, silence)
        return answers

    def _contents(self, kind: str, contents: Mapping[int, RecordDict]) -> dict[int, RecordDict]:
        """Return the answers of the clients that are there, in the order asked.

        A client whose node has left is asked once more, since it may be back under another id.
        """
        answers = self._ask(kind, contents)
        if gone := [client for client, answer in answers.items() if _absent(answer)]:
            answers |= self._ask(kind, {client: contents[client] for client in gone})
        found = {}
        for client in contents:
            answer = answers[client]
            why = answer if isinstance(answer, str) else reason(answer) if answer.has_error() else None
            if isinstance(answer, Message) and why is None:
                found[client] = answer.content
            elif _absent(answer):
                self.missing.append(f"client {client} was missing at '{kind}': {why}")
                log.warning(self.missing[-1])
            else:
                raise UserError(f"client {client} failed at '{kind}', which every client must answer: {why}.")
        if not found and contents:
            raise UserError(f"no client answered '{kind}': {self.missing[-1]}.")
        return found

    def _exchange(self, messages: Sequence[Message], timeout: float | None = None) -> list[Message]:
        """Send messages and wait for the replies, as `send_and_receive` does, but stop when the grid ends."""
        replies: list[Message] = []
        waiting = {name for name in self.grid.push_messages(messages) if name}
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        while waiting:
            found = list(self.grid.pull_messages(waiting))
            replies += found
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            if waiting and time.monotonic() >= deadline:
                break
            if waiting:
                self._pause()
        return replies

    def _refresh(self) -> None:
        """Find out which clients new nodes play, and forget nodes that have left."""
        if isinstance(self.grid, CohortGrid):
            return
        present = set(self.grid.get_node_ids())
        self.nodes = {client: node for client, node in self.nodes.items() if node in present}
        for node, answer in self._who_are(sorted(present - self._seen)).items():
            if isinstance(answer, int) and answer < self.federation.world.count:
                self.nodes[answer] = node
            elif isinstance(answer, str):
                log.warning("a new node does not say which client it is: %s", answer)

    def _who_are(self, nodes: Sequence[int]) -> dict[int, int | str]:
        """Return which client each node plays, or why it does not say; nodes that are not there are left out, and
        asked again the next time."""
        messages = [Message(RecordDict(), node, "query.partition") for node in nodes]
        replies = self._exchange(messages, min(self._timeout, INTRODUCTION)) if messages else []
        asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        found: dict[int, int | str] = {}
        for reply in replies:
            if not _absent(reply):
                client = reason(reply) if reply.has_error() else int(wire.number(reply.content, wire.METRICS, WHO))
                found[asked[reply.metadata.reply_to_message_id]] = client
        self._seen |= found.keys()
        return found

    def _pause(self) -> None:
        if self._ended.wait(PAUSE):
            raise ConnectionError("the simulation of the clients has ended before they replied")

    def _find_nodes(self, count: int) -> dict[int, int]:
        """Return the node of each client, once enough nodes are connected."""
        if isinstance(self.grid, CohortGrid):
            _check_count(self.grid.num_clients, count)
            return {client: client + 1 for client in range(count)}
        deadline, found = time.monotonic() + PATIENCE, dict[int, int]()
        nodes: set[int] = set()
        while len(nodes) < count or nodes - self._seen:
            nodes = set(self.grid.get_node_ids())
            if len(nodes) >= count:
                for node, client in self._who_are(sorted(nodes - self._seen)).items():
                    if isinstance(client, str):
                        raise UserError(f"a node does not say which client it is: {client}.")
                    if client in found:
                        raise UserError(
                            f"two nodes have the partition-id {client}: give each SuperNode one of its own."
                        )
                    found[client] = node
            if found.keys() >= set(range(count)) or time.monotonic() >= deadline:
                break
            self._pause()
        _check_count(len(nodes), count)
        missing = sorted(set(range(count)) - found.keys())
        if missing:
            raise UserError(
                f"no node has the partition-id {missing[0]}: the run has {count} clients, 0 to {count - 1}."
            )
        return found


def _absent(answer: Message | str) -> bool:
    """Return whether there is no answer because the client's node has left, or was too slow."""
    return isinstance(answer, str) or (answer.has_error() and answer.error.code in ABSENT)


def _check_count(nodes: int, count: int) -> None:
    if nodes < count:
        raise UserError(
            f"the run has {count} clients and the grid {nodes} nodes: lower world.count, or start as many nodes, in "
            f'a simulation with --federation-config "num-supernodes={count}".'
        )
