"""The ranks of a run of clients before they train: how many they are, and what they must agree on."""

from collections.abc import Callable
from hashlib import sha256

import torch

from syncnorm.config import Clients, Run
from syncnorm.environment import world_size
from syncnorm.errors import UserError
from syncnorm.federated.federation import Federation
from syncnorm.federated.validation import check_number
from syncnorm.training.ranks import agreement
from syncnorm.training.ranks.exchange import Ranks


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
    return agreement.joined()


def agreed(ranks: Ranks, run: Run, make: Callable[[], Federation]) -> Federation:
    """Return this rank's federation, once all ranks have made the same, up to the bits of the first model: every rank
    plays the server, so no exchange would mend a difference.

    Raises:
        UserError: what `make` raises on any rank; ranks that differ.
    """
    return agreement.agreed(ranks, run, make, _first_model)


def _first_model(federation: Federation) -> dict[str, str]:
    digest = sha256()
    for value in federation.models.template.state_dict().values():
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {"the first model": digest.hexdigest()[:12]}
