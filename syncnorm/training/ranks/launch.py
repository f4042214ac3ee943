"""The ranks of a torchrun launch before they train: how many they are, and what they must agree on."""

import atexit
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import wraps
from hashlib import sha256
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from syncnorm.config import Result, Run, run_id
from syncnorm.environment import environment, rank, version_of, world_size
from syncnorm.errors import UserError
from syncnorm.norms.core.ranks.alone import alone
from syncnorm.norms.core.ranks.meeting import meeting_of
from syncnorm.training.building import device_of_rank
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.worlds import fingerprints

Made = TypeVar("Made")
Fit = TypeVar("Fit", bound=Callable[..., Result])
VERSIONS = ("python", "torch", "numpy", "commit")
"""What of the environment has to be the same on all ranks; processors may differ."""


def check_started(asked: int, otherwise: str) -> None:
    """Raise `UserError` if torchrun has started another number of processes than a run asks for."""
    started = world_size() or 1
    if asked != started:
        raise UserError(
            f"this run needs {asked} rank{'s' * (asked != 1)} and was started with {started}: use torchrun "
            f"--nproc-per-node {asked}, or {otherwise}."
        )


def apart(fit: Fit) -> Fit:
    """Return `fit` in which a run of one process knows no other rank, although torch.distributed may have some.

    Virtual ranks, or clients in one process, would else share statistics with what other processes do.
    """

    @wraps(fit)
    def fitted(run: Run, *rest: Any, **named: Any) -> Result:
        engine = getattr(getattr(run, "world", None), "engine", None)  # whether it is a run is for `fit` to check
        with nullcontext() if engine == "torchrun" else alone():
            return fit(run, *rest, **named)

    return cast(Fit, fitted)


def join_ranks() -> Ranks:
    """Return the ranks of this launch, and join them; one rank without torchrun."""
    started, device = world_size() or 1, device_of_rank()
    if started == 1:
        return Ranks(device=device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group()
        atexit.register(_part)
    meeting_of(None, device)  # from now on, ranks that wait in the store notice one that is gone
    return Ranks(rank(), started, device)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def versions() -> dict[str, str]:
    """Return the versions that have to be the same on all ranks, and whether this rank has a GPU."""
    here = environment()
    found = {"syncnorm": version_of("syncnorm"), **{name: here[name] for name in VERSIONS}}
    return {**found, "kind of device": device_of_rank().type}


def agreed(ranks: Ranks, run: Run, make: Callable[[], Made], model_of: Callable[[Made], nn.Module]) -> Made:
    """Return what `make` makes of the run on this rank, with its model, once all ranks have made the same.

    Raises:
        UserError: what `make` raises on any rank; ranks that differ in the run, in versions, in the source of what
            it names, in data, or in the first model. All ranks raise it.
    """
    if ranks.size == 1:
        return make()
    made: list[Made] = []

    def said() -> dict[str, str]:
        with alone():  # a rank that fails would leave the others waiting
            made.append(make())
        contents = {**fingerprints(run, samples=True), "the first model": _digest(model_of(made[0]))}
        return {"run": run_id(run), **versions(), **contents}

    if difference := differing(ranks.each(said)):
        raise UserError(f"{difference}: give all ranks the same, then start again.")
    return made[0]


def _digest(model: nn.Module) -> str:
    """Return a hash of a model's state."""
    digest = sha256()
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def differing(told: Sequence[Mapping[str, str]]) -> str:
    """Return in words the first thing in which ranks differ, and who has what; empty if they are alike."""
    for name in dict.fromkeys(name for one in told for name in one):
        values = [one.get(name, "none") for one in told]
        if len(set(values)) > 1:
            who = "; ".join(f"{value or 'none'} on {_who_has(values, value)}" for value in dict.fromkeys(values))
            return f"the ranks differ in {name} ({who})"
    return ""


def _who_has(values: Sequence[str], value: str) -> str:
    return numbered([rank for rank, own in enumerate(values) if own == value])


def numbered(ranks: Sequence[int]) -> str:
    """Return ranks in words.

    >>> numbered([1]), numbered([0, 2, 3])
    ('rank 1', 'ranks 0, 2 and 3')
    """
    first, last = [str(rank) for rank in ranks[:-1]], ranks[-1]
    return f"ranks {', '.join(first)} and {last}" if first else f"rank {last}"
