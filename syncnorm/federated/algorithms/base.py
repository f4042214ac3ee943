"""The base of federated algorithms: hooks at the points where they differ from FedAvg.

In each round, every client receives the model's shared entries and the server's `message`, trains on its data loss
plus `local_term`, and sends its entries and its `client_result`. The server averages the entries, and `server_step`
computes the next model from the average. FedAvg uses the default of every hook.

    from syncnorm.federated import AT_LEAST_0, Algorithm, Option

    @syncnorm.register_algorithm("l1")
    class L1(Algorithm):
        \"\"\"Penalise the absolute difference between the parameters and the received ones.\"\"\"

        OPTIONS = {"mu": Option(0.01, AT_LEAST_0)}

        def local_term(self, parameters, received, inputs):
            return self.options["mu"] * sum((parameters[name] - received[name]).abs().sum() for name in parameters)

An algorithm object stores only its options. The server's memory is passed in and returned, so that a run can resume
from a checkpoint and any process can play any client.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from syncnorm.config import Run
from syncnorm.federated.messages import Reply, Tensors
from syncnorm.federated.options import Option

Memory = Mapping[str, Any]
"""The server's memory between rounds: tensors and plain data in nested dicts, as checkpoints store it."""


@dataclass(frozen=True)
class Trained:
    """A client's data after its local steps. Parameters are those that the server averages, by name."""

    before: Tensors
    """The received parameters."""
    after: Tensors
    """The same parameters after training."""
    steps: int
    """Number of local steps."""
    lr: float
    """Their learning rate."""
    message: Tensors
    """The server's additional tensors."""
    inputs: Tensors
    """The return value of `client_inputs` before training."""


@dataclass(frozen=True)
class ServerRound:
    """The server's data after a round, with K usable replies."""

    state: Tensors
    """Entries of the global model at the start of the round."""
    average: Tensors
    """Entries of the clients' average, which is FedAvg's next model."""
    shared: Sequence[str]
    """Names of the trained parameters that the server averages, sorted."""
    personal: Sequence[str]
    """Names of the entries that `server_step` averages separately for each client."""
    layers: Sequence[str]
    """Names of the batch norms."""
    replies: Sequence[Reply]
    """The usable replies, in ascending order of clients."""
    weights: Tensor
    """Their weights in the average, float64 (K,), sum 1."""
    clients: int
    """Number of clients that train in the run, sampled or not."""


class Algorithm:
    """FedAvg, with hooks for other algorithms.

    Tensors are by name. "Parameters" are always the trained parameters that the server averages; algorithms do not
    see entries that a policy keeps with clients. An algorithm works with every engine: `loop` calls `local_term` for
    one client, `cohort` under `torch.vmap` for many, and Flower sends what the hooks return.

    Args:
        options: checked values that override the defaults in `OPTIONS` (`checked_options`).
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {}
    """Options by name."""
    needs_average: ClassVar[bool] = True
    """Whether it corrects the clients' average, so that it needs a method whose clients average one model."""
    shares_statistics: bool = False
    """Whether the batch norms of all clients share batch statistics in the first local step of a round."""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = {name: option.default for name, option in self.OPTIONS.items()} | dict(options or {})

    def check(self, run: Run) -> None:
        """Raise `UserError` if `run` is not compatible with this algorithm."""

    # -- the client

    @property
    def has_local_term(self) -> bool:
        """Whether the local objective has an additional term."""
        return type(self).local_term is not Algorithm.local_term

    @property
    def sends_more(self) -> bool:
        """Whether clients send tensors beside the model."""
        return type(self).client_result is not Algorithm.client_result

    def local_batches(self, batches: Sequence[Tensor], smallest: Callable[[], int]) -> Sequence[Tensor]:
        """Return the batches of a client's local steps: indices into the pool, one tensor per step.

        `smallest()` is the number of samples of the smallest client in the round that has a batch.
        """
        return batches

    def client_inputs(self, message: Tensors, kept: Tensors) -> Tensors:
        """Return further inputs of the client's local term, with the same names for every client.

        `message` comes from the server; `kept` is what `client_result` kept last, empty at first.
        """
        return {}

    def local_term(self, parameters: Tensors, received: Tensors, inputs: Tensors) -> Tensor:
        """Return the term added to one client's mean data loss at each step, 0-d and differentiable.

        `parameters` are the current ones, `received` their values before training; both sorted by name.
        """
        raise NotImplementedError

    def client_result(self, trained: Trained) -> tuple[Tensors, Tensors]:
        """Return the client's additional tensors for the server, and what it keeps for its next round."""
        return {}, {}

    # -- the server

    def server_memory(self, parameters: Tensors) -> Memory:
        """Return the server's initial memory, given the initial model's parameters."""
        return {}

    def message(self, memory: Memory) -> Tensors:
        """Return the server's additional tensors for every client."""
        return {}

    def personal_entries(self, memory: Memory, client: int) -> Tensors:
        """Return model entries that this client receives instead of the global model's."""
        return {}

    def check_result(self, memory: Memory, sent: Tensors) -> None:
        """Raise `ValueError` if a client's additional tensors are unusable; the client is then left out."""
        for name, value in sent.items():
            if not value.isfinite().all():
                raise ValueError(f"'{name}' of its algorithm has values that are not finite.")

    def server_step(self, round_: ServerRound, memory: Memory) -> tuple[Tensors, Memory]:
        """Return the next model's entries that differ from `round_.average`, and the new memory."""
        return {}, memory

    def bytes_inside(self, statistics: Tensors) -> int:
        """Return the bytes that a client sends, and receives, inside the local steps of a round.

        `statistics` are the running statistics that the server owns.
        """
        return 0


def as_real(value: Tensor) -> Tensor:
    """Return the coordinates that a gradient step sees: of a complex tensor its parts (..., 2), else the tensor."""
    return torch.view_as_real(value) if value.is_complex() else value
