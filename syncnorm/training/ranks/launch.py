"""The ranks of a torchrun launch before they train: how many they are, and what they must agree on."""

from collections.abc import Callable
from hashlib import sha256
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from syncnorm.config import Run, run_id
from syncnorm.environment import environment, rank, version_of, world_size
from syncnorm.errors import UserError
from syncnorm.norms.core.alone import alone
from syncnorm.training.building import device_of_rank
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.worlds import fingerprints

Made = TypeVar("Made")
VERSIONS = ("python", "torch", "numpy", "commit")
"""What of the environment has to be the same on all ranks; processors may differ."""


def check_started(asked: int, otherwise: str) -> None:
    """Raise `UserError` if torchrun has started another number of processes than a run asks for."""
    started = world_size() or 1
    if asked != started:
        raise UserError(
            f"this run needs {asked} ranks and was started with {started}: use torchrun --nproc-per-node {asked}, or "
            f"{otherwise}."
        )


def join_ranks() -> Ranks:
    """Return the ranks of this launch, and join them."""
    started, device = world_size() or 1, device_of_rank()
    if started == 1:
        return Ranks(device=device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group()
    return Ranks(rank(), started, device)


def agreed(ranks: Ranks, run: Run, make: Callable[[], Made], model_of: Callable[[Made], nn.Module]) -> Made:
    """Return what `make` makes of the run on this rank, with its model, once all ranks have made the same.

    Raises:
        UserError: what `make` raises on any rank; ranks that differ in the run, in versions, in the source of what
            it names, in data, or in the first model.
    """
    if ranks.size == 1:
        return make()
    made: list[Made] = []

    def said() -> dict[str, str]:
        with alone():  # a rank that fails would leave the others waiting
            made.append(make())
        here = environment()
        versions = {name: here[name] for name in VERSIONS}
        return {
            "run": run_id(run),
            "syncnorm": version_of("syncnorm"),
            **versions,
            **fingerprints(run, samples=True),
            "the first model": _digest(model_of(made[0])),
        }

    told = ranks.each(said)
    for name in dict.fromkeys(name for one in told for name in one):
        values = [one.get(name, "none") for one in told]
        if len(set(values)) > 1:
            who = "; ".join(f"{value} on {_numbers(values, value)}" for value in dict.fromkeys(values))
            raise UserError(f"the ranks differ in {name} ({who}): give all ranks the same, then start again.")
    return made[0]


def _digest(model: nn.Module) -> str:
    """Return a hash of a model's state."""
    digest = sha256()
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _numbers(values: list[str], value: str) -> str:
    """Return the ranks that have a value: "rank 0", "ranks 1 and 2"."""
    ranks = [str(rank) for rank, own in enumerate(values) if own == value]
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(ranks[:-1])} and {ranks[-1]}"
