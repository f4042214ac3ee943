"""The clients of a run behind any Flower Grid: in this process, in Flower's simulation, or deployed."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from secrets import token_hex
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
from syncnorm.federated.flower.memory import addressed
from syncnorm.federated.flower.strategy.replies import ABSENT
from syncnorm.federated.messages import Reply
from syncnorm.federated.server.network import Answer, To
from syncnorm.federated.server.scores import Score
from syncnorm.moments import Moments

log = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds to wait for nodes to connect before the first round."""
TIMEOUT = 600.0
"""Seconds to wait for the replies to a round's messages."""
INTRODUCTION = 30.0
"""Seconds to wait for a new node to say which client it plays."""
AGAIN = 120.0
"""Seconds after which it is asked once more: its client's process may have died over the question."""
WHO = "partition-id"
PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two polls for replies: at first, and after a while."""


class OverFlower:
    """A run's clients behind a Grid: a `syncnorm.federated.server.network.Network`.

    Nodes may leave and join at any time: a client is known by its partition-id, and a node that restarts has another
    id. A client without a node, or one that does not reply within `timeout` seconds, is left out of a round. What
    every client should answer is answered by those who are there; `missing` names the others.

    `at_once` is the number of clients that work at the same time; 0 lets all of a round.

    Raises:
        UserError: at the start, fewer nodes than the run has clients, or several nodes for the same client.
    """

    def __init__(
        self,
        federation: Federation,
        grid: Grid,
        text: str,
        ended: Event,
        timeout: float = TIMEOUT,
        *,
        asks_for_states: bool = True,
        at_once: int = 0,
    ) -> None:
        self.federation, self.grid, self._text, self._ended = federation, grid, text, ended
        self._timeout, self._asks_for_states, self._at_once = timeout, asks_for_states, at_once
        self._session = token_hex(8)
        self._seen: set[int] = set()
        self._asked: dict[str, tuple[int, float]] = {}
        """The nodes that have not answered yet which client they play, and when they were asked, by message."""
        self.nodes = self._find_nodes(federation.world.count)
        """The node of each client."""
        self.missing: list[str] = []
        """Clients that were absent where every client should answer, one sentence each."""
        self.lost: list[str] = []
        """Clients that had lost what they keep between rounds, one sentence each."""
        self._last: dict[int, int] = {}
        """The last round, from 0, of which a client's update has come."""
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
                if not reply.error:
                    self._last[client] = to(client).round
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
        """Return which run this is and who has trained, and what the clients keep, as plain data and tensors.

        Clients that have trained since the last call are asked, in a simulation: in a deployment, what a client keeps
        does not leave it.
        """
        if self._asks_for_states:
            self._kept |= self.client_states(sorted(self._changed))
        self._changed.clear()
        known = {"session": self._session, "last": dict(self._last)}
        return {"engine": "flower", "clients": dict(sorted(self._kept.items())), **known}

    def recall(self, known: Mapping[str, Any]) -> None:
        """Give the clients back what `remember` returned."""
        self._kept = dict(known["clients"])
        self._session, self._last = known["session"], dict(known["last"])
        states = {client: wire.pack_restored(state, self._text) for client, state in self._kept.items()}
        if states:
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
        if word and not word.own and client in self._last:
            self.lost.append(f"client {client} had lost what it keeps between rounds, and began from initial values")
            log.warning(self.lost[-1])

    def _ask(self, kind: str, contents: Mapping[int, RecordDict]) -> dict[int, Message | str]:
        """Return each client's reply, or why there is none. A reply names the message that it is to, not always the
        node: Flower's own errors come from the server."""
        self._refresh()
        answers: dict[int, Message | str] = {}
        messages: dict[int, Message] = {}
        for client, content in contents.items():
            if client in self.nodes:
                known = addressed(content, self._session, self._last.get(client, -1))
                messages[client] = Message(known, self.nodes[client], kind)
            else:
                answers[client] = f"no node with the partition-id {client} is connected"
        asked = list(messages.items())
        size = self._at_once or max(len(asked), 1)
        for part in (asked[place : place + size] for place in range(0, len(asked), size)):
            started = time.monotonic()
            replies = self._exchange([message for _, message in part])
            late = time.monotonic() - started >= self._timeout
            silence = f"it did not reply within {self._timeout:g} s" if late else "its node has left"
            for client, message in part:
                answers[client] = replies.get(message.metadata.message_id, silence)
        return answers

    def _contents(self, kind: str, contents: Mapping[int, RecordDict]) -> dict[int, RecordDict]:
        """Return the answers of the clients that are there, in the order asked.

        A client whose node has left is asked once more, since it may be back under another id. Those who are absent
        or fail are named in `missing`.

        Raises:
            UserError: nobody has answered, or some have failed and fewer than `enough` of all have answered.
        """
        answers = self._ask(kind, contents)
        if gone := [client for client, answer in answers.items() if _absent(answer)]:
            answers |= self._ask(kind, {client: contents[client] for client in gone})
        found, failed = {}, []
        for client in contents:
            answer = answers[client]
            why = answer if isinstance(answer, str) else reason(answer) if answer.has_error() else None
            if isinstance(answer, Message) and why is None:
                found[client] = answer.content
                continue
            self.missing.append(
                f"client {client} {'was missing' if _absent(answer) else 'failed'} at '{kind}': {why}"
            )
            log.warning(self.missing[-1])
            failed += [] if _absent(answer) else [self.missing[-1]]
        if failed and len(found) < max(1, self.federation.world.enough * len(contents)):
            raise UserError(f"only {len(found)} of {len(contents)} clients answered '{kind}': {failed[0]}.")
        if not found and contents:
            raise UserError(f"no client answered '{kind}': {self.missing[-1]}.")
        return found

    def _exchange(self, messages: Sequence[Message]) -> dict[str, Message]:
        """Send messages and return the replies that come in time, by the message's id; stop when the grid ends.

        After half of the time, those without a reply are sent once more. Flower drops a message, and says nothing, if
        the client's process does not report for a minute, or half of one at its start. The work is done twice at
        worst: it depends on the round alone.
        """
        replies: dict[str, Message] = {}
        open_: dict[str, str] = {name: name for name in self.grid.push_messages(messages) if name}
        started = time.monotonic()
        again = deadline = started + self._timeout
        again -= self._timeout / 2
        while open_:
            for reply in list(self.grid.pull_messages(list(open_))):
                replies.setdefault(open_[reply.metadata.reply_to_message_id], reply)
            open_ = {name: first for name, first in open_.items() if first not in replies}
            if not open_ or time.monotonic() >= deadline:
                break
            if time.monotonic() >= again:
                again = deadline
                open_ |= self._sent_again([one for one in messages if one.metadata.message_id in open_])
            self._pause(started)
        return replies

    def _sent_again(self, messages: Sequence[Message]) -> dict[str, str]:
        """Send messages once more; return the first message's id by that of the second."""
        copies = [Message(one.content, one.metadata.dst_node_id, one.metadata.message_type) for one in messages]
        try:
            names = list(self.grid.push_messages(copies))
        except Exception as error:  # a SuperLink may refuse content that it has: the first message still counts
            log.warning("a message could not be sent once more: %s", error)
            return {}
        return {name: one.metadata.message_id for name, one in zip(names, messages, strict=True) if name}

    def _refresh(self) -> None:
        """Find out which clients new nodes play, and forget nodes that have left."""
        if isinstance(self.grid, CohortGrid):
            return
        present = set(self.grid.get_node_ids())
        self.nodes = {client: node for client, node in self.nodes.items() if node in present}
        self._seen &= present  # a SuperNode with a key comes back under its old id
        for node, answer in self._who_are(sorted(present - self._seen), INTRODUCTION).items():
            if isinstance(answer, int) and answer < self.federation.world.count:
                self.nodes[answer] = node
            elif isinstance(answer, str):
                log.warning("a new node does not say which client it is: %s", answer)

    def _who_are(self, nodes: Sequence[int], seconds: float) -> dict[int, int | str]:
        """Return which client each node plays, or why it does not say, of those that have answered by now.

        `nodes` are asked, and given some seconds. An answer that comes later, because a site is slow to start, is
        returned by a later call. Nodes that are not there are left out, and asked again the next time.
        """
        started = time.monotonic()
        lately = {node for node, when in self._asked.values() if started - when < AGAIN}
        due = [node for node in nodes if node not in lately]
        due = due[: max(self._at_once - len(lately), 0)] if self._at_once else due
        messages = [Message(RecordDict(), node, "query.partition") for node in due]
        pairs = zip(self.grid.push_messages(messages), messages, strict=True)
        self._asked |= {name: (one.metadata.dst_node_id, started) for name, one in pairs if name}
        deadline = started + (min(self._timeout, seconds) if messages else 0)
        found: dict[int, int | str] = {}
        while self._asked:
            for reply in list(self.grid.pull_messages(list(self._asked))):
                node, _ = self._asked.pop(reply.metadata.reply_to_message_id)
                if not _absent(reply):
                    number = None if reply.has_error() else wire.number(reply.content, wire.METRICS, WHO)
                    found[node] = reason(reply) if number is None else int(number)
            if time.monotonic() >= deadline:
                break
            if self._asked:
                self._pause(started)
        self._seen |= found.keys()
        self._asked = {name: asked for name, asked in self._asked.items() if asked[0] not in found}
        return found

    def _pause(self, started: float) -> None:
        """Wait a moment, longer after a longer time: in a deployment, every poll is a request."""
        waited = time.monotonic() - started
        if self._ended.wait(min(max(PAUSE, waited / 20), LONGEST_PAUSE)):
            raise ConnectionError("the simulation of the clients has ended before they replied")

    def _find_nodes(self, count: int) -> dict[int, int]:
        """Return the node of each client, once enough nodes are connected."""
        if isinstance(self.grid, CohortGrid):
            _check_count(self.grid.num_clients, count)
            return {client: client + 1 for client in range(count)}
        started, found = time.monotonic(), dict[int, int]()
        deadline = started + PATIENCE
        nodes: set[int] = set()
        while len(nodes) < count or nodes - self._seen:
            nodes = set(self.grid.get_node_ids())
            if len(nodes) >= count:
                for node, client in self._who_are(sorted(nodes - self._seen), 0.0).items():
                    if isinstance(client, str):
                        raise UserError(f"a node does not say which client it is: {client}.")
                    if client in found:
                        raise UserError(
                            f"two nodes have the partition-id {client}: give each SuperNode one of its own."
                        )
                    found[client] = node
            if found.keys() >= set(range(count)) or time.monotonic() >= deadline:
                break
            self._pause(started)
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
