"""`--on local`: worker processes of this machine."""

import subprocess
from collections.abc import Sequence
from tempfile import TemporaryFile

from syncnorm.environment import cores, cuda_devices
from syncnorm.errors import UserError
from syncnorm.study.run.executors.executor import Exit, Order, Process, Wish
from syncnorm.study.run.executors.serve import END_SECONDS, start, tail

PER_DEVICE = 4
"""Processes that share a CUDA device, unless the user says otherwise: each uses device memory."""


class Local:
    """Processes of this machine: one per core, or at most four per CUDA device.

    The machine's CUDA devices go to the processes in turn. A launch of several ranks has all of them, so there is one
    launch at a time.
    """

    hosts: Sequence[str] = ("127.0.0.1",)
    restarts: bool = False

    def __init__(self, wish: Wish) -> None:
        if wish.address:
            raise UserError(f"--on local:{wish.address}: this machine has no address, so write --on local.")
        devices, share = len(cuda_devices()), wish.gpus_per_run
        if share and not devices:
            raise UserError(f"--gpus-per-run is {share:g}, and this machine shows no CUDA device: leave it out.")
        self._jobs = wish.jobs or default_jobs(int(1 / share + 1e-9) if share else PER_DEVICE)

    def slots(self, ranks: int) -> int:
        """Return the number of workers, or 1 for launches of several ranks."""
        return 1 if ranks > 1 else self._jobs

    def start(self, orders: Sequence[Order]) -> list[Process]:
        """Start processes."""
        return [_Child(order) for order in orders]

    def words(self) -> str:
        """Return nothing: the command's own machine is what is expected."""
        return ""

    def close(self) -> None:
        """Do nothing."""


def default_jobs(per_device: int = PER_DEVICE) -> int:
    """Return one worker per core; with CUDA at most `per_device` per device."""
    return min(cores(), per_device * len(cuda_devices()) or cores())


class _Child:
    def __init__(self, order: Order) -> None:
        self._log = TemporaryFile()  # noqa: SIM115 - open as long as the worker lives
        devices = {} if order.ranks > 1 else _one_device(order.number)
        self._process = start(order.arguments, {**order.environment, **devices}, None, self._log)
        self._exit: Exit | None = None

    def exit(self) -> Exit | None:
        if self._exit is None and (code := self._process.poll()) is not None:
            self._exit = Exit(code, tail(self._log))
            self._log.close()
        return self._exit

    def end(self) -> None:
        self._process.terminate()

    def join(self) -> None:
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.exit()


def _one_device(number: int) -> dict[str, str]:
    """Return the setting that assigns the machine's CUDA devices to workers in turn."""
    devices = cuda_devices()
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if len(devices) > 1 else {}
