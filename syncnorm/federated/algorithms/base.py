"""What a federated algorithm is: the few points at which it may differ from FedAvg.

A run goes round by round. Every client receives the model's shared entries and the server's `message`, trains on its
data loss plus `local_term`, and sends its entries and its `client_result`. The server combines the entries into an
average, and `server_step` makes the next model of it. FedAvg leaves every hook as it is here.

    from syncnorm.federated import AT_LEAST_0, Algorithm, Option

    @syncnorm.register_algorithm("l1")
    class L1(Algorithm):
        \"\"\"Pull the parameters to what was received by their absolute difference.\"\"\"

        OPTIONS = {"mu": Option(0.01, AT_LEAST_0)}

        def local_term(self, parameters, received, inputs):
            return self.options["mu"] * sum((parameters[name] - received[name]).abs().sum() for name in parameters)

An algorithm keeps nothing in itself but its options: what the server remembers is passed in and returned, so that a
run resumes from a checkpoint and any process can play any client.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

from torch import Tensor

from syncnorm.config import Run
from syncnorm.errors import UserError, unknown
from syncnorm.federated.messages import Reply, Tensors

Memory = Mapping[str, Any]
"""What a server remembers between rounds: tensors and plain data, nested in dicts, for a checkpoint to hold."""


@dataclass(frozen=True)
class Range:
    """Numbers that an option may be, and how a sentence says so."""

    rule: str
    holds: Callable[[float], bool]


AT_LEAST_0 = Range("at least 0", lambda number: 0 <= number < inf)
ABOVE_0 = Range("above 0", lambda number: 0 < number < inf)
BELOW_1 = Range("from 0 to below 1", lambda number: 0 <= number < 1)
FROM_0_TO_1 = Range("from 0 to 1", lambda number: 0 <= number <= 1)


@dataclass(frozen=True)
class Option:
    """An option of an algorithm: its default, which says whether it is a number or a switch, and its range."""

    default: float | bool
    range: Range = AT_LEAST_0


@dataclass(frozen=True)
class Trained:
    """What one client knows after its local steps. Parameters are those that the server averages, by name."""

    before: Tensors
    """Parameters that it received."""
    after: Tensors
    """The same parameters after training."""
    steps: int
    """Local steps that it made."""
    lr: float
    """Their learning rate."""
    message: Tensors
    """What the server sent beside the model."""
    inputs: Tensors
    """What `client_inputs` returned before training."""


@dataclass(frozen=True)
class ServerRound:
    """What the server knows once the replies of a round are in; K of them can be used."""

    state: Tensors
    """Entries of the global model with which the round started."""
    average: Tensors
    """Entries of the clients' average: what FedAvg's next model is."""
    shared: Sequence[str]
    """Names of the trained parameters that the server averages, sorted."""
    personal: Sequence[str]
    """Names of the entries that a policy leaves to `server_step` to average for each client."""
    layers: Sequence[str]
    """Names of the batch norms."""
    replies: Sequence[Reply]
    """The usable replies, by client in ascending order."""
    weights: Tensor
    """Their weights in the average, float64 (K,), which sum to 1."""
    clients: int
    """Number of clients that train in the run, sampled or not."""


class Algorithm:
    """FedAvg, with hooks at the points where other algorithms differ from it.

    Tensors are by name. "Parameters" always are the trained parameters that the server averages; what a policy keeps
    at home is none of an algorithm's business. An algorithm works on every engine: `loop` calls `local_term` for one
    client, `cohort` under `torch.vmap` for many, and Flower sends what the hooks return.

    Args:
        options: values in place of the defaults in `OPTIONS`, which were checked (`algorithm_options`).
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    """Options by name."""
    needs_average: ClassVar[bool] = True
    """Whether it corrects the clients' average, and so needs a method whose clients average one model."""
    shares_statistics: bool = False
    """Whether the batch norms of all clients share batch statistics in the first local step of a round."""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = {name: option.default for name, option in self.OPTIONS.items()} | dict(options or {})

    def check(self, run: Run) -> None:
        """Raise `UserError` where something in `run` does not go together with this algorithm."""

    # -- the client

    @property
    def has_local_term(self) -> bool:
        """Whether the local objective has a further term."""
        return type(self).local_term is not Algorithm.local_term

    def local_batches(self, batches: Sequence[Tensor], smallest: Callable[[], int]) -> Sequence[Tensor]:
        """Return the batches of a client's local steps, indices into the pool, one tensor a step.

        `smallest()` is the number of samples of the smallest client of the round that has a batch.
        """
        return batches

    def client_inputs(self, message: Tensors, kept: Tensors) -> Tensors:
        """Return what the client's local term reads beside the parameters: the same names for every client.

        `message` came from the server, `kept` is what `client_result` kept last; empty the first time.
        """
        return {}

    def local_term(self, parameters: Tensors, received: Tensors, inputs: Tensors) -> Tensor:
        """Return what is added to one client's mean data loss at each step, 0-d and differentiable.

        `parameters` are the current ones, `received` their values before training; both sorted by name.
        """
        raise NotImplementedError

    def client_result(self, trained: Trained) -> tuple[Tensors, Tensors]:
        """Return what the client sends beside its entries, and what it keeps for its next round."""
        return {}, {}

    # -- the server

    def server_memory(self, parameters: Tensors) -> Memory:
        """Return what the server remembers before the first round, given the first model's parameters."""
        return {}

    def message(self, memory: Memory) -> Tensors:
        """Return what the server sends to every client beside the model."""
        return {}

    def personal_entries(self, memory: Memory, client: int) -> Tensors:
        """Return entries of the model that this client receives in place of the global model's."""
        return {}

    def check_result(self, memory: Memory, sent: Tensors) -> None:
        """Raise `ValueError` where what a client sent beside its entries is of no use; it is then left out."""
        for name, value in sent.items():
            if not value.isfinite().all():
                raise ValueError(f"'{name}' of its algorithm has values that are not finite.")

    def server_step(self, round_: ServerRound, memory: Memory) -> tuple[Tensors, Memory]:
        """Return the next model's entries that differ from `round_.average`, and what is remembered from now on."""
        return {}, memory

    def bytes_inside(self, statistics: Tensors) -> int:
        """Return the bytes that a client sends, and receives, inside the local steps of a round.

        `statistics` are the running statistics that the server owns.
        """
        return 0


def algorithm_options(name: str, kind: type[Algorithm], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return an algorithm's options, those `given` in place of the defaults.

    Raises:
        UserError: an option that the algorithm does not have, or a value of the wrong type or out of range.
    """
    known = kind.OPTIONS
    for option, value in given.items():
        if not known:
            raise UserError(f"the algorithm {name} takes no options: leave out '{option}'.")
        if option not in known:
            raise unknown(f"option of the algorithm {name}", option, known)
        switch = isinstance(known[option].default, bool)
        if switch != isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(
                f"option {option} of the algorithm {name} is {value!r}: it must be "
                f"{'true or false' if switch else 'a number'}."
            )
        if not switch and not known[option].range.holds(value):
            raise UserError(
                f"option {option} of the algorithm {name} is {value!r}: it must be {known[option].range.rule}."
            )
    return {option: known[option].default for option in known} | dict(given)
