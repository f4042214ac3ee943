"""States that clients keep between rounds, in memory or on disk; only sampled clients have one."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
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
    """Client states in one sparse file: a record of equal size for each of `count` clients.

    All states must have the names, shapes and types of the first one. Only written records take memory or disk.
    The file is under `folder` (None: the system's temporary one) and has no name, so it is gone when its process
    ends, however it ends. Tensors come back on `device`.

    Raises:
        UserError: a state with another layout than the first; a full disk, or a folder that cannot be written.
    """

    def __init__(self, count: int, folder: Path | None = None, device: torch.device | str = "cpu") -> None:
        self._device, self._size = device, 0
        self._has = np.zeros(count, dtype=bool)
        self._layout: dict[str, tuple[torch.Size, torch.dtype, slice]] = {}
        self._folder = str(folder or gettempdir())
        try:
            self._file = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._full(error) from error

    def get(self, client: int) -> ClientState | None:
        """Return a client's stored state; None if it never stored any."""
        if not self._has[client]:
            return None
        record = torch.frombuffer(
            bytearray(os.pread(self._file.fileno(), self._size, client * self._size)), dtype=torch.uint8
        )
        return {
            name: record[place].view(dtype).reshape(shape).clone().to(self._device)
            for name, (shape, dtype, place) in self._layout.items()
        }

    def put(self, client: int, state: Mapping[str, Tensor]) -> None:
        """Store a client's state, replacing the old one."""
        if not self._size:
            self._open(state)
        layout = {name: (shape, dtype) for name, (shape, dtype, _) in self._layout.items()}
        if {name: (value.shape, value.dtype) for name, value in state.items()} != layout:
            raise UserError(
                f"client {client} keeps tensors of other names, shapes or types than the first that was stored: let "
                "the algorithm's client_result keep the same for every client and round."
            )
        record = np.zeros(self._size, dtype=np.uint8)
        for name, (_, _, place) in self._layout.items():
            record[place] = state[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        left, at = record.data, client * self._size
        try:
            while left:  # a write to a memory map would end the process with a signal where the disk is full
                done = os.pwrite(self._file.fileno(), left, at)
                left, at = left[done:], at + done
        except OSError as error:
            raise self._full(error) from error
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
        self._size = max(-(-end // 8) * 8, 8)

    def _full(self, error: OSError) -> UserError:
        return UserError(
            f"what {len(self._has):,} clients keep between rounds is in a file in {self._folder}, and writing it "
            f"failed ({error.strerror}): make room, or set the environment's TMPDIR to a folder that has it."
        )


def kept_by(states: ClientStates) -> Iterator[tuple[int, ClientState]]:
    """Yield every client with a stored state, and that state."""
    for client in states.clients():
        state = states.get(client)
        assert state is not None
        yield client, state
