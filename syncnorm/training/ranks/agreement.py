"""The ranks of a torchrun before they train: they join, and compare what has to be the same on all."""

import atexit
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from syncnorm.config import Run, run_id
from syncnorm.environment import environment, rank, version_of, world_size
from syncnorm.errors import UserError
from syncnorm.training.building import device_of_rank
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.worlds import fingerprints

Made = TypeVar("Made")
VERSIONS = ("python", "torch", "numpy", "commit")
"""What of the environment has to be the same on all ranks; processors may differ."""


def joined() -> Ranks:
    """Return the ranks of the torchrun that started this process, and join them; one rank without torchrun."""
    started, device = world_size() or 1, device_of_rank()
    if started == 1:
        return Ranks(device=device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group()
        atexit.register(_part)
    return Ranks(rank(), started, device)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def versions() -> dict[str, str]:
    """Return the versions that have to be the same on all ranks, and whether this rank has a GPU."""
    here = environment()
    found = {"syncnorm": version_of("syncnorm"), **{name: here[name] for name in VERSIONS}}
    return {**found, "kind of device": device_of_rank().type}


def agreed(
    ranks: Ranks, run: Run, make: Callable[[], Made], further: Callable[[Made], Mapping[str, str]] = lambda made: {}
) -> Made:
    """Return what this rank makes of a run, once all ranks have made it of the same.

    They compare the run, versions, the source of what the run names, plugins' metrics, data, and `further` texts by
    what they are about.

    Raises:
        UserError: what `make` raises on any rank; ranks that differ. All ranks raise it.
    """
    made: list[Made] = []

    def said() -> dict[str, str]:
        made.append(make())
        return {"run": run_id(run), **versions(), **fingerprints(run, samples=True), **further(made[0])}

    if ranks.size == 1:
        return make()
    if difference := differing(ranks.each(said)):
        raise UserError(f"{difference}: give all ranks the same, then start again.")
    return made[0]


def entries(model: nn.Module) -> dict[str, str]:
    """Return a hash of the names, shapes and types of a model's entries, as a `further` text: a model may come from a
    package, whose source is not compared."""
    known = [f"{name} {tuple(value.shape)} {value.dtype}" for name, value in model.state_dict().items()]
    return {"the model's entries": sha256("\n".join(known).encode()).hexdigest()[:12]}


def differing(told: Sequence[Mapping[str, str]]) -> str:
    """Return in words the first thing in which ranks differ, and who has what; empty if they are alike."""
    for name in dict.fromkeys(name for one in told for name in one):
        values = [one.get(name, "none") for one in told]
        if len(set(values)) > 1:
            who = "; ".join(f"{value or 'none'} on {_numbers(values, value)}" for value in dict.fromkeys(values))
            return f"the ranks differ in {name} ({who})"
    return ""


def _numbers(values: Sequence[str], value: str) -> str:
    """Return the ranks that have a value: "rank 0", "ranks 1 and 2"."""
    return numbered([rank for rank, own in enumerate(values) if own == value])


def numbered(ranks: Sequence[int]) -> str:
    """Return ranks in words: "rank 0", "ranks 1 and 2".

    >>> numbered([0, 2, 3])
    'ranks 0, 2 and 3'
    """
    first, last = [str(rank) for rank in ranks[:-1]], ranks[-1]
    return f"ranks {', '.join(first)} and {last}" if first else f"rank {last}"
