"""What a row of the table of checks says: the function, and what it needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from syncnorm.doctor.finding import Finding

Need = Literal[
    "model",
    "input",
    "batch_size",
    "ranks",
    "accumulate",
    "optimizer",
    "policy",
    "deploy",
    "shards",
    "mixup",
    "cutmix",
    "padded",
]
CheckFunction = Callable[[Any], Iterable[Finding]]
"""Takes a `Case`."""

NEEDS: dict[str, str] = {
    "model": "it needs the model, and a checkpoint holds its numbers alone",
    "input": "give an input, or its shape",
    "batch_size": "give batch_size",
    "ranks": "give batch_size, and a world_size above 1",
    "accumulate": "give batch_size, and accumulate above 1",
    "optimizer": "give the optimizer",
    "policy": "give a federated policy",
    "deploy": "ask for it with deploy=True",
    "shards": "give the labels or inputs of each rank as shards",
    "mixup": "give the alpha of MixUp, if you use it",
    "cutmix": "give the alpha of CutMix, if you use it",
    "padded": "give the dimension along which samples are padded, if they are",
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
