"""The combination of a run's algorithm and its policy's."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from syncnorm.config import Run
from syncnorm.federated.algorithms.base import Algorithm, Memory, ServerRound, Trained
from syncnorm.federated.messages import Tensors


class Together(Algorithm):
    """Several algorithms in one run: local terms add up, and server steps follow each other.

    Messages, kept tensors and memories are separated by prefix: "0/NAME" belongs to the first.
    """

    def __init__(self, parts: Sequence[Algorithm]) -> None:
        super().__init__()
        self.parts = {str(place): part for place, part in enumerate(parts)}
        self.shares_statistics = any(part.shares_statistics for part in parts)

    @property
    def has_local_term(self) -> bool:
        """Whether any of them has a local term."""
        return any(part.has_local_term for part in self.parts.values())

    @property
    def sends_more(self) -> bool:
        """Whether any of them lets clients send tensors beside the model."""
        return any(part.sends_more for part in self.parts.values())

    def check(self, run: Run) -> None:
        """Raise what any of them raises."""
        for part in self.parts.values():
            part.check(run)

    def local_batches(self, batches: Sequence[Tensor], smallest: Callable[[], int]) -> Sequence[Tensor]:
        """Let each change the batches in turn."""
        for part in self.parts.values():
            batches = part.local_batches(batches, smallest)
        return batches

    def client_inputs(self, message: Tensors, kept: Tensors) -> Tensors:
        """Return the inputs of all."""
        return _join({at: part.client_inputs(_of(at, message), _of(at, kept)) for at, part in self.parts.items()})

    def local_term(self, parameters: Tensors, received: Tensors, inputs: Tensors) -> Tensor:
        """Return the sum of the terms."""
        terms = [
            part.local_term(parameters, received, _of(at, inputs))
            for at, part in self.parts.items()
            if part.has_local_term
        ]
        return torch.stack(terms).sum()

    def client_result(self, trained: Trained) -> tuple[Tensors, Tensors]:
        """Return the results of all."""
        sent, kept = {}, {}
        for at, part in self.parts.items():
            own = replace(trained, message=_of(at, trained.message), inputs=_of(at, trained.inputs))
            sent[at], kept[at] = part.client_result(own)
        return _join(sent), _join(kept)

    def server_memory(self, parameters: Tensors) -> Memory:
        """Return the memories of all."""
        return {at: part.server_memory(parameters) for at, part in self.parts.items()}

    def message(self, memory: Memory) -> Tensors:
        """Return the messages of all."""
        return _join({at: part.message(memory[at]) for at, part in self.parts.items()})

    def personal_entries(self, memory: Memory, client: int) -> Tensors:
        """Return the entries of all; if several have the same entry, the last one's."""
        entries: dict[str, Tensor] = {}
        for at, part in self.parts.items():
            entries |= part.personal_entries(memory[at], client)
        return entries

    def check_result(self, memory: Memory, sent: Tensors) -> None:
        """Raise what any of them raises."""
        for at, part in self.parts.items():
            part.check_result(memory[at], _of(at, sent))

    def server_step(self, round_: ServerRound, memory: Memory) -> tuple[Tensors, Memory]:
        """Let each start from the result of the previous ones."""
        entries: dict[str, Tensor] = {}
        after = {}
        for at, part in self.parts.items():
            replies = [replace(reply, extra=_of(at, reply.extra)) for reply in round_.replies]
            own = replace(round_, replies=replies, average={**round_.average, **entries})
            moved, after[at] = part.server_step(own, memory[at])
            entries |= moved
        return entries, after

    def bytes_inside(self, statistics: Tensors) -> int:
        """Return the sum."""
        return sum(part.bytes_inside(statistics) for part in self.parts.values())


def _join(tensors: dict[str, Tensors]) -> Tensors:
    return {f"{at}/{name}": value for at, own in tensors.items() for name, value in own.items()}


def _of(at: str, tensors: Tensors) -> Tensors:
    prefix = f"{at}/"
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
