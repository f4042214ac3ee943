"""Flower apps for syncnorm's own runs: the clients and the server of a `Run` whose world is `Clients`.

`run` in the run's config is the run as JSON; missing fields have their defaults:

    flwr run . --run-config 'run="{\"world\": {\"method\": \"fedbn\", \"rounds\": 5}}"'

`timeout` is the number of seconds that the server waits for the replies in a round; clients that have not replied by
then are left out of the round. `folder` is where the server keeps the global model round by round, and the state from
which the same run goes on if it is started again; "" keeps nothing. `at-once` is the number of clients that work at
the same time, for several on one small machine; 0 lets all of a round.
"""

import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import lru_cache
from logging import INFO, WARNING
from pathlib import Path
from threading import Event

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from syncnorm.config import Execution, Result, run_id, silent
from syncnorm.data.partitions.sites import Site
from syncnorm.errors import UserError
from syncnorm.federated.checkpoint import Checkpoint
from syncnorm.federated.client.client import Started, finish, report, start, start_state
from syncnorm.federated.engines.engine import AutoEngine
from syncnorm.federated.federation import Federation
from syncnorm.federated.flower import wire
from syncnorm.federated.flower.grid.cohort_grid import failure, sentence
from syncnorm.federated.flower.handshake import WORD, word
from syncnorm.federated.flower.memory import recall, store
from syncnorm.federated.flower.network import TIMEOUT, OverFlower
from syncnorm.federated.local import Update
from syncnorm.federated.server.rounds import Rounds
from syncnorm.federated.server.scores import score, validate
from syncnorm.files import whole_file, write_file
from syncnorm.progress import Pace

LOCKED = 90.0
"""Seconds to wait for a folder: a server that has lost its SuperLink ends by itself, but not at once."""


class TogetherApp(ClientApp):
    """A ClientApp for which a CohortGrid trains all clients of a round in one call of an engine."""

    def train_together(self, messages: Sequence[Message], contexts: Sequence[Context], engine: str) -> list[Message]:
        """Return the replies to train messages, in order; a client that fails gives an error reply."""
        begun: list[tuple[Federation, Started] | Message] = []
        for message, context in zip(messages, contexts, strict=True):
            try:
                begun.append(begin(message, context))
            except Exception as error:  # only this client fails
                begun.append(failure(message, sentence(error)))
        ready = [one for one in begun if not isinstance(one, Message) and one[1].task.batches]
        updates = iter(_trained(ready, engine) if ready else [])
        replies = []
        for one, message, context in zip(begun, messages, contexts, strict=True):
            if isinstance(one, Message):
                replies.append(one)
            else:
                update = next(updates) if one[1].task.batches else None
                replies.append(_end(message, context, *one, update))
        return replies


client_app = TogetherApp()
"""The client app of any run: it plays the client given by its node's "partition-id"."""

server_app = ServerApp()
"""The server of the run given by "run" in the run's config. It prints the metrics, and stores the result as JSON in
`context.state["result"]["json"]`."""


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train for a round."""
    federation, started = begin(message, context)
    if not started.task.batches:
        return _end(message, context, federation, started, None)
    (update,) = _trained([(federation, started)], "loop")
    return _end(message, context, federation, started, update)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate on the client's own test data."""
    federation, client, state = _received(message, context)
    return Message(wire.pack_score(score(federation, client, state)), reply_to=message)


@client_app.evaluate("validation")
def evaluate_validation(message: Message, context: Context) -> Message:
    """Return accuracy and loss on the client's validation samples."""
    federation, client, state = _received(message, context)
    accuracy, loss = validate(federation, client, state)
    metrics = MetricRecord({"accuracy": accuracy, "loss": loss})
    return Message(RecordDict({wire.METRICS: metrics}), reply_to=message)


@client_app.query("moments")
def query_moments(message: Message, context: Context) -> Message:
    """Return the moments of each batch norm's inputs over the client's data."""
    federation = _federation(message, context)
    received = wire.unpack_broadcast(message.content, federation)
    moments = report(federation, _client(context), received)
    return Message(wire.pack_moments(moments), reply_to=message)


@client_app.query("kept")
def query_kept(message: Message, context: Context) -> Message:
    """Return the client's kept entries, for a run that averages them over clients."""
    own = recall(message, context, _federation(message, context).device)
    return Message(wire.pack_own(own), reply_to=message)


@client_app.query("restore")
def query_restore(message: Message, context: Context) -> Message:
    """Take back the kept entries of a run that was interrupted."""
    store(message, context, wire.kept(message.content, _federation(message, context).device))
    return Message(RecordDict(), reply_to=message)


@client_app.query("partition")
def query_partition(message: Message, context: Context) -> Message:
    """Return which client this node plays."""
    metrics = MetricRecord({"partition-id": _client(context)})
    return Message(RecordDict({wire.METRICS: metrics}), reply_to=message)


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Play a run's rounds and evaluate them."""
    timeout, folder = float(context.run_config.get("timeout", TIMEOUT)), str(context.run_config.get("folder", ""))
    text = str(context.run_config.get("run", "{}"))
    with _alone_in(Path(folder), text) if folder else nullcontext():
        place = Path(folder) if folder else None
        at_once = int(context.run_config.get("at-once", 0))
        result = play(grid, text, timeout=timeout, folder=place, at_once=at_once)
        as_json = json.dumps(asdict(result))
        if folder:
            write_file(Path(folder) / "result.json", as_json)
    context.state["result"] = ConfigRecord({"json": as_json})
    print(json.dumps(result.metrics, indent=1))


def play(
    grid: Grid,
    text: str,
    ended: Event | None = None,
    timeout: float = TIMEOUT,
    folder: Path | None = None,
    execution: Execution | None = None,
    at_once: int = 0,
) -> Result:
    """Play the run that JSON describes on a grid and return its result.

    `ended` is set when no more replies will come; waiting for one then raises `ConnectionError`. After each round the
    global model is written to global.pt in `folder`, for `torch.load`: "round", from 1, and "state"; beside it is the
    checkpoint from which the same run goes on, without the clients' states, which stay with them. `execution` says
    where a simulation keeps its checkpoint, with the clients' states, and who hears of its progress.

    Raises:
        UserError: anything in the run that does not work; a round that failed; missing clients.
    """
    started = time.perf_counter()
    federation = federation_of(text)
    network = OverFlower(
        federation, grid, text, ended or Event(), timeout, asks_for_states=folder is None, at_once=at_once
    )
    rounds = Rounds(federation, network)
    execution = execution or Execution(report=silent)
    if folder is not None:
        execution = replace(execution, checkpoint=folder, checkpoint_every=0.0)
    kept = None
    if execution.checkpoint:
        kept = Checkpoint(execution.checkpoint, federation.run, rounds, network, execution.checkpoint_every)
        if kept.resume():
            log(INFO, "the run goes on after round %d, which %s holds", rounds.next, execution.checkpoint)
    pace = Pace(execution, "round", federation.world.rounds, begin=rounds.next)
    for _ in range(rounds.next, federation.world.rounds):
        rounds.play()
        _tell(rounds)
        latest = rounds.latest()
        pace.tell(rounds.next, latest["train_loss"], latest)
        if kept:
            kept.save_if_due()
        if folder is not None:
            with whole_file(folder / "global.pt") as file:
                torch.save({"round": rounds.next, "state": rounds.server.state}, file)
    before = kept.seconds_before if kept else 0.0
    result = rounds.result(before + time.perf_counter() - started)
    return replace(result, details={**result.details, **network.details()})


def _tell(rounds: Rounds) -> None:
    """Log what the last round gave, and whom it went on without."""
    log(INFO, "round %d of %d: loss %.4f", rounds.next, rounds.federation.world.rounds, rounds.latest()["train_loss"])
    for where, why in rounds.log.left_out.items():
        if where.startswith(f"round {rounds.next}, "):
            log(WARNING, "%s was left out: %s", where, why)


@contextmanager
def _alone_in(folder: Path, text: str) -> Iterator[None]:
    """Keep other servers and other runs out of a folder; the lock goes with the process.

    Raises:
        UserError: another server is at work in it, or it holds another run.
    """
    run, note = wire.run_from_text(text), folder / "run.json"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        deadline = time.monotonic() + LOCKED
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise UserError(
                        f"another run is at work in {folder}: wait for it, or give this one a folder of its own."
                    ) from error
                time.sleep(1)
        if note.exists() and run_id(wire.run_from_text(note.read_text())) != run_id(run):
            raise UserError(f"{folder} holds another run, which {note.name} describes: choose another folder.")
        write_file(note, text)
        yield


@lru_cache(maxsize=1)
def federation_of(text: str, site: Site | None = None) -> Federation:
    """Return the federation of the run that JSON describes; a process caches the last one."""
    return Federation(wire.run_from_text(text), site=site)


@lru_cache(maxsize=1)
def _engine(federation: Federation, engine: str) -> AutoEngine:
    return AutoEngine(engine)


def forget() -> None:
    """Drop the federation that this process has cached."""
    federation_of.cache_clear()
    _engine.cache_clear()


def _federation(message: Message, context: Context) -> Federation:
    config = message.content.get(wire.CONFIG)
    sent = config.get(wire.RUN) if isinstance(config, ConfigRecord) else None
    text = str(sent or context.run_config.get("run", "{}"))
    try:
        return federation_of(text, _site(context))
    except UserError as error:
        if not str(error).startswith("unknown "):
            raise
        raise UserError(
            f"{str(error).removesuffix('.')}; the app that this SuperNode runs has to carry the module that "
            "registers it."
        ) from error


def _site(context: Context) -> Site | None:
    """Return the site that a node is, if its --node-config names the file with its data."""
    file = context.node_config.get("data")
    return Site(_client(context), str(file)) if file else None


def _client(context: Context) -> int:
    if "partition-id" not in context.node_config:
        raise UserError(
            f"node {context.node_id} does not say which client it is: start its SuperNode with "
            "--node-config 'partition-id=0 num-partitions=10', each with a partition-id of its own."
        )
    return int(context.node_config["partition-id"])


def _received(message: Message, context: Context) -> tuple[Federation, int, dict[str, Tensor]]:
    """Return the model entries to evaluate: received ones, and kept ones or the message's fallback for them."""
    federation = _federation(message, context)
    received = wire.unpack_broadcast(message.content, federation)
    own = recall(message, context, federation.device)
    if own is None:
        own = wire.stand_in(message.content, federation.device)
    return federation, _client(context), start_state(federation, received, own)


def begin(message: Message, context: Context) -> tuple[Federation, Started]:
    """Return the federation of a train message's run, and its client about to train."""
    federation = _federation(message, context)
    received = wire.unpack_broadcast(message.content, federation)
    return federation, start(federation, _client(context), received, recall(message, context, federation.device))


def _trained(begun: Sequence[tuple[Federation, Started]], engine: str) -> list[Update]:
    federation, first = begun[0]
    pool, local = federation.population, federation.local(first.received.round)
    return _engine(federation, engine).train(local, pool.x, pool.y, [started.task for _, started in begun])


def _end(
    message: Message, context: Context, federation: Federation, started: Started, update: Update | None
) -> Message:
    if update is None:
        counted = federation.world.send_counts
        samples = len(federation.schedule.samples(started.task.client)) if counted else 0
        return Message(wire.pack_idle(started.received, samples), reply_to=message)
    reply, own = finish(federation, started, update)
    if reply.error:
        return failure(message, reply.error)
    content = wire.pack_reply(reply)
    content[WORD] = word(context, not own or recall(message, context, federation.device) is not None)
    store(message, context, own)
    return Message(content, reply_to=message)
