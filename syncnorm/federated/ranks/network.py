"""A run's clients over ranks: each rank plays its share, and every rank learns all answers.

Every rank plays the rounds of the server itself, from the same answers in the order of clients. So all ranks hold the
same global model, and a round's result does not depend on how many ranks there are: sums run over clients, in the
order in which one process would add them. Partial sums by rank would take less memory, but they would round
differently with each number of ranks, and could not serve the algorithms that need every client's update. A rank
holds the updates of a round's clients for that, as one process does.

What a client keeps between rounds is on one rank, its owner. It moves only when another rank is to train the client.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from syncnorm.federated.client.states import ClientState
from syncnorm.federated.engines.cohort import check_first_step
from syncnorm.federated.engines.engine import Engine
from syncnorm.federated.messages import Reply
from syncnorm.federated.ranks.deal import deal
from syncnorm.federated.server.network import Answer, InProcess, To
from syncnorm.federated.server.scores import Score
from syncnorm.moments import Moments
from syncnorm.training.ranks.exchange import Ranks


class OverRanks:
    """A run's clients over ranks: a `syncnorm.federated.server.network.Network`.

    own: the clients that this rank plays; its states are those of the clients that it owns.
    samples: training samples on which this rank's clients have taken steps.
    """

    def __init__(self, own: InProcess, ranks: Ranks) -> None:
        self.federation, self.own, self.ranks = own.federation, own, ranks
        self.samples = 0
        self._work: dict[int, float] = {}
        self._owners = _by_client(ranks.gather(own.states.clients()))

    @property
    def engine(self) -> Engine:
        """What trains this rank's clients."""
        return self.own.engine

    def train(self, clients: Sequence[int], to: To) -> list[Reply]:
        """Let clients train from what they receive; a client without a batch is missing, one that raises gives an
        error."""
        dealt = deal(self._expected(clients), self.ranks.size, self._owners, moving=True)
        shared = self.federation.algorithm.shares_statistics
        dealt = self._together(dealt, to) if shared else dealt
        self._move(dealt)
        mine = self._mine(dealt)
        if shared:
            told = self.ranks.gather(self._trained(mine, to))  # ranks wait for each other inside a step already
        else:
            told = self.ranks.each(lambda: self._trained(mine, to))
        # "auto" finds an engine on each rank; from now on all use the first one's.
        self.own.engine.name = next((name for name, _, _ in told if name != "auto"), "auto")
        self._owners |= _by_client([keeps for _, _, keeps in told])
        replies = {reply.client: reply for _, some, _ in told for reply in some}
        return [replies[client] for client in clients if client in replies]

    def measure(self, clients: Sequence[int], to: To) -> list[dict[str, Moments]]:
        """Gather the moments of each batch norm's inputs over each client's data, with the model it receives."""
        return self._ask(clients, lambda mine: self.own.measure(mine, to))

    def score(self, clients: Sequence[int], to: To, fallback: ClientState) -> list[Score]:
        """Evaluate what each client receives, with what it keeps, or `fallback` if it keeps nothing."""
        return self._ask(clients, lambda mine: self.own.score(mine, to, fallback))

    def validate(self, clients: Sequence[int], to: To, fallback: ClientState) -> list[tuple[float, float]]:
        """Return each client's accuracy and loss on its validation samples."""
        return self._ask(clients, lambda mine: self.own.validate(mine, to, fallback))

    def client_states(self, clients: Sequence[int]) -> dict[int, ClientState]:
        """Return what each client keeps; clients that keep nothing are left out."""
        mine = [client for client in clients if self._owners.get(client) == self.ranks.rank]
        found = _joined(self.ranks.gather(self.own.client_states(mine)))
        return {client: found[client] for client in clients if client in found}

    def shared_out(self, parts: Sequence[int], work: Callable[[int], Answer]) -> list[Answer]:
        """Return the work of the server itself that can be done in parts, in their order: a part a rank in turn."""
        return self.ranks.shared_out(parts, work)

    def remember(self) -> dict[str, Any]:
        """Return the clients' states, their owners, and the engine's name, as plain data and tensors: complete on
        rank 0."""
        mine = self.own.remember()
        clients = _joined(self.ranks.collect(mine["clients"]))
        owners = {"ranks": self.ranks.size, "owners": dict(self._owners)}
        return {**mine, "clients": dict(sorted(clients.items())), **owners}

    def recall(self, known: Mapping[str, Any]) -> None:
        """Restore the state that `remember` returned on rank 0, or one process; another number of ranks deals the
        clients anew."""
        if known.get("ranks") == self.ranks.size:
            self._owners = dict(known["owners"])
        else:
            self._owners = deal(self._expected(known["clients"]), self.ranks.size, {})
        own = {client: known["clients"][client] for client in self._mine(self._owners)}
        self.own.recall({**known, "clients": own})

    def _expected(self, clients: Iterable[int]) -> dict[int, float]:
        """Return the clients' expected work in a round, the same in every round."""
        for client in clients:
            if client not in self._work:
                self._work[client] = float(self.federation.schedule.work(client))
        return {client: self._work[client] for client in clients}

    def _mine(self, dealt: Mapping[int, int]) -> list[int]:
        """Return this rank's clients, in ascending order."""
        return sorted(client for client, rank in dealt.items() if rank == self.ranks.rank)

    def _trained(self, mine: Sequence[int], to: To) -> tuple[str, list[Reply], list[int]]:
        """Train this rank's clients; return the engine's name, the replies, and which clients keep something."""
        replies = self.own.train(mine, to) if mine else []
        self.samples += int(sum(self._expected(mine).values()))
        return self.own.engine.name, replies, [client for client in mine if self.own.states.has(client)]

    def _together(self, dealt: dict[int, int], to: To) -> dict[int, int]:
        """Return who trains whom where clients share statistics in their first step: ranks do so together if each
        has a client with a batch; otherwise rank 0 trains all.

        Raises:
            UserError: clients that cannot make their first step together; all ranks raise it.
        """
        plans = {client: self.federation.schedule.plan(client, to(client).round) for client in dealt}
        first = {client: (len(plan.batches[0]), plan.running[0]) for client, plan in plans.items() if plan.batches}
        check_first_step(set(first.values()))
        self.own.over_ranks = len({dealt[client] for client in first}) == self.ranks.size
        return dealt if self.own.over_ranks else dict.fromkeys(dealt, 0)

    def _move(self, dealt: Mapping[int, int]) -> None:
        """Move the states of clients that are to train elsewhere than at their owner."""
        moves = {client: rank for client, rank in dealt.items() if self._owners.get(client, rank) != rank}
        if not moves:
            return
        leaving = [client for client in moves if self._owners[client] == self.ranks.rank]
        found = _joined(self.ranks.gather(self.own.client_states(leaving)))
        for client in leaving:
            self.own.states.drop(client)
        for client in self._mine(moves):
            self.own.states.put(client, found[client])
        self._owners |= moves

    def _ask(self, clients: Sequence[int], ask: Callable[[list[int]], list[Answer]]) -> list[Answer]:
        """Return the clients' answers in their order; each is asked on its owner, if it has one."""
        people = self.federation.population
        work = {client: float(len(people.train(client))) for client in clients}
        mine = self._mine(deal(work, self.ranks.size, self._owners))
        found = _joined(self.ranks.each(lambda: dict(zip(mine, ask(mine), strict=True))))
        return [found[client] for client in clients]


def _by_client(by_rank: Sequence[Sequence[int]]) -> dict[int, int]:
    return {client: rank for rank, clients in enumerate(by_rank) for client in clients}


def _joined(by_rank: Sequence[Mapping[int, Answer]]) -> dict[int, Answer]:
    return {client: answer for part in by_rank for client, answer in part.items()}
