"""Checks of a run of clients: each mistake gets its sentence before anything starts."""

from syncnorm.config import Clients, Run
from syncnorm.errors import UserError
from syncnorm.federated.algorithms import ALGORITHMS, algorithm_of
from syncnorm.federated.policies import POLICIES, policy_named, policy_options
from syncnorm.norms import norm_spec
from syncnorm.training.building import check_optim
from syncnorm.worlds import expect


def check_clients(run: Run) -> None:
    """Raise `UserError` for anything in a run of clients that is out of range, unknown, or does not go together."""
    world = expect(run, Clients)
    check_optim(run.optim)
    _check_numbers(world)
    policy_options(world.method, world.method_options)
    algorithm_of(world)
    _check_norm(run, world)
    _check_algorithm(run, world)
    _check_engine(world)


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


def _check_norm(run: Run, world: Clients) -> None:
    method, norm = world.method, run.norm.name
    policy = policy_named(method)
    if norm_spec(norm).over_ranks:
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


def _check_algorithm(run: Run, world: Clients) -> None:
    method, algorithm = world.method, world.algorithm
    averages = policy_named(method).rest == "shared" and method != "centralised"
    if ALGORITHMS[algorithm].needs_average and not averages:
        raise UserError(
            f"algorithm {algorithm} corrects what clients average, and with method {method} they do not average one "
            f"model: choose algorithm {Clients.algorithm}."
        )
    algorithm_of(world).check(run)
    if world.keep_momentum and (run.optim.name != "sgd" or run.optim.momentum == 0):
        raise UserError("keep_momentum needs a momentum to keep: set optim.name to sgd and optim.momentum above 0.")


def _check_engine(world: Clients) -> None:
    if algorithm_of(world).shares_statistics and world.engine in ("loop", "flower"):
        raise UserError(
            f"method {world.method} has clients exchange statistics inside a step, which the engine {world.engine} "
            "cannot: choose the engine cohort."
        )
