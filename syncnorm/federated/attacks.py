"""Attacks: what hostile clients of a simulation send in place of what they have trained.

    Clients(count=12, hostile=1/3, attack="flipped", aggregation="median")

An attack is a function of the honest reply, of what the client had received, and of a random generator; it returns
the reply that is sent. What a client keeps is honest, since no other client sees it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from syncnorm.config import Clients, Run
from syncnorm.errors import UserError, unknown
from syncnorm.federated.messages import Reply, Tensors
from syncnorm.federated.policies import COUNTER, STATISTICS, can_average
from syncnorm.moments import Moments
from syncnorm.registry import Registry, check_named
from syncnorm.seeds import derive
from syncnorm.worlds import expect

Attack = Callable[[Reply, Tensors, torch.Generator], Reply]
"""(honest reply, received entries of the model, generator) to the reply that is sent."""
MEAN, VARIANCE = STATISTICS


def hostile_clients(run: Run) -> frozenset[int]:
    """Return the hostile clients of a run: the same ones in every round, drawn by its seed.

    Raises:
        UserError: a fraction outside 0 to 1, or one of so few clients that it is none.
    """
    world = expect(run, Clients)
    if not 0 <= world.hostile <= 1:
        raise UserError(f"hostile is {world.hostile:g}: it is a fraction of the clients, from 0 to 1.")
    many = round(world.hostile * world.count)
    if world.hostile and not many:
        raise UserError(
            f"hostile is {world.hostile:g} of {world.count} clients, which is none: raise it, or set it to 0."
        )
    rng = np.random.default_rng(derive("hostile clients", run.seed))
    return frozenset(rng.choice(world.count, many, replace=False).tolist() if many else ())


def attacked(run: Run, round_: int, reply: Reply, received: Tensors) -> Reply:
    """Return what a hostile client sends in a round in place of its honest reply."""
    seed = derive("attack", run.seed, round_, reply.client)
    return ATTACKS[expect(run, Clients).attack](reply, received, torch.Generator().manual_seed(seed))


def scaled(reply: Reply, received: Tensors, generator: torch.Generator) -> Reply:
    """Send a change of the model that is 1e6 times as large; variances stay positive."""
    return _changed(reply, received, lambda before, after: before + 1e6 * (after - before))


def flipped(reply: Reply, received: Tensors, generator: torch.Generator) -> Reply:
    """Send the change of the model with its sign flipped, w - (w_trained - w)."""
    return _changed(reply, received, lambda before, after: before - (after - before))


def reversed_tenfold(reply: Reply, received: Tensors, generator: torch.Generator) -> Reply:
    """Send the change of the model with its sign flipped and ten times as large."""
    return _changed(reply, received, lambda before, after: before - 10 * (after - before))


def noise(reply: Reply, received: Tensors, generator: torch.Generator) -> Reply:
    """Send independent normal numbers (standard deviation 1) in place of trained values."""
    return _changed(reply, received, lambda before, after: torch.randn(after.shape, generator=generator).to(after))


def huge_variance(reply: Reply, received: Tensors, generator: torch.Generator) -> Reply:
    """Send running variances of 1e30, so that normalised values vanish."""
    return _statistics(reply, VARIANCE, 1e30)


def tiny_variance(reply: Reply, received: Tensors, generator: torch.Generator) -> Reply:
    """Send running variances of 1e-30, so that normalised values explode."""
    return _statistics(reply, VARIANCE, 1e-30)


def huge_mean(reply: Reply, received: Tensors, generator: torch.Generator) -> Reply:
    """Send running means of 1e15, whose spread dominates a pooled variance."""
    return _statistics(reply, MEAN, 1e15)


def counters(reply: Reply, received: Tensors, generator: torch.Generator) -> Reply:
    """Send the largest counters of batches that the type holds, 2^63 - 1: one more batch would overflow."""
    largest = {
        name: torch.full_like(value, torch.iinfo(value.dtype).max)
        for name, value in reply.state.items()
        if name.endswith(COUNTER)
    }
    return replace(reply, state={**reply.state, **largest})


def many_samples(reply: Reply, received: Tensors, generator: torch.Generator) -> Reply:
    """Flip the sign of the change, and claim a billion training samples, so that the weighted mean follows."""
    return replace(flipped(reply, received, generator), samples=10**9)


ATTACKS: Registry[Attack] = Registry(
    "attack",
    {
        "scaled": scaled,
        "flipped": flipped,
        "reversed_tenfold": reversed_tenfold,
        "noise": noise,
        "huge_variance": huge_variance,
        "tiny_variance": tiny_variance,
        "huge_mean": huge_mean,
        "counters": counters,
        "many_samples": many_samples,
    },
)
"""The attacks by name."""

Function = TypeVar("Function", bound=Attack)


def register_attack(name: str) -> Callable[[Function], Function]:
    """Register a function as the attack `name`, a decorator.

        @syncnorm.register_attack("zeros")
        def zeros(reply, received, generator):
            return dataclasses.replace(reply, state={name: 0 * value for name, value in reply.state.items()})

    Raises:
        UserError: a name that is taken or invalid, or something that is no function.
    """
    check_named(name, "syncnorm.register_attack")

    def register(function: Function) -> Function:
        if not callable(function):
            raise UserError(f"attack '{name}' is {function!r}: make it a function of (reply, received, generator).")
        ATTACKS.add(name, function)
        return function

    return register


def check_attack(run: Run) -> None:
    """Raise `UserError` for an unknown attack, or a fraction of hostile clients outside 0 to 1."""
    world = expect(run, Clients)
    hostile_clients(run)
    if world.attack not in ATTACKS:
        raise unknown("world.attack", world.attack, ATTACKS)


def _changed(reply: Reply, received: Tensors, make: Callable[[Tensor, Tensor], Tensor]) -> Reply:
    """Return a reply with other values of all entries that can be averaged, made of those before and after training;
    variances are made positive. What was not received counts as zero."""
    state = dict(reply.state)
    for name, value in reply.state.items():
        if not can_average(value.dtype):
            continue
        before = received[name].to(value) if name in received else torch.zeros_like(value)
        made = make(before, value).to(value.dtype)
        state[name] = made.abs() if name.endswith(VARIANCE) else made
    return replace(reply, state=state)


def attacked_moments(
    run: Run, round_: int, client: int, moments: Mapping[str, Moments], received: Tensors
) -> dict[str, Moments]:
    """Return what a hostile client answers in a pass over its data: moments with attacked means and variances."""
    entries = {f"{layer}.{MEAN}": seen.mean for layer, seen in moments.items()}
    entries |= {f"{layer}.{VARIANCE}": seen.var() for layer, seen in moments.items()}
    sent = attacked(run, round_, Reply(client, entries), received).state
    return {
        layer: Moments(seen.count, sent[f"{layer}.{MEAN}"], sent[f"{layer}.{VARIANCE}"] * seen.count)
        for layer, seen in moments.items()
    }


def _statistics(reply: Reply, part: str, number: float) -> Reply:
    own = {name: torch.full_like(value, number) for name, value in reply.state.items() if name.endswith(part)}
    return replace(reply, state={**reply.state, **own})
