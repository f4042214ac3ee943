"""Forks the processes of tests: a line of JSON on stdin is an order (see `processes.py`), the answer exit codes.

It imports what orders name, computes nothing and starts no thread, so that a fork of it is as good as a new process.
The store at which ranks meet is in a process of its own, as torchrun's is in the launcher.
"""

import faulthandler
import json
import os
import runpy
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

HANGS = 110.0
"""Seconds after which a rank writes where it stands, and ends."""
GRACE = 1.0
"""Seconds in which the others may say why they fail too, once a process has failed."""


def forked(work: Callable[[], None]) -> int:
    """Do something in a process of its own, and return its id."""
    child = os.fork()
    if child:
        return child
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()
    except SystemExit as ended:
        _leave(ended.code if isinstance(ended.code, int) else 1 if ended.code else 0)
    except BaseException:
        traceback.print_exc()
        _leave(1)
    _leave(0)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def play(order: dict[str, Any], number: int, more: dict[str, str]) -> None:
    """Run the program of an order in this process, which was forked for it."""
    for descriptor, kind in ((1, "out"), (2, "err")):
        file = os.open(f"{order['output']}/{kind} {number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"] | more)
    if more:
        faulthandler.dump_traceback_later(HANGS, exit=True)
    program = order["program"]
    sys.argv = [program, *(order["by_rank"][number] if order["by_rank"] else order["arguments"])]
    if program.endswith(".py"):
        sys.path[:] = [str(Path(program).parent), *order["path"]]
        runpy.run_path(program, run_name="__main__")
    else:
        sys.path[:] = order["path"]
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def store(pipe: int) -> None:
    """Serve the store of a launch, and write its port to `pipe`."""
    from torch.distributed import TCPStore

    served = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(pipe, str(served.port).encode())
    os.close(pipe)
    while True:
        time.sleep(60)


def played(order: dict[str, Any]) -> list[int]:
    """Run the program of an order on all its ranks, or alone; return the exit codes."""
    ranks, others = order["ranks"], []
    mores: list[dict[str, str]] = [{}]
    if ranks is not None:
        reading, writing = os.pipe()
        others = [forked(lambda: store(writing))]
        os.close(writing)
        port = os.read(reading, 16).decode()
        os.close(reading)
        mores = [ranks_environment(rank, ranks, port) for rank in range(ranks)]
    try:
        return ended([forked(lambda n=n, more=more: play(order, n, more)) for n, more in enumerate(mores)])  # type: ignore[misc]
    finally:
        for child in others:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def ranks_environment(rank: int, ranks: int, port: str) -> dict[str, str]:
    """Return what torchrun sets for a rank of one machine."""
    return {
        **{"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{ranks}", "LOCAL_WORLD_SIZE": f"{ranks}"},
        **{"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        **{"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "test"},
    }


def ended(children: list[int]) -> list[int]:
    """Wait for processes; where one fails, or nobody waits for the answer any more, the others are killed."""
    codes: dict[int, int] = {}
    until = float("inf")
    while len(codes) < len(children):
        if time.monotonic() > until or select.select([0], [], [], 0)[0]:
            for child in set(children) - codes.keys():
                os.kill(child, signal.SIGKILL)
        for child in set(children) - codes.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
                if codes[child]:
                    until = min(until, time.monotonic() + GRACE)
        time.sleep(0.01)
    return [codes[child] for child in children]


def main() -> None:
    """Carry out orders until stdin ends."""
    while line := sys.stdin.readline():
        order = json.loads(line)
        for name in order["imports"].split():
            import_module(name)
        print(json.dumps(played(order)), flush=True)


if __name__ == "__main__":
    main()
