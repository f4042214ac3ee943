"""What a rank does while a run trains, so that a slow one shows: all ranks take as long, since each waits for the
slowest, but the slowest waits least.
"""

import socket
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from syncnorm.training.ranks.exchange import Ranks
from syncnorm.waiting import waited

_RESET_PEAK = "5"
"""What resets the peak of a process's memory in Linux (proc(5), clear_refs)."""


class Work:
    """This rank's work, from the making of this object on.

    samples: training samples on which it took steps; the caller counts them.
    waits: seconds of waiting that `syncnorm.waiting` does not see; the caller adds them.
    """

    def __init__(self, device: torch.device) -> None:
        self.samples, self.waits = 0, 0.0
        self._device = device
        self._began, self._waited = perf_counter(), waited()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):  # where it is forbidden, the peak is that of the whole process
                Path("/proc/self/clear_refs").write_text(_RESET_PEAK)

    def record(self) -> dict[str, Any]:
        """Return what this rank did until now, as plain data.

        seconds: of its own work: its time without that of waiting.
        waited: seconds in collectives: waiting for others, and sending.
        samples: training samples.
        peak_memory: bytes of device memory that tensors took on a GPU; else of the process's resident memory.
        host, device: where that was.
        """
        waits = self.waits + waited() - self._waited
        cuda = self._device.type == "cuda"
        return {
            "host": socket.gethostname(),
            "device": torch.cuda.get_device_name(self._device) if cuda else "cpu",
            "seconds": max(perf_counter() - self._began - waits, 0.0),
            "waited": waits,
            "samples": self.samples,
            "peak_memory": torch.cuda.max_memory_allocated(self._device) if cuda else _peak_of_process(),
        }


def of_all(ranks: Ranks, mine: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of all ranks, in their order; empty for one rank. Every rank calls this."""
    if ranks.size == 1:
        return []
    return [{"rank": rank, **one} for rank, one in enumerate(ranks.gather(mine))]


def _peak_of_process() -> int:
    """Return the peak of this process's resident memory in bytes; 0 where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
