"""Two writers of one folder, of whom some are killed: rows, checkpoints, files and caches stay whole.

Two `syncnorm run` of one folder: the lock lets one of them write. Two processes may write checkpoints of one run
where a study has moved it from a machine that is cut off and still trains; then a reader must find a whole state at
any time.
"""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fates import Fate, codes_of, until
from kill_program import forked
from studies import FILES, calm, command, metrics_of

from syncnorm.files import write_file
from syncnorm.training.checkpoints import Checkpoints

SECONDS = 1.5
"""Seconds for which writers write."""
SIZE = 50_000
"""Numbers in a state."""


def lacks() -> str:
    """Lack nothing."""
    return ""


def cases(small: bool) -> list[str]:
    """Return the kinds of writers, with a number."""
    counts = {"checkpoints": 2, "files": 1, "runs": 1} if small else {"checkpoints": 20, "files": 10, "runs": 10}
    return [f"{kind} {number}" for kind, count in counts.items() for number in range(count)]


def play(name: str, folder: Path) -> Counter[str]:
    """Let two write."""
    kind, fate = name.split()[0], Fate("writers", name)
    return {"checkpoints": checkpoints, "files": files, "runs": runs}[kind](folder, fate)


def checkpoints(folder: Path, fate: Fate) -> Counter[str]:
    """Two processes write states of one run, and are killed and replaced; a reader looks all the time."""
    torch.set_num_threads(1)

    def write(writer: int) -> None:
        warnings.simplefilter("ignore")
        files, number = Checkpoints(folder, "run"), 0
        while True:
            number += 1
            files.write({"number": number, "writer": writer, "content": torch.full((SIZE,), writer * 1e6 + number)})

    def check() -> None:
        states = Checkpoints(folder, "run").read()
        assert states or not begun, "no state can be read"
        for state in states:
            expected = state["writer"] * 1e6 + state["number"]
            assert bool((state["content"] == expected).all()), "a state of two writers"
        begun.extend(states[:1])

    begun: list[Any] = []
    looks = besides(2, write, check, fate)
    left = [path for path in folder.iterdir() if path.name not in ("newest.pt", "previous.pt")]
    Checkpoints(folder, "run").write({"number": 0, "writer": 0, "content": torch.zeros(SIZE)})
    still = [path for path in left if path.exists()]
    assert not still, f"{len(still)} unfinished files are left after the next write"
    return Counter({"looks at states that two processes write, and are killed at, all whole": looks})


def files(folder: Path, fate: Fate) -> Counter[str]:
    """Two processes write a file; a reader sees one whole content or the other."""
    path = folder / "study.json"

    def write(writer: int) -> None:
        while True:
            write_file(path, f"{writer}" * SIZE)

    def check() -> None:
        if path.exists():
            text = path.read_text()
            assert text in ("0" * SIZE, "1" * SIZE), "a file of two writers"

    return Counter({"looks at files that two processes write, all whole": besides(2, write, check, fate)})


def besides(count: int, write: Callable[[int], None], check: Callable[[], None], fate: Fate) -> int:
    """Let processes write while this one checks; kill one now and then, and start it again. Return the checks."""
    children = [forked(lambda one=one: write(one)) for one in range(count)]  # type: ignore[misc]
    looks, until_then, strikes = 0, time.monotonic() + SECONDS, time.monotonic()
    try:
        while time.monotonic() < until_then:
            check()
            looks += 1
            if time.monotonic() > strikes:
                victim = fate.whole(0, count - 1)
                os.kill(children[victim], signal.SIGKILL)
                codes_of([children[victim]])
                children[victim] = forked(lambda one=victim: write(one))  # type: ignore[misc]
                strikes = time.monotonic() + 0.2 * fate.share()
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        codes_of(children)
    return looks


def runs(folder: Path, fate: Fate) -> Counter[str]:
    """Two commands train one study in one folder."""
    whole = calm("clients", folder)
    out, counts = folder / "out", Counter[str]()
    first = subprocess.Popen(command(FILES["clients"], folder, out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    time.sleep(fate.share() * 4)
    second = subprocess.run(
        command(FILES["clients"], folder, out), capture_output=True, text=True, timeout=200, check=False
    )
    until(lambda: first.poll() is not None, what="the first command did not end")
    told = sorted([first.returncode, second.returncode])
    assert told in ([0, 0], [0, 2]), f"ended with {told}: {second.stderr[-800:]}"
    if 2 in told:
        said = second.stderr if second.returncode == 2 else first.communicate()[0].decode()
        assert "is in use by another `syncnorm run`" in said, said[-800:]
        counts["second commands of a study that were told that the folder is in use"] += 1
    else:
        counts["second commands of a study that found it trained"] += 1
    rows = (out / "runs.jsonl").read_text().splitlines()
    assert len(rows) == len(whole), f"{len(rows)} rows of {len(whole)} runs"
    assert metrics_of(out) == whole
    return counts


if __name__ == "__main__":
    sys.exit("a part of campaign.py")
