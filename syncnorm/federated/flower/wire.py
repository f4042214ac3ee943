"""The messages of a run as Flower's records, under Flower's own names.

A train message holds "arrays" and "config" (with "server-round", from 1), a reply "arrays" and "metrics" (with
"num-examples"), so that Flower's strategies work with these clients too. "extra" holds the additional tensors of the
run's algorithm. "run" in the config is the run as JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from syncnorm.config import Clients, Data, Norm, Optim, Run
from syncnorm.errors import UserError, unknown
from syncnorm.federated.client.states import ClientState
from syncnorm.federated.federation import Federation
from syncnorm.federated.flower.records import from_record, to_record
from syncnorm.federated.messages import Broadcast, Reply
from syncnorm.federated.server.scores import Score
from syncnorm.moments import Moments
from syncnorm.registry import load_plugins

REGISTERED = "metric."
"""Prefix of the name of a registered metric."""
ARRAYS, CONFIG, EXTRA, METRICS, FALLBACK, OWN = "arrays", "config", "extra", "metrics", "fallback", "own"
ROUND, RUN, EXAMPLES, IDLE, SMALL = "server-round", "run", "num-examples", "idle", "small-batches"
BY_SAMPLE = ("by_sample", "again_by_sample")
"""Fields of a score with a value for each test sample."""
MOMENTS = ("count", "mean", "m2")


def run_as_text(run: Run) -> str:
    """Return a run of clients as JSON, paths included."""
    return json.dumps(asdict(run))


def run_from_text(text: str) -> Run:
    """Return the run that JSON describes; missing fields have their defaults.

    Loads the plugins, so that the run may use names that they register.

    Raises:
        UserError: a text that is not a JSON object, or a field that a run of clients does not have.
    """
    load_plugins()
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f'run is {text!r}, which is no JSON ({error}): write {{"world": {{"rounds": 5}}}}.'
        ) from error
    parts = {"data": Data, "norm": Norm, "optim": Optim, "world": Clients}
    given = _fields_of(Run, given, "")
    world = given.setdefault("world", {})
    for name in ("domains", "unseen"):
        if isinstance(world, dict) and isinstance(world.get(name), list):
            world[name] = tuple(world[name])
    for name, kind in parts.items():
        if name in given:
            given[name] = kind(**_fields_of(kind, given[name], f"{name}."))
    return Run(**given)


def _fields_of(kind: type[Any], given: Any, owner: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        what = owner.removesuffix(".") or "run"
        raise UserError(f"{what} is {given!r}: it must be a JSON object.")
    known = [f"{owner}{item.name}" for item in fields(kind)]
    for name in given:
        if f"{owner}{name}" not in known:
            raise unknown("field of a run", f"{owner}{name}", known)
    return dict(given)


def pack_request(text: str) -> RecordDict:
    """Return the content of a message that holds only the run."""
    return RecordDict({CONFIG: ConfigRecord({RUN: text})})


def pack_restored(own: ClientState, text: str) -> RecordDict:
    """Return the content of a message that gives a client its kept entries back."""
    return RecordDict({**pack_request(text), **pack_own(own)})


def pack_broadcast(broadcast: Broadcast, text: str, fallback: ClientState | None = None) -> RecordDict:
    """Return a broadcast as a message's content; `fallback` is for a client that keeps nothing."""
    content = RecordDict(
        {
            ARRAYS: _record(broadcast.state),
            CONFIG: ConfigRecord({ROUND: broadcast.round + 1, RUN: text}),
        }
    )
    if broadcast.extra:
        content[EXTRA] = _record(broadcast.extra)
    if fallback:
        content[FALLBACK] = _record(fallback)
    return content


def unpack_broadcast(content: RecordDict, federation: Federation) -> Broadcast:
    """Return the received broadcast in the model's types: other strategies average counters to float64."""
    state = federation.models.template.state_dict()
    received = _tensors(content, ARRAYS, federation.device)
    strange = sorted(received.keys() - state.keys())
    if strange:
        raise ValueError(f"the server sent '{strange[0]}', which the run's model does not have")
    typed = {name: value.to(state[name].dtype) for name, value in received.items()}
    round_ = int(number(content, CONFIG, ROUND)) - 1
    return Broadcast(round_, typed, _tensors(content, EXTRA, federation.device))


def pack_reply(reply: Reply) -> RecordDict:
    """Return a client's reply after training as the content of a message."""
    metrics = MetricRecord({EXAMPLES: reply.samples, "loss": reply.loss, SMALL: reply.small_batches, IDLE: 0})
    content = RecordDict({ARRAYS: _record(reply.state), METRICS: metrics})
    if reply.extra:
        content[EXTRA] = _record(reply.extra)
    return content


def pack_idle(received: Broadcast, samples: int) -> RecordDict:
    """Return the reply of a client without a batch to train on: the model it received."""
    metrics = MetricRecord({EXAMPLES: samples, "loss": 0.0, SMALL: 0, IDLE: 1})
    return RecordDict({ARRAYS: _record(received.state), METRICS: metrics})


def unpack_reply(client: int, content: RecordDict, federation: Federation) -> Reply | None:
    """Return a client's reply after training; None if it had nothing to train on."""
    model, device = federation.models.template.state_dict(), federation.device
    if number(content, METRICS, IDLE):
        return None
    return Reply(
        client,
        {name: _as_sent(value, model.get(name)) for name, value in _tensors(content, ARRAYS, device).items()},
        samples=int(number(content, METRICS, EXAMPLES)),
        loss=number(content, METRICS, "loss"),
        extra=_tensors(content, EXTRA, device),
        small_batches=int(number(content, METRICS, SMALL)),
    )


def pack_score(score: Score) -> RecordDict:
    """Return an evaluation as the content of a reply."""
    metrics: dict[str, Any] = {EXAMPLES: score.samples, "accuracy": score.accuracy, "loss": score.loss}
    if score.reestimated is not None:
        metrics["reestimated"] = score.reestimated
    for name in BY_SAMPLE:
        if (values := getattr(score, name)) is not None:
            metrics[name] = values.double().tolist()
    metrics |= {f"{REGISTERED}{name}": value for name, value in score.metrics.items()}
    return RecordDict({METRICS: MetricRecord(metrics), **pack_moments(score.moments)})


def unpack_score(client: int, content: RecordDict, device: torch.device) -> Score:
    """Return an evaluation."""
    metrics = content[METRICS]
    own = [name for name in metrics if name.startswith(REGISTERED)]
    return Score(
        client,
        accuracy=number(content, METRICS, "accuracy"),
        loss=number(content, METRICS, "loss"),
        samples=int(number(content, METRICS, EXAMPLES)),
        reestimated=number(content, METRICS, "reestimated") if "reestimated" in metrics else None,
        moments=unpack_moments(content, device),
        metrics={name.removeprefix(REGISTERED): number(content, METRICS, name) for name in own},
        **{name: torch.tensor(metrics[name], dtype=torch.float64) for name in BY_SAMPLE if name in metrics},
    )


def pack_moments(moments: Mapping[str, Moments]) -> RecordDict:
    """Return moments by layer as three records: counts, means, M2."""
    return RecordDict(
        {part: to_record({layer: getattr(one, part) for layer, one in moments.items()}) for part in MOMENTS}
    )


def unpack_moments(content: RecordDict, device: torch.device) -> dict[str, Moments]:
    """Return moments by layer."""
    count, mean, m2 = (_tensors(content, part, device) for part in MOMENTS)
    return {layer: Moments(count[layer], mean[layer], m2[layer]) for layer in count}


def keep(state: RecordDict, own: ClientState | None) -> None:
    """Store a client's state in its context, replacing the old one; None changes nothing."""
    if own:
        # A copy: the batched engine returns slices, which keep their whole stack.
        state[OWN] = _record(own, copy=True)


def kept(state: RecordDict, device: torch.device) -> ClientState | None:
    """Return a client's stored state; None if it never stored any."""
    return _tensors(state, OWN, device) if OWN in state else None


def stand_in(content: RecordDict, device: torch.device) -> ClientState:
    """Return the fallback in a message."""
    return _tensors(content, FALLBACK, device)


def pack_own(own: ClientState | None) -> RecordDict:
    """Return a client's kept entries as the content of a reply; empty for None."""
    return RecordDict() if own is None else RecordDict({OWN: _record(own)})


def _record(state: Mapping[str, Tensor], *, copy: bool = False) -> ArrayRecord:
    """Return tensors as a record: bfloat16 as float32, since NumPy, and so Flower's arrays, have none."""
    wide = {name: value.float() if value.dtype is torch.bfloat16 else value for name, value in state.items()}
    return to_record(wide, copy=copy)


def _as_sent(value: Tensor, own: Tensor | None) -> Tensor:
    """Return an entry in the type that it had before `_record` widened it, given the model's entry of this name."""
    widened = own is not None and own.dtype is torch.bfloat16 and value.dtype is torch.float32
    return value.bfloat16() if widened else value


def _tensors(content: RecordDict, name: str, device: torch.device) -> dict[str, Tensor]:
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        return {}
    return {key: value.to(device) for key, value in from_record(record).items()}


def number(content: RecordDict, record: str, name: str) -> float:
    """Return a number of one of a message's records."""
    value: Any = content[record][name]
    return float(value)
