"""Ranks as threads: every rank of a process group in one process, for maths in milliseconds."""

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.multi_threaded_pg import (
    ProcessLocalGroup,
    ThreadLocalWorld,
    _install_threaded_pg,
    _uninstall_threaded_pg,
)

if not hasattr(ThreadLocalWorld, "comms"):  # torch 2.11 asks for it when a group is destroyed, and has forgotten it
    ThreadLocalWorld.comms = []


def run_ranks(size: int, work: Callable[[int], Any], timeout: float = 100.0) -> list[Any]:
    """Run `work(rank)` on `size` ranks at once; return what each returned, or the exception that it raised.

    A rank that hangs past `timeout` seconds fails the test. What it does later stays out of other tests: its process
    group is one of its thread, so that is left installed.
    """
    results: list[Any] = [TimeoutError(f"rank {rank} hangs") for rank in range(size)]
    store = dist.HashStore()

    def one(rank: int) -> None:
        dist.init_process_group("threaded", rank=rank, world_size=size, store=store)
        try:
            results[rank] = work(rank)
        except Exception as error:
            results[rank] = error
        finally:
            dist.destroy_process_group()

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(size)]
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    _install_threaded_pg()
    try:
        for thread in threads:
            thread.start()
        until = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
    finally:
        ProcessLocalGroup.reset()
        if not any(thread.is_alive() for thread in threads):
            _uninstall_threaded_pg()
            torch._C._distributed_c10d._set_thread_isolation_mode(False)
    return results


def ok(results: list[Any]) -> list[Any]:
    """Return the results of ranks that must all have succeeded; raise the first error otherwise."""
    errors = [result for result in results if isinstance(result, Exception)]
    for error in sorted(errors, key=lambda error: isinstance(error, TimeoutError)):
        raise error  # the cause rather than the peers that wait for it
    return results
