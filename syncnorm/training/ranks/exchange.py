"""What the ranks of a run tell each other: any objects, whose tensors travel as one block of bytes.

A round's updates are hundreds of small tensors. Sent one by one they would cost more than the training; as one block
they cost one collective, over NCCL without a copy to the host.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.waiting import waiting

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Failed:
    """An exception on a rank, in place of what the rank would have told."""

    why: str
    users: bool
    """Whether it is the user's mistake."""


@dataclass(frozen=True)
class Ranks:
    """The ranks that play a run together. Every rank calls each method equally often, and in the same order.

    device: this rank's device, on which the others' tensors arrive; those that were on a CPU arrive on the CPU.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    def gather(self, mine: T) -> list[T]:
        """Return what every rank tells, in the order of ranks."""
        if self.size == 1:
            return [mine]
        heads, rows, own = self._heads(mine)
        if len(own):
            with waiting():
                dist.all_gather(list(rows.unbind()), own)
        return [mine if rank == self.rank else self._read(heads[rank], rows[rank]) for rank in range(self.size)]

    def collect(self, mine: T) -> list[T]:
        """Return the same on rank 0, and what this rank tells alone on the others, which saves their memory."""
        if self.size == 1:
            return [mine]
        heads, rows, own = self._heads(mine, everywhere=False)
        if len(own):
            with waiting():
                dist.gather(own, list(rows.unbind()) if self.rank == 0 else None)
        if self.rank:
            return [mine]
        return [mine, *(self._read(head, row) for head, row in zip(heads[1:], rows[1:], strict=True))]

    def told(self, make: Callable[[], T]) -> T:
        """Return what rank 0 makes, on every rank."""
        if self.size == 1:
            return make()
        value = make() if self.rank == 0 else None
        words, block = _packed(value, self._transport)
        head: list[Any] = [(words, len(block))]
        with waiting():
            dist.broadcast_object_list(head)
            if head[0][1]:
                block = block if self.rank == 0 else block.new_empty(head[0][1])
                dist.broadcast(block, 0)
        return value if self.rank == 0 else self._read(head[0], block)  # type: ignore[return-value]

    def anywhere(self, mine: bool) -> bool:
        """Return whether it is so on any rank."""
        return any(self.gather(mine))

    def each(self, work: Callable[[], T]) -> list[T]:
        """Do `work` on every rank, and return what each found; an exception on any rank is raised on all.

        Raises:
            UserError: a rank's own, with its rank unless all ranks made the same.
            RuntimeError: another exception of a rank; that rank raises its own.
        """
        cause: Exception | None = None
        mine: T | Failed
        try:
            mine = work()
        except Exception as error:  # the others must learn of any error, or they would wait
            cause = error
            mine = Failed(
                str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}",
                isinstance(error, UserError),
            )
        told = self.gather(mine)
        failed = {rank: one for rank, one in enumerate(told) if isinstance(one, Failed)}
        if not failed:
            return told  # type: ignore[return-value]
        first, one = next(iter(failed.items()))
        if cause is not None and not (isinstance(mine, Failed) and mine.users):
            raise cause
        if not one.users:
            raise RuntimeError(f"rank {first} failed: {one.why}") from cause
        raise UserError(one.why if list(failed.values()) == [one] * self.size else f"rank {first}: {one.why}")

    def shared_out(self, parts: Sequence[int], work: Callable[[int], T]) -> list[T]:
        """Return the work of each part, in the order of parts: every rank does some of them, in turn."""
        mine = parts[self.rank :: self.size]
        told = self.each(lambda: {part: work(part) for part in mine})
        found = {part: answer for some in told for part, answer in some.items()}
        return [found[part] for part in parts]

    @property
    def _transport(self) -> torch.device:
        return self.device if "nccl" in dist.get_backend_config() else CPU

    def _heads(self, mine: Any, everywhere: bool = True) -> tuple[list[tuple[bytes, int]], Tensor, Tensor]:
        """Return every rank's words and number of bytes, room for all blocks, and this rank's block in that size."""
        words, block = _packed(mine, self._transport)
        heads: list[Any] = [None] * self.size
        with waiting():
            dist.all_gather_object(heads, (words, len(block)))
        longest = max(length for _, length in heads)
        own = torch.cat([block, block.new_zeros(longest - len(block))])
        rows = own.new_empty(self.size if everywhere or self.rank == 0 else 0, longest)
        return heads, rows, own

    def _read(self, head: tuple[bytes, int], block: Tensor) -> Any:
        return _Reader(head[0], block, self.device).load()


def _packed(value: Any, transport: torch.device) -> tuple[bytes, Tensor]:
    """Return an object without its tensors, and the bytes of these."""
    words = BytesIO()
    writer = _Writer(words)
    writer.dump(value)
    return words.getvalue(), _joined(writer.tensors, transport)


def _joined(tensors: Sequence[Tensor], transport: torch.device) -> Tensor:
    if not tensors:
        return torch.empty(0, dtype=torch.uint8, device=transport)
    return torch.cat([tensor.detach().contiguous().view(-1).view(torch.uint8).to(transport) for tensor in tensors])


class _Writer(pickle.Pickler):
    """Writes an object, and puts its tensors aside."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[Tensor] = []
        self._end = 0

    def persistent_id(self, item: Any) -> Any:
        if not isinstance(item, Tensor):
            return None
        begin, self._end = self._end, self._end + item.numel() * item.element_size()
        self.tensors.append(item)
        return begin, self._end, item.dtype, tuple(item.shape), item.device.type == "cpu"


class _Reader(pickle.Unpickler):
    """Reads what `_Writer` wrote; the file comes from another rank of the same launch."""

    def __init__(self, words: bytes, block: Tensor, device: torch.device) -> None:
        super().__init__(BytesIO(words))
        self._block, self._device = block, device

    def persistent_load(self, known: Any) -> Tensor:
        begin, end, dtype, shape, on_cpu = known
        # A copy: a view would keep the whole block, and its place need not suit the type.
        own = self._block[begin:end].clone().view(dtype).view(shape)
        return own.to(CPU if on_cpu else self._device)
