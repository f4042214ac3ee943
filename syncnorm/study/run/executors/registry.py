"""The executors by name.

@syncnorm.register_executor("mine")
class Mine:
    ...
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from math import isfinite
from typing import Any, TypeVar

from syncnorm.errors import UserError
from syncnorm.registry import Registry, check_named
from syncnorm.study.run.executors.executor import Executor, Wish
from syncnorm.study.run.executors.local import Local

Open = Callable[[Wish], Executor]
Made = TypeVar("Made", bound=Open)


def _ray(wish: Wish) -> Executor:
    """Nodes of a Ray cluster: ray:HOST:PORT, or ray alone for the cluster of this machine, or a new one."""
    return _lazily("ray", "ray", "ray")(wish)


def _slurm(wish: Wish) -> Executor:
    """Job arrays of Slurm, queued again at their time limit: slurm:partition=gpu,time=120,mem=8"""
    return _lazily("slurm", "submitit", "slurm")(wish)


def _lazily(name: str, package: str, extra: str) -> Open:
    """Import an executor of ours, and the package that it needs."""
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(
            f"--on {name} needs the package '{package}', which is not installed: pip install 'syncnorm[{extra}]'."
        ) from error
    opened: Open = import_module(f"syncnorm.study.run.executors.on_{name}").opened
    return opened


EXECUTORS: Registry[Open] = Registry("executor", {"local": Local, "ray": _ray, "slurm": _slurm})
"""What opens each executor; `syncnorm.register_executor` adds rows."""


def check_on(on: str, gpus_per_run: float | None = None) -> None:
    """Raise `UserError` for an unknown executor, or a share of a GPU that cannot be."""
    name = on.partition(":")[0]
    _ = EXECUTORS[name]
    if gpus_per_run is not None and not (isfinite(gpus_per_run) and 0 <= gpus_per_run <= 1):
        raise UserError(
            f"gpus_per_run is {gpus_per_run:g}: a run of one process uses at most one GPU, so write a number from 0 "
            "to 1."
        )


def open_executor(on: str, wish: Wish) -> Executor:
    """Return the executor that `on` names, such as "local" or "ray:node0:6379"; its address goes into the wish.

    Raises:
        UserError: an unknown name, a package that is missing, a place that does not answer.
    """
    check_on(on, wish.gpus_per_run)
    name, _, address = on.partition(":")
    return EXECUTORS[name](replace(wish, address=address))


def register_executor(name: str) -> Callable[[Made], Made]:
    """Register your own executor, for `syncnorm run --on NAME[:ADDRESS]`.

    A decorator for a class, or function, that takes a `Wish` and returns an `Executor`: it starts worker processes
    somewhere, and says how they ended. See `syncnorm.study.run.executors.executor`.

    Raises:
        UserError: a name that is taken; something that cannot be called.
    """
    check_named(name, "syncnorm.register_executor")

    def register(opener: Made) -> Made:
        what: Any = opener
        if not callable(what):
            raise UserError(f"executor '{name}' is {what!r}: give a class or a function that takes a Wish.")
        if isinstance(what, type):
            lacking = [part for part in ("slots", "start", "words", "close") if not hasattr(what, part)]
            if lacking:
                raise UserError(f"executor '{name}' has no method {lacking[0]}: see Executor for what it needs.")
        EXECUTORS.add(name, opener)
        return opener

    return register
