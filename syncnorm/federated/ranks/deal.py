"""Who works for whom: clients dealt to ranks by expected work, longest first."""

from collections.abc import Mapping


def deal(work: Mapping[int, float], ranks: int, owners: Mapping[int, int], moving: bool = False) -> dict[int, int]:
    """Return each client's rank: the client with most work first, to the rank with least work so far (LPT).

    No rank then has more than 4/3 - 1/(3 ranks) times the work of the longest rank of the best deal (Graham, 1969).
    Of ranks with equal work, the client's owner comes first, so that states move only where that evens out the work.
    Without `moving`, a client with an owner stays there, and the others even out.

    Args:
        work: expected work by client, in any unit.
        ranks: number of ranks.
        owners: rank that keeps a client's state, by client; clients without a state have none.
        moving: whether a client may leave its owner.
    """
    dealt = {} if moving else {client: owners[client] for client in work if client in owners}
    loads = [0.0] * ranks
    for client, rank in dealt.items():
        loads[rank] += work[client]
    for client in sorted(work.keys() - dealt.keys(), key=lambda client: (-work[client], client)):
        own = owners.get(client)
        rank = min(range(ranks), key=lambda rank: (loads[rank], rank != own, rank))
        dealt[client] = rank
        loads[rank] += work[client]
    return dealt
