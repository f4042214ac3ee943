"""Ranks that no longer run the same layers: what each says of itself, and the sentence that this makes."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, starmap

from torch import nn
from torch.nn.parallel import DistributedDataParallel

Told = Mapping[int, "Whereabouts | None"]

REMEDY = (
    "A rank that skips a layer, freezes it, has it in eval mode or is out of batches leaves the others waiting: let "
    "every rank train the same layers on the same number of batches (syncnorm.join(model) serves ranks that run out)"
)


@dataclass(frozen=True)
class Whereabouts:
    """Where a rank is: how many synchronised layers it has come to, the names of the last, what it waits in."""

    calls: int
    last: list[str]
    waits_in: str = ""

    def dumps(self) -> str:
        """Return this as a line of text."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: bytes) -> Whereabouts | None:
        """Return what `dumps` made a text of, or None for an empty one: that rank runs on."""
        return cls(**json.loads(text)) if text else None

    def at(self, call: int) -> str:
        """Return the name of the layer that was the call of this number, counted from 0."""
        return self.last[call - self.calls + len(self.last)]


def difference(told: Told) -> str:
    """Return who ran what where the ranks parted, or "" if all that is known agrees."""
    heard = {rank: here for rank, here in told.items() if here is not None}
    lost = {rank: "has not come" for rank, here in told.items() if here is None}
    first = max((here.calls - len(here.last) for here in heard.values()), default=0)
    calls = [here.calls for here in heard.values()]
    for call in range(first, min(calls, default=0)):
        ran = {rank: here.at(call) for rank, here in heard.items()}
        if len(set(ran.values())) > 1:
            return _by_rank({rank: f"ran {name}" for rank, name in ran.items()} | lost)
    if len(set(calls)) > 1:
        return _by_rank({rank: _how_far(here, max(calls)) for rank, here in heard.items()} | lost)
    if lost or len({here.waits_in for here in heard.values()}) > 1:
        return _by_rank({rank: _how_far(here, max(calls, default=0)) for rank, here in heard.items()} | lost)
    return ""


def sentence(layer: str, details: str) -> str:
    """Return what an error says of ranks that parted at a layer of this name."""
    return f"{title(layer)}: the ranks do not run the same layers ({details}). {REMEDY}."


def title(layer: str) -> str:
    """Return the start of a sentence on a layer of this name, as `names_of` gives it."""
    return f"SyncBatchNorm {layer}" if layer.startswith("'") else layer


def without_common(said: Mapping[int, str]) -> dict[int, str]:
    """Return what ranks say, without the parts between commas that all of them say; the last, a name, stays.

    >>> without_common({0: "4 channels, eps=0.1, in 'bn1'", 1: "4 channels, eps=0.2, in 'bn1'"})
    {0: "eps=0.1, in 'bn1'", 1: "eps=0.2, in 'bn1'"}
    """
    parts = {rank: text.split(", ") for rank, text in said.items()}
    common = set.intersection(*map(set, parts.values()))
    return {
        rank: ", ".join([*(part for part in own[:-1] if part not in common), own[-1]]) for rank, own in parts.items()
    }


def listed(ranks: Iterable[int]) -> str:
    """Return ranks as text.

    >>> listed([2]), listed([0, 1])
    ('rank 2', 'ranks 0, 1')
    """
    numbers = [str(rank) for rank in ranks]
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(numbers)}"


def names_of(layers: Iterable[nn.Module]) -> dict[int, str]:
    """Return {id: name} of layers, each within the largest model that holds it, in quotes; SyncBatchNorm(C) if none.

    Before the quotes stands the layer's class, unless that is SyncBatchNorm.

    This looks through all objects of the process: it is for a failure, not for a step.
    """
    asked = list(layers)
    if not asked:
        return {}
    names = {id(layer): "" for layer in asked}
    for model in _modules():
        if isinstance(model, DistributedDataParallel):
            continue
        with contextlib.suppress(Exception):  # a model that is being built or changed just now
            for name, part in model.named_modules():
                if len(name) > len(names.get(id(part), name)):
                    names[id(part)] = name
    return {id(layer): _called(layer, names[id(layer)]) for layer in asked}


def _modules() -> list[nn.Module]:
    """Return all modules of the process.

    CPython raises SystemError in a thread whose half-built tuple another one holds. So all objects are held within
    one call of C code alone, `set`; then those are asked for that refer to a class of modules.
    """
    kinds = set(map(type, chain.from_iterable(starmap(gc.get_objects, [()]))))
    modules = [kind for kind in kinds if issubclass(kind, nn.Module)]
    return [thing for thing in gc.get_referrers(*modules) if type(thing) in modules]


def _called(layer: nn.Module, name: str) -> str:
    kind = type(layer).__name__
    if not name:
        return f"{kind}({getattr(layer, 'num_features', '')})"
    return repr(name) if kind == "SyncBatchNorm" else f"{kind} {name!r}"


def _how_far(here: Whereabouts, furthest: int) -> str:
    if here.waits_in:
        return f"waits in {here.waits_in}"
    last = f", the last {here.last[-1]}" if here.last else ""
    return f"has run {here.calls} layers{last}" + (", and no more" if here.calls < furthest else "")


def _by_rank(said: Mapping[int, str]) -> str:
    ranks: dict[str, list[int]] = {}
    for rank in sorted(said):
        ranks.setdefault(said[rank], []).append(rank)
    return "; ".join(f"{listed(who)} {what if len(who) == 1 else _of_several(what)}" for what, who in ranks.items())


def _of_several(what: str) -> str:
    """Return what one rank does ("waits in ...") as what several do."""
    verb, _, rest = what.partition(" ")
    plural = {"waits": "wait", "has": "have"}.get(verb, verb)
    return f"{plural} {rest}"
