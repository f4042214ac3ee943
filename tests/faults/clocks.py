"""Clocks that jump or run backwards, while a study trains: libfaketime gives its processes another time of day.

The study must end, with the rows of an undisturbed one. Before it starts, and while it trains, the clock of all of
its processes is set to other times, hours before and after.
"""

import os
import subprocess
import time
from collections import Counter
from pathlib import Path

from fates import Fate
from studies import FILES, calm, command, metrics_of

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
ENDS = 200


def lacks() -> str:
    """Say if libfaketime is not installed."""
    return "" if LIBRARIES else "libfaketime is not installed (in Debian, the package libfaketime)"


def cases(small: bool) -> list[str]:
    """Return the names of studies, with a number."""
    return ["virtual 0"] if small else [f"{name} {number}" for name in FILES for number in range(2)]


def play(name: str, folder: Path) -> Counter[str]:
    """Play a study, whose clock is set again and again."""
    study, fate = name.split()[0], Fate("clocks", name)
    whole, out, clock, jumps = calm(study, folder), folder / "out", folder / "clock", 0
    clock.write_text("-1h")
    more = {"LD_PRELOAD": str(LIBRARIES[0]), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    environment = {**os.environ, **more, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command(FILES[study], folder, out), env=environment, stdout=log, stderr=log)
    end = time.monotonic() + ENDS
    while process.poll() is None:
        if time.monotonic() > end:
            process.kill()
            raise AssertionError(f"hung: {(folder / 'log').read_text()[-800:]}")
        time.sleep(0.3 + fate.share())
        draft = folder / "clock.draft"
        draft.write_text(f"{fate.one('+-')}{fate.whole(0, 100_000)}")
        draft.rename(clock)
        jumps += 1
    assert process.returncode == 0, (folder / "log").read_text()[-1500:]
    assert metrics_of(out) == whole, "rows differ from those of an undisturbed study"
    return Counter({"times that the clock was set": jumps, "studies with the rows of an undisturbed one": 1})
