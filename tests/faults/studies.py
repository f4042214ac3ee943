"""Studies, started by their command, of which any process is killed at random moments, and started again.

Victims are the command itself, its workers, a launch of torchrun, and its ranks. A study whose command is killed
leaves no process behind; any other process is replaced, or costs its run a try. Once started without being killed,
the study has the rows of an undisturbed one, each run once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fates import Fate, alive, below, until

from syncnorm.files import write_file

ENDS = 20.0
"""Seconds in which all processes of a study end whose command was killed."""
FILES = {
    "virtual": """
base = Run(data=DATA, model_options={"width": 4}, world=Devices(ranks=2, per_device_batch=8), optim=Optim(epochs=30))
STUDY = Study("virtual", "Does it hold?", base, {"norm": ["bn", "brn"]}, seeds=2, figures=())
""",
    "ranks": """
world = Devices(ranks=2, per_device_batch=8, engine="torchrun")
base = Run(data=DATA, model_options={"width": 4}, world=world, optim=Optim(epochs=12))
STUDY = Study("ranks", "Does it hold?", base, {"norm": ["bn", "sync_bn"]}, seeds=1, figures=())
""",
    "clients": """
world = Clients(count=4, rounds=40, batch=16, engine="loop")
base = Run(data=DATA, model_options={"width": 4}, world=world)
STUDY = Study("clients", "Does it hold?", base, {"method": ["fedbn", "silobn"]}, seeds=2, figures=())
""",
    "domains": """
domains = Domains(("digits", "digits-inverted", "digits-noisy"), unseen=("digits-noisy",), batch=16, test_batch=20)
data = Data("few", train_limit=80, test_limit=40)
base = Run(data=data, model_options={"width": 4}, norm=Norm("domain_bn"), world=domains, optim=Optim(epochs=20))
STUDY = Study("domains", "Does it hold?", base, {"lr": [0.05, 0.1]}, seeds=1, figures=())
""",
}
"""By name, what stands in a study's file after `HEAD`."""
HEAD = '''"""A small study."""

from syncnorm.config import Clients, Data, Devices, Domains, Norm, Optim, Run
from syncnorm.study import Study

DATA = Data("digits", train_limit=160, test_limit=60)
'''
KILLS = 5


def lacks() -> str:
    """Lack nothing."""
    return ""


def cases(small: bool) -> list[str]:
    """Return the names of the studies."""
    return ["clients"] if small else list(FILES)


def play(name: str, folder: Path) -> Counter[str]:
    """Kill what belongs to a study, some times, and compare its rows."""
    whole, fate = calm(name, folder), Fate("studies", name)
    return under_fire(lambda out: command(FILES[name], folder, out), folder, whole, fate, KILLS)


def command(text: str, folder: Path, out: Path, *more: str, jobs: int = 2) -> list[str]:
    """Return the command of a study, whose file it writes."""
    file = folder / "study.py"
    if not file.exists():
        file.write_text(HEAD + text)
    options = ["--out", str(out), "--checkpoint-every", "0", "--jobs", str(jobs), "--wandb", "off", *more]
    return [sys.executable, "-m", "syncnorm", "run", str(file), *options]


def calm(name: str, folder: Path) -> dict[str, Any]:
    """Return the metrics of a study that nobody disturbs; other cases of the same journal find them there."""
    kept, out = folder.parent / f"calm {name}.json", folder / "calm"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    done = subprocess.run(command(FILES[name], folder, out), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    write_file(kept, json.dumps(metrics_of(out)))
    return metrics_of(out)


def metrics_of(out: Path) -> dict[str, Any]:
    """Return what each finished run ended with."""
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    parts = ("metrics", "history", "details")
    return {line["run_id"]: [line[part] for part in parts] for line in lines if "metrics" in line}


def under_fire(
    command_for: Callable[[Path], Sequence[str]],
    folder: Path,
    whole: dict[str, Any],
    fate: Fate,
    kills: int,
    others: Callable[[], Sequence[Callable[[], None]]] = tuple,
) -> Counter[str]:
    """Start a study again and again while its processes are killed; then compare its rows.

    `others` returns further things that may be done to it.
    """
    out, done, number = folder / "out 0", Counter[str](), 0
    pace, log = 8.0, folder / "log"
    while sum(done.values()) < kills:
        process = _start(command_for(out), log)
        while sum(done.values()) < kills and process.poll() is None:
            _sleep(process, fate.share() * pace)
            if process.poll() is None:
                done[_strike(process, fate, others())] += 1
        if process.poll() == 0:  # the study has ended: go on with another folder
            _compare(out, whole)
            number += 1
            out = folder / f"out {number}"
        elif process.poll() is not None:
            assert process.returncode in (1, -signal.SIGKILL), f"code {process.returncode}: {_tail(log)}"
    if process.poll() is None or not _compared(out, whole):
        _end(process, command_for(out), log)
        _compare(out, whole)
    counts = Counter({f"SIGKILLs of {victim}": count for victim, count in done.items()})
    return counts + Counter({"studies with the rows of an undisturbed one, each run once": number + 1})


def _start(words: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as file:
        return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)


def _end(process: "subprocess.Popen[bytes]", words: Sequence[str], log: Path) -> None:
    """Let a study come to its end, which may take two starts: runs that were struck twice have failed rows."""
    for _ in range(3):
        until(lambda: process.poll() is not None, 400, "the study did not end")  # noqa: B023
        if process.returncode == 0:
            return
        assert process.returncode in (1, -signal.SIGKILL), f"code {process.returncode}: {_tail(log)}"
        process = _start(words, log)
    raise AssertionError(f"the study does not end well: {_tail(log)}")


def _sleep(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def _strike(process: "subprocess.Popen[bytes]", fate: Fate, others: Sequence[Callable[[], None]]) -> str:
    """Kill a process of a study, or do something else; return what it was."""
    team = below(process.pid)
    choice = fate.one(["command", "any", "any", *others])
    if callable(choice):
        choice()
        return str(choice.__name__).replace("_", " ")
    if choice == "command" or not team:
        process.kill()
        process.wait()
        until(lambda: not any(map(alive, team)), ENDS, "processes outlive a command that was killed")
        return "the command"
    victim = fate.one(team)
    words = Path(f"/proc/{victim}/cmdline")
    try:
        said = words.read_bytes().decode(errors="replace")
        os.kill(victim, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return "a process that had just ended"
    kinds = {"torch.distributed.run": "a launch", "processes.ranks": "a worker or rank"}
    return next((kind for word, kind in kinds.items() if word in said.replace("\0", " ")), "a helper process")


def _compared(out: Path, whole: dict[str, Any]) -> bool:
    return (out / "runs.jsonl").exists() and metrics_of(out) == whole


def _compare(out: Path, whole: dict[str, Any]) -> None:
    """Check that a study has all rows, each finished run once."""
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    finished = Counter(line["run_id"] for line in lines if "metrics" in line)
    assert set(finished.values()) == {1}, f"finished more than once: {finished}"
    assert metrics_of(out) == whole, "rows differ from those of an undisturbed study"
    assert not (out / "checkpoints").exists(), "checkpoints are left"


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:]
