"""The ranks of a torchrun launch before they train: how many they are, and what they must agree on."""

from collections.abc import Callable
from hashlib import sha256

import torch
import torch.distributed as dist

from syncnorm.config import Clients, Run, run_id
from syncnorm.environment import environment, rank, version_of, world_size
from syncnorm.errors import UserError
from syncnorm.federated.federation import Federation
from syncnorm.federated.ranks.exchange import Ranks
from syncnorm.federated.validation import check_number
from syncnorm.training.building import device_of_rank
from syncnorm.worlds import fingerprints

VERSIONS = ("python", "torch", "numpy", "commit")
"""What of the environment has to be the same on all ranks; processors may differ."""


def ranks_of(world: Clients) -> Ranks:
    """Return the ranks of a run of the engine torchrun, and join them.

    Raises:
        UserError: torchrun has started another number of processes than the run asks for, or more than a round has
            clients.
    """
    started, asked = world_size() or 1, world.ranks
    if asked not in (None, started):
        raise UserError(
            f"this run needs {asked} ranks and was started with {started}: use torchrun --nproc-per-node {asked}, or "
            "leave ranks out, which takes as many as there are."
        )
    check_number(world, started)
    device = device_of_rank()
    if started == 1:
        return Ranks(device=device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group()
    return Ranks(rank(), started, device)


def agreed(ranks: Ranks, run: Run, make: Callable[[], Federation]) -> Federation:
    """Return this rank's federation, once all ranks have made the same.

    Raises:
        UserError: what `make` raises on any rank; ranks that differ in the run, in versions, in the source of what
            it names, in data, or in the first model.
    """
    made: list[Federation] = []

    def said() -> dict[str, str]:
        made.append(make())
        here = environment()
        versions = {name: here[name] for name in VERSIONS}
        return {"run": run_id(run), "syncnorm": version_of("syncnorm"), **versions, **_contents(run, made[0])}

    told = ranks.each(said)
    for name in dict.fromkeys(name for one in told for name in one):
        values = [one.get(name, "none") for one in told]
        if len(set(values)) > 1:
            who = "; ".join(f"{value} on {_numbers(values, value)}" for value in dict.fromkeys(values))
            raise UserError(f"the ranks differ in {name} ({who}): give all ranks the same, then start again.")
    return made[0]


def _contents(run: Run, federation: Federation) -> dict[str, str]:
    """Return hashes of what a run is made of, by what they cover."""
    digest = sha256()
    for value in federation.models.template.state_dict().values():
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {**fingerprints(run, samples=True), "the first model": digest.hexdigest()[:12]}


def _numbers(values: list[str], value: str) -> str:
    """Return the ranks that have a value: "rank 0", "ranks 1 and 2"."""
    ranks = [str(rank) for rank, own in enumerate(values) if own == value]
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(ranks[:-1])} and {ranks[-1]}"
