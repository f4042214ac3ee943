"""The ranks that share a run's clients, before they train."""

from syncnorm.config import Clients
from syncnorm.environment import world_size
from syncnorm.federated.validation import check_number
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.training.ranks.launch import check_started, join_ranks


def ranks_of(world: Clients) -> Ranks:
    """Return the ranks of a run of the engine torchrun, and join them.

    Raises:
        UserError: torchrun has started another number of processes than the run asks for, or more than a round has
            clients.
    """
    if world.ranks is not None:
        check_number(world, world.ranks)
        check_started(world.ranks, "leave ranks out, which takes as many as there are")
    check_number(world, world_size() or 1)
    return join_ranks()
