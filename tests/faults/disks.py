"""Disks that fill up, or turn read-only, while a study writes to them; the disks are small ones in memory.

The command must end by itself, with a sentence and without a traceback, or go on where it can do without the file.
Once there is room again, the same command must end with the rows of an undisturbed study. Each case has mounts of its
own (`unshare`), which no other process sees.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from fates import Fate, until

LARGE = "size=64m"
STUDY = "clients"
ENDS = 150
"""Seconds in which a command must end."""


def lacks() -> str:
    """Say if this user cannot mount anything, even in a place of its own."""
    words = [*unshared(), "sh", "-c", "mount -t tmpfs -o size=16k none /mnt"]
    if shutil.which("unshare") is None:
        return "there is no unshare here"
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"this user cannot mount a disk ({done.stderr.strip()})"


def unshared() -> list[str]:
    """Return the command that gives another one mounts of its own."""
    return ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else [])]


def cases(small: bool) -> list[str]:
    """Return the kinds of disks, with a number."""
    counts = {"full": 1} if small else {"full": 16, "read-only": 10, "cache": 4}
    return [f"{kind} {number}" for kind, count in counts.items() for number in range(count)]


def play(name: str, folder: Path) -> Counter[str]:
    """Play a case in a process that has mounts of its own."""
    program = str(Path(__file__).with_name("campaign.py"))
    done = subprocess.run(
        [*unshared(), sys.executable, program, "disks", "--inside", name, "--folder", str(folder)],
        capture_output=True,
        text=True,
        timeout=4 * ENDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    return Counter(json.loads(done.stdout.splitlines()[-1]))


def inside(name: str, folder: Path) -> Counter[str]:
    """Play a case where mounts are this process's own."""
    from studies import FILES, calm, command, metrics_of

    kind, fate = name.split()[0], Fate("disks", name)
    whole = calm(STUDY, folder)
    disk = folder / "disk"
    disk.mkdir()
    size = LARGE if kind == "read-only" else f"size={fate.one((8, 16, 24, 32, 48, 64, 96, 128, 192, 256))}k"
    mount("-t", "tmpfs", "-o", size, "none", str(disk))
    out = folder / "out" if kind == "cache" else disk / "out"
    environment = {**os.environ, **({"SYNCNORM_CACHE": str(disk), "TMPDIR": str(disk)} if kind == "cache" else {})}
    words = command(FILES[STUDY], folder, out, "--save-models", jobs=1)
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(words, env=environment, stdout=file, stderr=subprocess.STDOUT)
    state = kind
    if kind == "read-only":
        time.sleep(2 + 6 * fate.share())
        until(lambda: turned_read_only(disk) or process.poll() is not None, what=f"{disk} stayed busy")
        state = kind if process.poll() is None else "busy until the command had ended"
    try:
        code = process.wait(ENDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"hung on a disk that is {kind}: {log.read_text()[-800:]}") from None
    said = log.read_text()
    assert "Traceback" not in said, said[-1500:]
    assert code in (0, 1, 2), f"code {code}: {said[-800:]}"
    assert code != 2 or "syncnorm: " in said, said[-800:]
    mount("-o", f"remount,rw,{LARGE}", str(disk))
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=2 * ENDS, check=False)
    assert done.returncode == 0, f"with room again, code {done.returncode}: {done.stderr[-1500:]}"
    assert metrics_of(out) == whole, "rows differ from those of an undisturbed study"
    ends = {0: "ended well", 1: "ended with failed runs", 2: "ended with a sentence"}
    return Counter({f"disks that were {state}: the command {ends[code]}, and well with room again": 1})


def turned_read_only(disk: Path) -> bool:
    """Try to turn a disk read-only, which it refuses while a file is open for writing; return whether it is."""
    words = ["mount", "-o", "remount,ro", str(disk)]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


def mount(*words: str) -> None:
    """Mount something, or change a mount."""
    subprocess.run(["mount", *words], check=True, capture_output=True)
