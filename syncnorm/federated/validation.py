"""What a run of the clients world must not be: each of a user's mistakes gets its sentence before anything starts."""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from syncnorm.checks import check_types
from syncnorm.config import Clients, Optim, Run
from syncnorm.errors import UserError, unknown
from syncnorm.federated.policies import policy_named, policy_options
from syncnorm.norms import norm_options
from syncnorm.training.building import check_training

ALGORITHMS: dict[str, Mapping[str, Any]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.01, "squared": True},
    "scaffold": {},
    "fedadam": {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    "fedavgm": {"lr": 1.0, "momentum": 0.9},
}
"""Options of the algorithms, with their defaults: those of arXiv 1812.06127 and 2003.00295."""


_LIMITS: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(("lr", "tau"), (lambda number: 0 < number < inf, "above 0")),
    **dict.fromkeys(("momentum", "beta1", "beta2"), (lambda number: 0 <= number < 1, "from 0 to below 1")),
}


def check_run(run: Run) -> None:
    """Raise the `UserError` of whatever in a run of clients is out of range, unknown, or does not go together."""
    world = run.world
    assert isinstance(world, Clients)
    check_types(run)
    check_training(run)
    _check_training_options(run)
    _check_numbers(world)
    policy_options(world.method, world.method_options)
    algorithm_options(world)
    _check_norm(run)
    _check_algorithm(run, world)
    _check_engine(world)


def _check_training_options(run: Run) -> None:
    """Clients train by loops of their own, which know no more of a trainer than they need."""
    if run.precision not in ("float32", "float64"):
        raise UserError(f"clients cannot train in precision {run.precision}: choose float32 or float64.")
    plain = Optim()
    for name, value, off in (
        ("optim.clip_norm", run.optim.clip_norm, plain.clip_norm),
        ("optim.accumulate", run.optim.accumulate, plain.accumulate),
        ("compile", run.compile, False),
    ):
        if value != off:
            instead = "; world.clip is their gradient clipping" if name == "optim.clip_norm" else ""
            raise UserError(f"{name} is {value}, which clients do not have: leave it at {off}{instead}.")


def algorithm_options(world: Clients) -> dict[str, Any]:
    """Return the options of a run's algorithm, those given in place of the defaults; others raise `UserError`."""
    known = ALGORITHMS[world.algorithm]
    for option, value in world.algorithm_options.items():
        if not known:
            raise UserError(f"the algorithm {world.algorithm} takes no options: leave out '{option}'.")
        if option not in known:
            raise unknown(f"option of the algorithm {world.algorithm}", option, known)
        if isinstance(known[option], bool) != isinstance(value, bool) or not isinstance(value, int | float):
            kind = "true or false" if isinstance(known[option], bool) else "a number"
            raise UserError(f"option {option} of the algorithm {world.algorithm} is {value!r}: it must be {kind}.")
        holds, rule = _LIMITS.get(option, (lambda number: 0 <= number < inf, "at least 0"))
        if not holds(value):
            raise UserError(f"option {option} of the algorithm {world.algorithm} is {value!r}: it must be {rule}.")
    return {**known, **world.algorithm_options}


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


def _check_norm(run: Run) -> None:
    assert isinstance(run.world, Clients)
    method, norm = run.world.method, run.norm.name
    norm_options(norm)
    policy = policy_named(method)
    if norm == "sync_bn":
        raise UserError(
            "norm sync_bn synchronises ranks, and clients are none: choose bn, with the method fedtan if clients are "
            "to share batch statistics while they train."
        )
    if norm == "ghost_bn" and policy.training != "batch":
        raise UserError(f"method {method} puts its own layer in place of batch norm: choose norm bn, not ghost_bn.")
    if norm in ("frozen_bn", "reference_bn", "hybrid_bn") and (policy.training != "batch" or norm != "frozen_bn"):
        raise UserError(
            f"norm {norm} is the layer of a method, which method {method} does not call for: choose norm bn with one "
            "of the methods fixbn, fbn, hbn."
        )


def _check_algorithm(run: Run, world: Clients) -> None:
    method, algorithm = world.method, world.algorithm
    if algorithm != "fedavg" and (policy_named(method).rest != "shared" or method == "centralised"):
        raise UserError(
            f"algorithm {algorithm} corrects what clients average, and with method {method} they do not average one "
            "model: choose algorithm fedavg."
        )
    plain = run.optim.name == "sgd" and run.optim.momentum == 0
    if algorithm == "scaffold" and not plain:
        raise UserError(
            "scaffold derives its controls from the path of plain SGD: set optim.name to sgd and optim.momentum to 0."
        )
    if algorithm == "scaffold" and world.clip:
        raise UserError("scaffold derives its controls from the path of plain SGD: set clip to 0.")
    if world.keep_momentum and (run.optim.name != "sgd" or run.optim.momentum == 0):
        raise UserError("keep_momentum needs a momentum to keep: set optim.name to sgd and optim.momentum above 0.")


def _check_engine(world: Clients) -> None:
    if policy_named(world.method).training == "synchronised" and world.engine in ("loop", "flower"):
        raise UserError(
            f"method {world.method} has clients exchange statistics inside a step, which the engine {world.engine} "
            "cannot: choose the engine cohort."
        )
