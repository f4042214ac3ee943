"""States that clients keep between rounds, in memory or memory-mapped on disk; only sampled clients have one."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from syncnorm.errors import UserError

ClientState = dict[str, Tensor]
"""The state that one client keeps between rounds."""


class ClientStates(Protocol):
    """A store of client states."""

    def get(self, client: int) -> ClientState | None:
        """Return a client's stored state; None if it never stored any."""

    def put(self, client: int, state: Mapping[str, Tensor]) -> None:
        """Store a client's state, replacing the old one."""

    def drop(self, client: int) -> None:
        """Forget a client's state."""

    def has(self, client: int) -> bool:
        """Return whether a client has a stored state."""

    def clients(self) -> list[int]:
        """Return the clients with a stored state, in ascending order."""


class InMemory:
    """Client states in a dict."""

    def __init__(self) -> None:
        self._kept: dict[int, ClientState] = {}

    def get(self, client: int) -> ClientState | None:
        """Return a client's stored state; None if it never stored any."""
        return self._kept.get(client)

    def put(self, client: int, state: Mapping[str, Tensor]) -> None:
        """Store a client's state, replacing the old one."""
        # The batched engine returns slices, and a slice would keep its whole stack in memory.
        self._kept[client] = {name: value.clone() for name, value in state.items()}

    def drop(self, client: int) -> None:
        """Forget a client's state."""
        self._kept.pop(client, None)

    def has(self, client: int) -> bool:
        """Return whether a client has a stored state."""
        return client in self._kept

    def clients(self) -> list[int]:
        """Return the clients with a stored state, in ascending order."""
        return sorted(self._kept)


class OnDisk:
    """Client states in one sparse, memory-mapped file: a record of equal size for each of `count` clients.

    All states must have the names, shapes and types of the first one. Only written records take memory or disk.
    The file is in a new folder under `folder` (None: the system's temporary one), which is deleted with the store.
    Tensors come back on `device`.

    Raises:
        UserError: a state with another layout than the first.
    """

    def __init__(self, count: int, folder: Path | None = None, device: torch.device | str = "cpu") -> None:
        self._count, self._device = count, device
        self._folder = TemporaryDirectory(prefix="syncnorm-clients-", dir=folder)
        self._has = np.zeros(count, dtype=bool)
        self._layout: dict[str, tuple[torch.Size, torch.dtype, slice]] = {}
        self._records: np.memmap[tuple[int, int], np.dtype[np.uint8]] | None = None

    def get(self, client: int) -> ClientState | None:
        """Return a client's stored state; None if it never stored any."""
        if not self._has[client]:
            return None
        assert self._records is not None
        record = torch.from_numpy(np.array(self._records[client]))
        return {
            name: record[place].view(dtype).reshape(shape).clone().to(self._device)
            for name, (shape, dtype, place) in self._layout.items()
        }

    def put(self, client: int, state: Mapping[str, Tensor]) -> None:
        """Store a client's state, replacing the old one."""
        if self._records is None:
            self._open(state)
        assert self._records is not None
        layout = {name: (shape, dtype) for name, (shape, dtype, _) in self._layout.items()}
        if {name: (value.shape, value.dtype) for name, value in state.items()} != layout:
            raise UserError(
                f"client {client} keeps tensors of other names, shapes or types than the first that was stored: let "
                "the algorithm's client_result keep the same for every client and round."
            )
        for name, (_, _, place) in self._layout.items():
            self._records[client, place] = state[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        self._has[client] = True

    def drop(self, client: int) -> None:
        """Forget a client's state; its record is overwritten when the client stores the next one."""
        self._has[client] = False

    def has(self, client: int) -> bool:
        """Return whether a client has a stored state."""
        return bool(self._has[client])

    def clients(self) -> list[int]:
        """Return the clients with a stored state, in ascending order."""
        found: list[int] = np.flatnonzero(self._has).tolist()
        return found

    def _open(self, state: Mapping[str, Tensor]) -> None:
        end = 0
        for name, value in state.items():
            start = -(-end // value.element_size()) * value.element_size()  # views need aligned places
            end = start + value.numel() * value.element_size()
            self._layout[name] = (value.shape, value.dtype, slice(start, end))
        size = max(-(-end // 8) * 8, 8)
        path = Path(self._folder.name) / "states"
        self._records = np.memmap(path, dtype=np.uint8, mode="w+", shape=(self._count, size))


def kept_by(states: ClientStates) -> Iterator[tuple[int, ClientState]]:
    """Yield every client with a stored state, and that state."""
    for client in states.clients():
        state = states.get(client)
        assert state is not None
        yield client, state
