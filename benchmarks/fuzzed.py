"""Replies that a broken or hostile client might send, drawn at random, and what a server makes of them."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from syncnorm.config import Clients, Data, Norm, Optim, Run
from syncnorm.errors import UserError
from syncnorm.federated.client.states import InMemory
from syncnorm.federated.engines.engine import AutoEngine
from syncnorm.federated.federation import Federation
from syncnorm.federated.messages import Reply
from syncnorm.federated.server.network import InProcess
from syncnorm.federated.server.rounds import Rounds
from syncnorm.federated.server.server import Server

State = dict[str, Any]
CLIENTS, HOSTILE = 7, 2
"""Clients of a round, and how many of them are fuzzed: less than a third."""
NUMBERS = (torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e30, -1e30, 1e-30, 3e38, -3e38, 1e-45, 1e6, -1e6)
WHOLE = (2**63 - 1, -(2**63), -1, 0, 2**62, 2**53 + 1)


def change_some_values(value: Tensor, rng: random.Random) -> Tensor:
    """Set some values, or all, to a number that is extreme or none."""
    flat = value.clone().reshape(-1)
    whole = not (value.is_floating_point() or value.is_complex())
    many = rng.choice([1, len(flat), rng.randint(1, max(1, len(flat)))])
    for place in rng.sample(range(len(flat)), min(many, len(flat))):
        flat[place] = rng.choice(WHOLE) if whole else rng.choice(NUMBERS)
    return flat.reshape(value.shape)


def scale(value: Tensor, rng: random.Random) -> Tensor:
    """Multiply all values."""
    return value * rng.choice([1e6, -1, -1e6, 0, 1e30, 10])


def reshape(value: Tensor, rng: random.Random) -> Tensor:
    """Change the shape."""
    return rng.choice(
        [value.reshape(-1), value.unsqueeze(0), value.reshape(-1)[:0], torch.cat([value.reshape(-1)] * 2)]
    )


def retype(value: Tensor, rng: random.Random) -> Tensor:
    """Change the type."""
    kinds = (torch.float16, torch.float64, torch.bfloat16, torch.complex64, torch.int8, torch.int64, torch.bool)
    return value.to(rng.choice(kinds))


def no_plain_tensor(value: Tensor, rng: random.Random) -> Any:
    """Send something that is no tensor, or one of another layout or device."""
    others = (
        None,
        "text",
        3,
        [1.0],
        {},
        value.cpu().numpy(),
        value.to("meta"),
        value.to_sparse(),
        value.expand_as(value),
    )
    return rng.choice(others)


OF_ENTRIES: tuple[Callable[[Tensor, random.Random], Any], ...] = (
    *(change_some_values, change_some_values, change_some_values),
    *(scale, scale, reshape, retype, no_plain_tensor),
)


def plausible(value: Tensor, rng: random.Random) -> Tensor:
    """Set some values to extreme ones that the type holds, and that a variance or a counter may have."""
    flat = value.clone().reshape(-1)
    whole = not (value.is_floating_point() or value.is_complex())
    for place in range(len(flat)):
        if rng.random() < 0.5:
            flat[place] = rng.randint(0, 2**53) if whole else rng.choice([0.0, 1e-30, 1.0, 1e6, 1e30, 3e38])
    return flat.reshape(value.shape)


def fuzzed_state(state: Mapping[str, Tensor], rng: random.Random) -> State:
    """Return a state with entries changed, missing, renamed or added; half of the states could be honest."""
    found: State = dict(state)
    if rng.random() < 0.5:
        for name in rng.sample(sorted(found), rng.choice([1, 2, len(found)])):
            found[name] = plausible(found[name], rng)
        return found
    for name in rng.sample(sorted(found), rng.choice([1, 1, 2, len(found)])):
        found[name] = rng.choice(OF_ENTRIES)(found[name], rng)
    if rng.random() < 0.2:
        del found[rng.choice(sorted(found))]
    if rng.random() < 0.1:
        found[rng.choice(["", "another", "running_var", "x" * 1000])] = torch.ones(2)
    if rng.random() < 0.05:
        found[rng.choice([3, None, ("a",)])] = torch.ones(2)  # type: ignore[index]
    return found


def fuzzed_reply(reply: Reply, rng: random.Random) -> Reply:
    """Return a reply with another state, and sometimes with odd numbers beside it."""
    reply = replace(reply, state=fuzzed_state(reply.state, rng))
    odd = (-1, 10**30, 0, 2**63, float("nan"), float("inf"), -5.0, 1e300, None, "7", True)
    if rng.random() < 0.2:
        reply = replace(reply, samples=rng.choice(odd))  # type: ignore[arg-type]
    if rng.random() < 0.2:
        reply = replace(reply, loss=rng.choice(odd))  # type: ignore[arg-type]
    if reply.extra and rng.random() < 0.5:
        reply = replace(reply, extra=fuzzed_state(reply.extra, rng))
    return reply


def small_federation(**world: Any) -> Federation:
    """Return a run of seven clients with a tiny model."""
    clients = Clients(**{"count": CLIENTS, "rounds": 1, "engine": "loop", "skew": "dirichlet_by_class", **world})
    optim = Optim(lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0)
    data = Data("digits", size=8, train_limit=210, test_limit=60)
    return Federation(Run(data, "small_cnn", {"width": 2}, Norm("bn"), clients, optim), torch.device("cpu"))


def honest_round(federation: Federation) -> tuple[list[Reply], Mapping[str, Any]]:
    """Return the replies of a first round, and what the server is before it."""
    rounds = Rounds(federation, InProcess(federation, InMemory(), AutoEngine("loop")))
    replies = rounds.network.train(federation.schedule.cohort(0), rounds.broadcast)
    return replies, rounds.server.remember()


def spoiled(server: Server, before: Mapping[str, Tensor]) -> str:
    """Say which entry of the global model must not be as it is; empty if none."""
    for name, value in server.state.items():
        own = before[name]
        if value.shape != own.shape or value.dtype != own.dtype:
            return f"{name} has another shape or type"
        if not value.isfinite().all():
            return f"{name} is not finite"
        if name.endswith("running_var") and value.lt(0).any():
            return f"{name} is negative"
        if name.endswith("num_batches_tracked") and not 0 <= int(value) <= 2**53:
            return f"{name} is {int(value)}"
    return ""


def outside(server: Server, honest: Sequence[Reply], names: Sequence[str]) -> str:
    """Return the first of some entries with a value outside the range of honest clients; empty if none."""
    for name in names:
        stacked = torch.stack([reply.state[name] for reply in honest])
        margin = 1e-6 * stacked.abs().amax()
        value = server.state[name]
        if (value < stacked.amin(0) - margin).any() or (value > stacked.amax(0) + margin).any():
            return name
    return ""


RUNS: tuple[dict[str, Any], ...] = (
    *({"method": method} for method in ("fedavg", "fedavg_pooled", "silobn", "fbn")),
    *({"algorithm": algorithm} for algorithm in ("scaffold", "fedadam", "fedavgm")),
    *({"method": "fedavg_pooled", "aggregation": name} for name in ("median", "trimmed", "clipped", "krum")),
    {"method": "fedavg", "aggregation": "median", "algorithm": "fedadam"},
)
"""The runs whose servers get fuzzed replies."""


def campaign(replies: int, seed: int = 0) -> Counter[str]:
    """Give servers of all `RUNS` so many fuzzed replies, two a round; return how the rounds ended.

    Raises:
        AssertionError: a global model with an entry that is not finite, a negative variance, a counter that is none,
            or, with the median or the trimmed mean, a parameter outside the range of honest clients.
    """
    rng, ends = random.Random(seed), Counter[str]()
    federations = [small_federation(**world) for world in RUNS]
    prepared = [(federation, *honest_round(federation)) for federation in federations]
    while ends["replies"] < replies:
        federation, honest, before = prepared[rng.randrange(len(prepared))]
        server = Server(federation)
        server.recall(before)
        chosen = rng.sample(range(CLIENTS), HOSTILE)
        sent = [fuzzed_reply(reply, rng) if reply.client in chosen else reply for reply in honest]
        ends["replies"] += HOSTILE
        try:
            received = server.receive(0, sent)
            ends["left out"] += len(received.left_out)
            ends["used"] += sum(client in chosen for client in received.used)
            assert set(received.left_out) <= set(chosen), received.left_out
        except UserError:
            ends["rounds that ended with a sentence"] += 1
            assert all(torch.equal(value, before["state"][name]) for name, value in server.state.items())
        problem = spoiled(server, before["state"])
        if federation.world.aggregation in ("median", "trimmed") and federation.world.algorithm == "fedavg":
            others = [reply for reply in honest if reply.client not in chosen]
            problem = problem or outside(server, others, federation.layout.shared_parameters)
        assert not problem, f"{federation.world}: {problem}"
    return ends
