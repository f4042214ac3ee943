"""What clients keep between rounds: in memory, or memory-mapped on disk, for the clients that were sampled alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Own = dict[str, Tensor]


class ClientStates(Protocol):
    """A store of what clients keep, by client."""

    def get(self, client: int) -> Own | None:
        """Return what a client kept last; None where it never kept anything."""

    def put(self, client: int, own: Mapping[str, Tensor]) -> None:
        """Keep something for a client, in the place of what it kept before."""

    def clients(self) -> list[int]:
        """Return the clients that have kept something, in ascending order."""


class InMemory:
    """Client states in a dict."""

    def __init__(self) -> None:
        self._kept: dict[int, Own] = {}

    def get(self, client: int) -> Own | None:
        """Return what a client kept last; None where it never kept anything."""
        return self._kept.get(client)

    def put(self, client: int, own: Mapping[str, Tensor]) -> None:
        """Keep something for a client, in the place of what it kept before."""
        # Of a batched step this would be a slice, and a slice keeps all of its stack.
        self._kept[client] = {name: value.clone() for name, value in own.items()}

    def clients(self) -> list[int]:
        """Return the clients that have kept something, in ascending order."""
        return sorted(self._kept)


class OnDisk:
    """Client states in one sparse, memory-mapped file: a record of equal size for each of `count` clients.

    The names, shapes and types of all are those of the first that is put. Only records that are read or written take
    memory or disk. The file lies in a folder of its own under `folder` (the system's for temporary files, if None)
    and is gone with the store. Tensors come back on `device`.
    """

    def __init__(self, count: int, folder: Path | None = None, device: torch.device | str = "cpu") -> None:
        self._count, self._device = count, device
        self._folder = TemporaryDirectory(prefix="syncnorm-clients-", dir=folder)
        self._has = np.zeros(count, dtype=bool)
        self._layout: dict[str, tuple[torch.Size, torch.dtype, slice]] = {}
        self._records: np.memmap[tuple[int, int], np.dtype[np.uint8]] | None = None

    def get(self, client: int) -> Own | None:
        """Return what a client kept last; None where it never kept anything."""
        if not self._has[client]:
            return None
        assert self._records is not None
        record = torch.from_numpy(np.array(self._records[client]))
        return {
            name: record[place].view(dtype).reshape(shape).clone().to(self._device)
            for name, (shape, dtype, place) in self._layout.items()
        }

    def put(self, client: int, own: Mapping[str, Tensor]) -> None:
        """Keep something for a client, in the place of what it kept before."""
        if self._records is None:
            self._open(own)
        assert self._records is not None
        layout = {name: (shape, dtype) for name, (shape, dtype, _) in self._layout.items()}
        assert {name: (value.shape, value.dtype) for name, value in own.items()} == layout
        for name, (_, _, place) in self._layout.items():
            self._records[client, place] = own[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        self._has[client] = True

    def clients(self) -> list[int]:
        """Return the clients that have kept something, in ascending order."""
        found: list[int] = np.flatnonzero(self._has).tolist()
        return found

    def _open(self, own: Mapping[str, Tensor]) -> None:
        end = 0
        for name, value in own.items():
            start = -(-end // value.element_size()) * value.element_size()  # views need aligned places
            end = start + value.numel() * value.element_size()
            self._layout[name] = (value.shape, value.dtype, slice(start, end))
        size = max(-(-end // 8) * 8, 8)
        path = Path(self._folder.name) / "states"
        self._records = np.memmap(path, dtype=np.uint8, mode="w+", shape=(self._count, size))


def kept_by(states: ClientStates) -> Iterator[tuple[int, Own]]:
    """Yield every client that has kept something, with what it kept."""
    for client in states.clients():
        own = states.get(client)
        assert own is not None
        yield client, own
