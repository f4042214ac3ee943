"""A Flower Grid in one process: it runs any ServerApp and ClientApp unchanged, without Ray, polling or pickling."""

import logging
import random
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from numbers import Integral
from pathlib import Path
from threading import RLock, get_ident
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
from syncnorm.federated.flower.grid.identity import SERVER, act_as_server, empty_run, stamp
from syncnorm.federated.flower.grid.logs import hush_flower
from syncnorm.federated.flower.grid.timeout import TimedOut, TimeoutRunner
from syncnorm.federated.flower.records import decoded
from syncnorm.seeds import derive

log = logging.getLogger(__name__)

ENGINES = ("auto", "cohort", "loop")
POLLS, MOMENT = 3, 0.5
"""A server that asks for the nodes more often than this, each time at least this many seconds later, is waiting."""


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
        if not is_whole(num_clients) or num_clients < 1:
            raise UserError(f"num_clients is {num_clients!r}: it must be a whole number of at least 1.")
        if seed is not None and not is_whole(seed):
            raise UserError(f"seed is {seed!r}: it must be a whole number, or None.")
        if engine not in ENGINES:
            raise unknown("engine", engine, ENGINES)
        act_as_server()
        hush_flower()
        self.client_app = client_app
        self.num_clients = int(num_clients)
        self.run_config: UserConfig = dict(run_config or {})
        self.engine = engine
        self.seed = None if seed is None else int(seed)
        self.states: dict[int, RecordDict] = {}
        """Clients' states by node id; clients that keep nothing are left out."""
        self._run = empty_run()
        self._waiting: dict[str, Message] = {}
        self._sent = 0
        self._exchanges = 0
        self._lock = RLock()
        self._runner = TimeoutRunner()
        self._server = get_ident()
        """The thread of the server app."""
        self._polls: list[float] = []
        """When the nodes were asked for, each time at least a moment after the last, with nothing sent in between."""
        if self.seed is not None:
            random.seed(derive("flower sampling", self.seed))

    def run_app(self, server_app: ServerApp) -> Context:
        """Run a ServerApp to its end and return its context."""
        self._server = get_ident()
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
        """Return the ids of all clients, 1 .. num_clients, as a range.

        Raises:
            UserError: a server that waits for more clients than there are: it asks again and again, and sends
                nothing.
        """
        if get_ident() == self._server:  # older servers also watch the nodes from a thread, which waits for nothing
            now = time.monotonic()
            if not self._polls or now - self._polls[-1] > MOMENT:
                self._polls.append(now)
            if len(self._polls) > POLLS:
                raise too_few_nodes(self.num_clients)
        return range(1, self.num_clients + 1)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages for clients; return the ids under which their replies can be pulled."""
        ids = []
        with self._lock:
            self._polls.clear()
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

        Each client has `timeout` seconds, as if all worked at the same time. The grid then stops waiting for it (its
        thread cannot be stopped: it runs to its end, and its reply is dropped) and asks the next one. There is no
        timeout for clients that are trained together in one computation.
        """
        with self._lock:
            ids = self.push_messages(messages)
            return self._answer([self._waiting.pop(name) for name in ids], timeout)

    def _answer(self, messages: Sequence[Message], timeout: float | None = None) -> list[Message]:
        self._exchanges += 1
        read: dict[int, ArrayRecord] = {}
        ordered = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        replies = []
        with _own_streams(self.seed is not None):
            trained = self._train_together(ordered, read)
            for message in ordered:
                reply = trained.get(message.metadata.message_id) or self._ask(message, read, timeout)
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

    def _ask(self, message: Message, read: dict[int, ArrayRecord], timeout: float | None) -> Message | None:
        """Return a client's reply; None if it does not reply within `timeout` seconds."""
        if (refusal := self._refusal(message)) is not None:
            return refusal
        if timeout is not None and timeout <= 0:
            return None
        node = message.metadata.dst_node_id
        context = self._context(node)
        if self.seed is not None:
            _seed(derive("flower client", self.seed, self._exchanges, node))
        try:
            delivered = _delivered(message, read)
            if timeout is None:
                reply = self.client_app(delivered, context)
            else:
                reply = self._runner.run(lambda: self.client_app(delivered, context), timeout)
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
        if not 1 <= message.metadata.dst_node_id <= self.num_clients:
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


def too_few_nodes(count: int, needed: int | None = None) -> UserError:
    """Return the error of a strategy that waits for more clients than a CohortGrid has, and ever will have."""
    asks = "more" if needed is None else f"{needed}"
    return UserError(
        f"the strategy waits for {asks} clients, and CohortGrid has {count} for good: set its min_train_nodes, "
        f"min_evaluate_nodes and min_available_nodes to at most {count} (FedAvg's defaults are 2), or raise "
        "num_clients."
    )


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, Python's or NumPy's; True is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


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
