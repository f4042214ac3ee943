"""Checks of a run of clients before it starts, with one sentence per mistake."""

from syncnorm.config import Clients, Norm, Optim, Run
from syncnorm.errors import UserError
from syncnorm.federated.algorithms.base import Algorithm
from syncnorm.federated.attacks import check_attack
from syncnorm.federated.engines.engine import engine_of
from syncnorm.federated.policies import POLICIES, Policy
from syncnorm.norms import norm_spec
from syncnorm.training.building import check_training
from syncnorm.worlds import expect


def check_clients(run: Run, policy: Policy, algorithm: Algorithm) -> None:
    """Raise `UserError` for anything in a run of clients that is out of range or inconsistent."""
    world = expect(run, Clients)
    check_training(run)
    _check_training_options(run)
    _check_numbers(world)
    _check_norm(run.norm, world.method, policy)
    _check_momentum(run, world)
    _check_engine(run, world, algorithm)
    _check_aggregation(world, policy, algorithm)
    _check_counts(world, policy, algorithm)
    check_attack(run)
    algorithm.check(run)


def _check_training_options(run: Run) -> None:
    """Clients have their own training loops, which support only some of the trainer's options."""
    plain = Optim()
    for name, value, off in (
        ("optim.clip_norm", run.optim.clip_norm, plain.clip_norm),
        ("optim.accumulate", run.optim.accumulate, plain.accumulate),
    ):
        if value != off:
            instead = "; world.clip is their gradient clipping" if name == "optim.clip_norm" else ""
            raise UserError(f"{name} is {value}, which clients do not have: leave it at {off}{instead}.")


def _check_numbers(world: Clients) -> None:
    if world.participation > 1:
        raise UserError(
            f"participation is {world.participation:g}, which is more participants than clients: it is a fraction of "
            f"the {world.count} clients, above 0 and at most 1."
        )
    if 1 <= world.batch < world.min_batch:
        raise UserError(
            f"batch is {world.batch} and min_batch {world.min_batch}, so no batch could be normalised by itself: "
            "raise batch, or lower min_batch."
        )
    for name, value, holds, rule in (
        ("participation", world.participation, world.participation > 0, "above 0 and at most 1"),
        ("rounds", world.rounds, world.rounds >= 1, "at least 1"),
        ("local_epochs", world.local_epochs, world.local_epochs >= 1, "at least 1"),
        ("local_steps", world.local_steps, world.local_steps is None or world.local_steps >= 1, "at least 1"),
        ("batch", world.batch, world.batch >= 1, "at least 1"),
        ("min_batch", world.min_batch, world.min_batch >= 1, "at least 1"),
        ("clip", world.clip, world.clip >= 0, "at least 0"),
        ("enough", world.enough, 0 <= world.enough <= 1, "from 0 to 1"),
    ):
        if not holds:
            raise UserError(f"{name} is {value}: it must be {rule}.")


def _check_norm(chosen: Norm, method: str, policy: Policy) -> None:
    norm = chosen.name
    if norm_spec(norm).shares(chosen.options):
        raise UserError(
            f"norm {norm} synchronises ranks, and clients are none: choose bn, with the method "
            f"{_methods('synchronised')} if clients are to share batch statistics while they train."
        )
    if norm == "ghost_bn" and policy.training != "batch":
        raise UserError(f"method {method} puts its own layer in place of batch norm: choose norm bn, not ghost_bn.")
    if norm in ("frozen_bn", "reference_bn", "hybrid_bn") and (policy.training != "batch" or norm != "frozen_bn"):
        raise UserError(
            f"norm {norm} is the layer of a method, which method {method} does not call for: choose norm bn with one "
            f"of the methods {_methods('frozen', 'running', 'hybrid')}."
        )


def _methods(*training: str) -> str:
    return ", ".join(name for name, row in POLICIES.items() if row.training in training)


def _check_momentum(run: Run, world: Clients) -> None:
    if world.keep_momentum and (run.optim.name != "sgd" or run.optim.momentum == 0):
        raise UserError("keep_momentum needs a momentum to keep: set optim.name to sgd and optim.momentum above 0.")


def _check_engine(run: Run, world: Clients, algorithm: Algorithm) -> None:
    engine, ranks = engine_of(world), world.ranks
    if engine not in ("loop", "flower"):
        for name, chosen in (("compile", run.compile), ("channels_last", run.channels_last)):
            if chosen:
                field = "rank_engine" if world.engine == "torchrun" else "engine"
                raise UserError(
                    f"{name} is True, which a batched step of many clients does not have: set {field} to loop, "
                    f"not to {engine}."
                )
    if world.engine != "torchrun":
        if ranks is not None:
            raise UserError(f"ranks is {ranks}, and the engine {engine} has none: set engine to torchrun.")
        if world.rank_engine != "auto":
            raise UserError(f"rank_engine is {world.rank_engine}, which only the engine torchrun has: set engine.")
    elif ranks is not None:
        check_number(world, ranks)
    if algorithm.shares_statistics and engine in ("loop", "flower"):
        raise UserError(
            f"method {world.method} has clients exchange statistics inside a step, which the engine {engine} "
            "cannot: choose the engine cohort."
        )


def _check_aggregation(world: Clients, policy: Policy, algorithm: Algorithm) -> None:
    """Refuse an aggregation that would not see all that clients send."""
    chosen = world.aggregation
    if chosen == Clients.aggregation:
        return
    if not policy.averages:
        raise UserError(
            f"aggregation {chosen} combines what clients average, and with method {world.method} they do not average "
            f"one model: choose aggregation {Clients.aggregation}."
        )
    if (clients := world.sampled(world.count)) < 3:
        raise UserError(
            f"aggregation {chosen} holds the values of a client against those of others, and a round has {clients} "
            f"of {world.count} clients: raise participation or count, or choose aggregation {Clients.aggregation}."
        )
    if algorithm.shares_statistics:
        raise UserError(
            f"method {world.method} has clients exchange statistics inside a step, which aggregation {chosen} at the "
            f"server does not reach: choose aggregation {Clients.aggregation}, or another method."
        )
    if algorithm.sends_more:
        raise UserError(
            f"algorithm {world.algorithm} adds up what clients send beside the model, which aggregation {chosen} "
            f"does not bound: choose aggregation {Clients.aggregation}, or another algorithm."
        )


def _check_counts(world: Clients, policy: Policy, algorithm: Algorithm) -> None:
    """Refuse a run without counts that needs them."""
    if world.send_counts:
        return
    if world.weighting != "uniform":
        raise UserError(
            f"send_counts is False, and weighting {world.weighting} needs counts: set weighting to uniform."
        )
    if policy.statistics_source in ("before", "after") or algorithm.shares_statistics:
        raise UserError(
            f"send_counts is False, and method {world.method} merges moments by their counts: choose a method whose "
            "statistics are running averages, such as fedavg_pooled."
        )


def check_number(world: Clients, ranks: int) -> None:
    """Raise `UserError` for a number of ranks below 1, or above the number of clients in a round."""
    if ranks < 1:
        raise UserError(f"ranks is {ranks}: it must be at least 1.")
    clients = world.sampled(world.count)
    if ranks > clients:
        raise UserError(
            f"a round has {clients} of {world.count} clients, too few for {ranks} ranks, each of which trains at "
            f"least one: use at most {clients} ranks, or raise participation or count."
        )
