"""The table of checks. A check is one function, which yields findings, and one row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from syncnorm.errors import UserError, unknown
from syncnorm.registry import Registry, check_named

if TYPE_CHECKING:
    from syncnorm.doctor.case import Case
    from syncnorm.doctor.finding import Finding

Need = Literal["model", "input", "batch_size", "ranks", "accumulate", "optimizer", "policy", "deploy"]
CheckFunction = Callable[["Case"], Iterable["Finding"]]

NEEDS: dict[str, str] = {
    "model": "it needs the model, and a checkpoint holds its numbers alone",
    "input": "give an input, or its shape",
    "batch_size": "give batch_size",
    "ranks": "give batch_size, and a world_size above 1",
    "accumulate": "give batch_size, and accumulate above 1",
    "optimizer": "give the optimizer",
    "policy": "give a federated policy",
    "deploy": "ask for it with deploy=True",
}
"""What a check can need, and what to say where that is missing."""


@dataclass(frozen=True)
class Check:
    """A row of the table: the function, and what it needs of the `Case`."""

    function: CheckFunction
    needs: tuple[Need, ...] = ()

    @property
    def summary(self) -> str:
        """The first sentence of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n\n")[0].replace("\n", " ").rstrip(".")


CHECKS: Registry[Check] = Registry("check", {})
"""The checks by name."""


def register_check(name: str, *, needs: tuple[Need, ...] = ()) -> Callable[[CheckFunction], CheckFunction]:
    """Register a function as the check `name`: it takes a `Case` and yields a `Finding` for each thing that it finds.

        @syncnorm.register_check("wide_eps")
        def wide_eps(case):
            for name, layer in case.batch_norms.items():
                if layer.eps > 0.01:
                    yield Finding(name, f"eps is {layer.eps}", "write eps=1e-5")

    `needs` names what the check cannot do without: "input" (a batch or a shape), "batch_size", "ranks", "optimizer",
    ... (`NEEDS`). Where that is missing, the check is listed as skipped, with the reason.

    Raises:
        UserError: a name that is taken or invalid, an unknown need, or something that cannot be called.
    """
    check_named(name, "register_check")
    for need in needs:
        if need not in NEEDS:
            raise unknown("need of a check", str(need), NEEDS)

    def register(function: CheckFunction) -> CheckFunction:
        if not callable(function):
            raise UserError(f"check '{name}' is {function!r}: give a function of a case that yields findings.")
        CHECKS.add(name, Check(function, tuple(needs)))
        return function

    return register
