"""Clocks that jump or run backwards, while a study trains: a library gives its processes another time of day.

The study must end, with the rows of an undisturbed one. Before it starts, and while it trains, the clock of all of
its processes is set to other times, hours before and after. The library is a few lines of C, for libfaketime also
changes how long Python sleeps by the monotonic clock, which a change of the time of day does not.
"""

import os
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

from fates import Fate
from studies import FILES, calm, command, metrics_of

ENDS = 200
SOURCE = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long seconds(void) {                       /* by which the clock is wrong now, from the file */
    char text[32] = {0};
    const char *path = getenv("CLOCK_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    return size > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int code = syscall(SYS_clock_gettime, clock, now);
    if (!code && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += seconds();
    return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec t;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    now->tv_sec = t.tv_sec, now->tv_usec = t.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (now) *now = t.tv_sec;
    return t.tv_sec;
}
"""


def lacks() -> str:
    """Say if there is no compiler."""
    return "" if shutil.which("cc") else "there is no cc, which compiles the clock"


def library(folder: Path) -> Path:
    """Compile the clock, and return its library."""
    source, made = folder / "clock.c", folder / "clock.so"
    source.write_text(SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(made), str(source)], check=True, capture_output=True)
    return made


def cases(small: bool) -> list[str]:
    """Return the names of studies, with a number."""
    return ["virtual 0"] if small else [f"{name} {number}" for name in FILES for number in range(2)]


def play(name: str, folder: Path) -> Counter[str]:
    """Play a study, whose clock is set again and again."""
    study, fate = name.split()[0], Fate("clocks", name)
    whole, out, clock, jumps = calm(study, folder), folder / "out", folder / "clock", 0
    clock.write_text("-3600")
    environment = {**os.environ, "LD_PRELOAD": str(library(folder)), "CLOCK_FILE": str(clock)}
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
