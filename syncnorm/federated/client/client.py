"""The client's side of a round: from the received and kept entries to a task, and from the update to the reply.

Everything here is about one client; the engines in between train many. A client's state between rounds is one flat
dict of tensors: "state.NAME" for the model entries that stay with the client, "momentum.NAME" by parameter,
"algorithm.NAME" for the state of the run's algorithm, and "round", the last round in which it trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from syncnorm.federated.aggregation import not_finite
from syncnorm.federated.algorithms.base import Trained
from syncnorm.federated.attacks import attacked, attacked_moments
from syncnorm.federated.client.states import ClientState
from syncnorm.federated.federation import Federation
from syncnorm.federated.local import Task, Update
from syncnorm.federated.messages import Broadcast, Reply
from syncnorm.moments import Moments
from syncnorm.seeds import derive
from syncnorm.surgery.adaptation.recalibrate import layer_statistics, statistics_entries


@dataclass(frozen=True)
class Started:
    """A client about to train: its task, and the data that `finish` needs."""

    task: Task
    received: Broadcast
    small_batches: int
    statistics: dict[str, Tensor]
    """Running statistics from a pass before training, by entry."""


def start(federation: Federation, client: int, received: Broadcast, kept: Mapping[str, Tensor] | None) -> Started:
    """Return a client's training task in a round, given its received and kept entries."""
    round_, own = received.round, kept or {}
    plan = federation.schedule.plan(client, round_)
    state = start_state(federation, received, own)
    task = Task(
        client=client,
        batches=plan.batches,
        running=plan.running,
        state=state,
        seed=derive("training", federation.run.seed, round_, client),
        inputs=federation.algorithm.client_inputs(received.extra, section(own, "algorithm")),
        momentum=section(own, "momentum") if federation.world.keep_momentum else None,
    )
    statistics = _measured(federation, client, state) if federation.policy.statistics_source == "before" else {}
    return Started(task, received, plan.small, statistics)


def start_state(federation: Federation, received: Broadcast, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every parameter and buffer of the model: initial values, overridden by kept, then by received ones.

    In training, the server never sends entries that clients keep; it does so only to evaluate an earlier round.
    """
    return {**federation.fresh(received.round), **section(kept, "state"), **received.state}


def finish(federation: Federation, started: Started, update: Update) -> tuple[Reply, ClientState | None]:
    """Return a client's reply after training and its new state; None if it failed and keeps its old state."""
    client, layout = update.client, federation.layout
    samples = len(federation.schedule.samples(client))
    error = update.error or _broken(federation, started, update)
    if error:
        return Reply(client, {}, samples, small_batches=started.small_batches, error=error), None
    state = {name: update.state[listed] for name, listed in layout.listed.items()}
    state |= started.statistics or _seen(federation, update.state)
    extra, kept = federation.algorithm.client_result(_trained(federation, started, update))
    own = {f"state.{name}": state[name] for name in layout.kept}
    own |= {f"momentum.{name}": value for name, value in (update.momentum or {}).items()}
    own |= {f"algorithm.{name}": value for name, value in kept.items()}
    if own:
        own["round"] = torch.tensor(started.received.round)
    sent = {name: state[name] for name in layout.sent}
    reply = Reply(client, sent, samples, update.loss, extra, started.small_batches)
    if client in federation.hostile:
        reply = attacked(federation.run, started.received.round, reply, started.received.state)
    return (reply if federation.world.send_counts else replace(reply, samples=0, small_batches=0)), own


def _trained(federation: Federation, started: Started, update: Update) -> Trained:
    names, task = federation.layout.shared_parameters, started.task
    return Trained(
        before={name: task.state[name] for name in names},
        after={name: update.state[name] for name in names},
        steps=len(task.batches),
        lr=federation.schedule.learning_rate(started.received.round),
        message=started.received.extra,
        inputs=task.inputs,
    )


def _broken(federation: Federation, started: Started, update: Update) -> str:
    """Say in one sentence why a trained model is unusable; empty if it is usable.

    Kept entries must be checked here: the server never sees them, and bad ones would spoil all later rounds.
    """
    for name in federation.layout.listed.values():
        if name not in update.state:
            return f"training left no '{name}'."
    trained = {known: update.state[known] for known in federation.layout.listed.values()}
    first = not_finite(trained, started.task.state)
    return "" if first is None else f"after training '{first}' has values that are not finite."


def measure(federation: Federation, client: int, state: Mapping[str, Tensor]) -> dict[str, Moments]:
    """Return what batch norms see of a client's training images (`layer_statistics`), for a given model.

    Batches are those of training, since inputs of deeper layers depend on them, without those below min_batch.
    """
    world = federation.world
    batches = [part for part in federation.train_images(client, world.batch) if len(part) >= world.min_batch]
    return layer_statistics(federation.models.with_state(state), batches) if batches else {}


def report(federation: Federation, client: int, received: Broadcast) -> dict[str, Moments]:
    """Return what a client answers to the server's pass over its data (`measure`)."""
    found = measure(federation, client, received.state)
    if client in federation.hostile and found:
        return attacked_moments(federation.run, received.round, client, found, received.state)
    return found


def section(kept: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return one part of a client's state ("state", "momentum" or "algorithm"), by the names inside it."""
    return {name.removeprefix(f"{part}."): value for name, value in kept.items() if name.startswith(f"{part}.")}


def _measured(federation: Federation, client: int, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the running statistics of a pass over the client's data with the received model."""
    return federation.layout.with_aliases(statistics_entries(measure(federation, client, state)))


def _seen(federation: Federation, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the running statistics of all layer inputs in training, if the policy asks for them."""
    if federation.policy.statistics_source != "seen":
        return {}
    found: dict[str, Tensor] = {}
    for layer in federation.layout.layers:
        where = f"{layer}." if layer else ""
        parts = (state[f"{where}{part}"] for part in ("seen_count", "seen_mean", "seen_m2"))
        moments = Moments(*parts)
        if moments.count > 0:
            found |= statistics_entries({layer: moments})
    return federation.layout.with_aliases(found)
