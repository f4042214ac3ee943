"""The client's side of a round: from what it received and kept to a task, and from the update to what it sends.

Everything here is about one client; the engines in between train many. What a client keeps between rounds is one flat
dict of tensors: "state.NAME" for the entries of the model that stay at home, "momentum.NAME" and "control.NAME" by
parameter, and "round", the last that it trained in.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from syncnorm.federated.aggregation import not_finite
from syncnorm.federated.federation import Federation
from syncnorm.federated.local import Task, Update
from syncnorm.federated.messages import Broadcast, Reply
from syncnorm.moments import Moments
from syncnorm.seeds import derive
from syncnorm.surgery import layer_moments

Own = dict[str, Tensor]


@dataclass(frozen=True)
class Started:
    """A client about to train: its task, and what `finish` needs to know again."""

    task: Task
    received: Broadcast
    small_batches: int
    statistics: dict[str, Tensor]
    """Running statistics from a pass before training, by entry."""


def start(federation: Federation, client: int, received: Broadcast, own: Mapping[str, Tensor] | None) -> Started:
    """Return what a client trains on in a round: what it received, and its own parts as it kept them."""
    world, round_ = federation.world, received.round
    plan = federation.plan(client, round_)
    kept = own or {}
    state = start_state(federation, received, kept)
    momentum = section(kept, "momentum") if world.keep_momentum else None
    task = Task(
        client=client,
        batches=plan.batches,
        running=plan.running,
        state=state,
        seed=derive("training", federation.run.seed, round_, client),
        correction=_correction(received.control, kept),
        momentum=momentum,
    )
    statistics = _measured(federation, client, state) if federation.policy.gathered == "before" else {}
    return Started(task, received, plan.small, statistics)


def start_state(federation: Federation, received: Broadcast, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every parameter and buffer of the model: fresh, then as the client kept them, then as received.

    In training the server sends nothing that clients keep; what it sends of that is to be evaluated.
    """
    return {**federation.fresh(received.round), **section(own, "state"), **received.state}


def finish(federation: Federation, started: Started, update: Update) -> tuple[Reply, Own | None]:
    """Return what a client sends after training, and what it keeps; it keeps nothing new where it failed."""
    task, client = started.task, update.client
    samples = len(federation.train(client))
    error = update.error or _broken(federation, update)
    if error:
        return Reply(client, {}, samples, small_batches=started.small_batches, error=error), None
    state = {name: update.state[known] for name, known in federation.entries.items()}
    state |= started.statistics or _seen(federation, update.state)
    own = {f"state.{name}": state[name] for name in federation.kept_names}
    own |= {f"momentum.{name}": value for name, value in (update.momentum or {}).items()}
    change: dict[str, Tensor] = {}
    if task.correction is not None:
        change = _control_change(federation, started, update)
        before = {name: started.received.control[name] - task.correction[name] for name in change}
        own |= {f"control.{name}": before[name] + value for name, value in change.items()}
    if own:
        own["round"] = torch.tensor(started.received.round)
    sent = {name: state[name] for name in federation.sent_names}
    return Reply(client, sent, samples, update.loss, change, started.small_batches), own


def _broken(federation: Federation, update: Update) -> str:
    """Say what of the trained model nothing can be made of, in one sentence; empty for a sound one.

    What a client keeps is never seen by the server, and would spoil all of its later rounds.
    """
    for name in federation.entries.values():
        if name not in update.state:
            return f"training left no '{name}'."
    first = not_finite({name: update.state[known] for name, known in federation.entries.items()})
    return "" if first is None else f"after training '{first}' has values that are not finite."


def measure(federation: Federation, client: int, state: Mapping[str, Tensor]) -> dict[str, Moments]:
    """Return the moments of what enters each batch norm over a client's training images, under a given model.

    Batches are those of training (what deeper layers get depends on them), without those below min_batch.
    """
    world = federation.world
    batches = [part for part in federation.train_images(client, world.batch) if len(part) >= world.min_batch]
    return layer_moments(federation.model_with(state), batches) if batches else {}


def statistics_entries(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    """Return moments by layer as the entries of a state: running means and unbiased running variances."""
    found = {}
    for layer, seen in moments.items():
        where = f"{layer}." if layer else ""
        found[f"{where}running_mean"] = seen.mean
        found[f"{where}running_var"] = seen.var(correction=1)
    return found


def section(own: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return one part of what a client keeps ("state", "momentum", "control"), by the names within."""
    return {name.removeprefix(f"{part}."): value for name, value in own.items() if name.startswith(f"{part}.")}


def _correction(control: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return SCAFFOLD's c - c_k, or None for another algorithm; a client's first c_k is zero (arXiv 1910.06378)."""
    if not control:
        return None
    mine = section(own, "control")
    return {name: value - mine[name] if name in mine else value for name, value in control.items()}


def _control_change(federation: Federation, started: Started, update: Update) -> dict[str, Tensor]:
    """Return c_k+ - c_k = -c + (w_received - w_trained) / (steps * lr): option II of SCAFFOLD (arXiv 1910.06378)."""
    task, received = started.task, started.received
    path = len(task.batches) * federation.learning_rate(received.round)
    return {name: (task.state[name] - update.state[name]) / path - value for name, value in received.control.items()}


def _measured(federation: Federation, client: int, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the running statistics of a pass over the client's data with the model that it is about to train."""
    return federation.with_aliases(statistics_entries(measure(federation, client, state)))


def _seen(federation: Federation, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the running statistics of all that layers saw in training, where they kept that."""
    if federation.policy.gathered != "seen":
        return {}
    found: dict[str, Tensor] = {}
    for layer in federation.layers:
        where = f"{layer}." if layer else ""
        parts = (state[f"{where}{part}"] for part in ("seen_count", "seen_mean", "seen_m2"))
        moments = Moments(*parts)
        if moments.count > 0:
            found |= statistics_entries({layer: moments})
    return federation.with_aliases(found)
