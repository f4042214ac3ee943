"""A Flower Grid in one process: it runs any ServerApp and ClientApp unchanged, without Ray, polling or pickling."""

import logging
import random
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from threading import RLock
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from syncnorm.errors import UserError, unknown
from syncnorm.federated.flower.identity import SERVER, act_as_server, empty_run, stamp
from syncnorm.federated.flower.logs import hush_flower
from syncnorm.federated.flower.records import decoded
from syncnorm.federated.flower.timeout import TimedOut, TimeoutRunner
from syncnorm.seeds import derive

log = logging.getLogger(__name__)

ENGINES = ("auto", "cohort", "loop")


@runtime_checkable
class TrainsTogether(Protocol):
    """A ClientApp that can train all clients of a round in one call."""

    def train_together(self, messages: Sequence[Message], contexts: Sequence[Context], engine: str) -> list[Message]:
        """Return the replies to train messages, in their order."""


class CohortGrid(Grid):
    """All clients of a Flower app in this process, instead of Flower's simulation.

        grid = CohortGrid(client_app, num_clients=2000, seed=0)
        grid.run_app(server_app)

    Clients are the nodes 1 .. num_clients from the start, so the first round has its full cohort; node k is partition
    k - 1. Clients work, and replies come, in the order of their ids, so sums have a fixed order. A client's state is
    kept between its messages. A client that raises gives an error reply and keeps its old state, and the others
    continue. Work is done when replies are pulled. (Older apps, with client_fn and server_fn, run too, but Flower
    calls their clients from threads, in no fixed order.)

    With a seed, a run is reproducible: `random`, from which Flower's strategies sample clients, is seeded when the
    grid is made, and each client's message has its own streams of `random`, `numpy.random` and torch, independent of
    other clients. Without a seed, the global generators are not touched: seed them yourself for a reproducible run.

    Args:
        client_app: the app that every client runs.
        num_clients: number of clients.
        run_config: the apps' `context.run_config`.
        engine: for `syncnorm.federated.client_app`, how a round's clients are trained: "cohort" all in one batched
            step, "loop" one after another, "auto" the faster of the two. Other apps are called client by client.
        seed: fixes every random choice.

    Raises:
        UserError: no client, an unknown engine, or an unsupported version of Flower.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_clients: int,
        *,
        run_config: UserConfig | None = None,
        engine: str = "auto",
        seed: int | None = None,
    ) -> None:
        if not isinstance(num_clients, int) or num_clients < 1:
            raise UserError(f"num_clients is {num_clients!r}: it must be a whole number of at least 1.")
        if not isinstance(seed, int | None):
            raise UserError(f"seed is {seed!r}: it must be a whole number, or None.")
        if engine not in ENGINES:
            raise unknown("engine", engine, ENGINES)
        act_as_server()
        hush_flower()
        self.client_app = client_app
        self.num_clients = num_clients
        self.run_config: UserConfig = dict(run_config or {})
        self.engine = engine
        self.seed = seed
        self.states: dict[int, RecordDict] = {}
        """Clients' states by node id; clients that keep nothing are left out."""
        self._run = empty_run()
        self._waiting: dict[str, Message] = {}
        self._sent = 0
        self._exchanges = 0
        self._lock = RLock()
        self._runner = TimeoutRunner()
        if seed is not None:
            random.seed(derive("flower sampling", seed))

    def run_app(self, server_app: ServerApp) -> Context:
        """Run a ServerApp to its end and return its context."""
        context = Context(self._run.run_id, SERVER, {}, RecordDict(), dict(self.run_config))
        server_app(self, context)
        return context

    def set_run(self, run: Run) -> None:
        """Set the value of `run`."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of this run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message, as `Message(...)` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Sequence[int]:
        """Return the ids of all clients, 1 .. num_clients, as a range."""
        return range(1, self.num_clients + 1)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages for clients; return the ids under which their replies can be pulled."""
        ids = []
        with self._lock:
            for message in messages:
                self._sent += 1
                stamp(message, str(self._sent))
                self._waiting[str(self._sent)] = message
                ids.append(str(self._sent))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to pushed messages in the order of client ids. Each can be pulled once."""
        with self._lock:
            asked = [name for name in dict.fromkeys(message_ids) if name in self._waiting]
            return self._answer([self._waiting.pop(name) for name in asked])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies in the order of client ids.

        After `timeout` seconds the grid stops waiting for the current client (its thread cannot be stopped: it runs
        to its end, and its reply is dropped), and later clients do not reply. There is no timeout for clients that
        are trained together in one computation.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            ids = self.push_messages(messages)
            return self._answer([self._waiting.pop(name) for name in ids], deadline)

    def _answer(self, messages: Sequence[Message], deadline: float | None = None) -> list[Message]:
        self._exchanges += 1
        read: dict[int, ArrayRecord] = {}
        ordered = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        replies = []
        with _own_streams(self.seed is not None):
            trained = self._train_together(ordered, read)
            for message in ordered:
                reply = trained.get(message.metadata.message_id)
                left = None if deadline is None else deadline - time.monotonic()
                if reply is None and (left is None or left > 0):
                    reply = self._ask(message, read, left)
                if reply is not None:
                    replies.append(reply)
        return replies

    def _train_together(self, messages: Sequence[Message], read: dict[int, ArrayRecord]) -> dict[str, Message]:
        """Return the replies to train messages by message id, if the app can train its clients together."""
        if not isinstance(self.client_app, TrainsTogether):
            return {}
        ready = [one for one in messages if one.metadata.message_type == "train" and self._refusal(one) is None]
        if not ready:
            return {}
        contexts = [self._context(message.metadata.dst_node_id) for message in ready]
        delivered = [_delivered(message, read) for message in ready]
        replies = self.client_app.train_together(delivered, contexts, self.engine)
        return {
            message.metadata.message_id: self._accept(message, context, reply)
            for message, context, reply in zip(ready, contexts, replies, strict=True)
        }

    def _ask(self, message: Message, read: dict[int, ArrayRecord], left: float | None) -> Message | None:
        """Return a client's reply; None if it does not reply in the remaining seconds."""
        if (refusal := self._refusal(message)) is not None:
            return refusal
        node = message.metadata.dst_node_id
        context = self._context(node)
        if self.seed is not None:
            _seed(derive("flower client", self.seed, self._exchanges, node))
        try:
            delivered = _delivered(message, read)
            if left is None:
                reply = self.client_app(delivered, context)
            else:
                reply = self._runner.run(lambda: self.client_app(delivered, context), left)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {type(reply).__name__}, not a Message")
        except TimedOut:
            log.debug("client %d did not reply in time", node)
            return None
        except (Exception, SystemExit) as error:  # only this client fails: the round goes on
            log.debug("client %d raised", node, exc_info=True)
            return failure(message, sentence(error))
        return self._accept(message, context, reply)

    def _refusal(self, message: Message) -> Message | None:
        """Return the error reply to a message that cannot be delivered; None if it can."""
        if message.metadata.dst_node_id not in self.get_node_ids():
            return failure(message, f"there is no client {message.metadata.dst_node_id}", ErrorCode.NODE_UNAVAILABLE)
        if _expired(message):
            return failure(message, "the message expired before its client had a turn", ErrorCode.MESSAGE_UNAVAILABLE)
        return None

    def _accept(self, message: Message, context: Context, reply: Message) -> Message:
        """Store the state of a client that replied, and return its reply, or an error if it expired."""
        if reply.has_error():
            return reply
        if len(context.state):
            self.states[context.node_id] = context.state
        else:
            self.states.pop(context.node_id, None)
        if _expired(message):
            return failure(message, "the message expired before its reply came", ErrorCode.MESSAGE_UNAVAILABLE)
        return reply

    def _context(self, node: int) -> Context:
        """Return a client's context, with a copy of its state, which is dropped if the client fails."""
        state = self.states.get(node)
        return Context(
            run_id=self._run.run_id,
            node_id=node,
            node_config={"partition-id": node - 1, "num-partitions": self.num_clients},
            state=RecordDict()
            if state is None
            else RecordDict({name: _own(record) for name, record in state.items()}),
            run_config=dict(self.run_config),
        )


Record = ArrayRecord | ConfigRecord | MetricRecord


def _delivered(message: Message, read: dict[int, ArrayRecord]) -> Message:
    """Return a client's own copy of a message, since all clients of a round share the same records."""
    if not message.has_content():
        return message
    content = RecordDict()
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            if id(record) not in read:
                read[id(record)] = decoded(record)
            record = read[id(record)]
        content[name] = _own(record)
    delivered = copy(message)
    delivered.content = content
    return delivered


def _own(record: Record) -> Record:
    """Copy a record and its lists; its other values are immutable."""
    if isinstance(record, ArrayRecord):
        return record.copy()
    values: Any = {name: copy(value) if isinstance(value, list) else value for name, value in record.items()}
    return type(record)(values)


def failure(message: Message, reason: str, code: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION) -> Message:
    """Return the error reply to a message."""
    return Message(Error(code, reason), reply_to=message)


def reason(reply: Message) -> str:
    """Return why a reply is an error, in one line; from Ray's traceback, only the client's own exception."""
    given = reply.error.reason or f"error {reply.error.code}"
    return given.split("ClientAppException occurred. Message: ")[-1].removesuffix("'>").strip()


def _expired(message: Message) -> bool:
    return message.metadata.created_at + message.metadata.ttl < time.time()


def sentence(error: BaseException) -> str:
    """Return an exception's message, and where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # As torch.manual_seed, which takes longer than a small client because it records the stack for unused devices.
    torch.default_generator.manual_seed(seed)
    if _cuda():
        torch.cuda.manual_seed_all(seed)


def _cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


@contextmanager
def _own_streams(active: bool) -> Iterator[None]:
    """Restore the global generators afterwards, so that clients' draws do not change the server's."""
    if not active:
        yield
        return
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if _cuda() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
