"""Faults, counted: kills, odd ranks, disks, clocks and writers, part by part (`make faults`).

    python tests/faults/campaign.py [PART ...] [--small] [--again] [--out FILE]
    python tests/faults/campaign.py kills --case "two ranks" --folder DIR        one case, to look at it

A case plays a run while something goes wrong, and holds its end against an undisturbed one. What is drawn (moments,
victims, shapes) follows from the name of the case by hashing. Outcomes are kept in out/faults/COMMIT, case by case:
the same command goes on with what is missing there, and `--again` starts anew. Each part is a process of its own; a
case that takes longer than its part allows counts as hung, and the part goes on with the next one.

Counts go to FILE (results/faults.txt), with the machine, versions and commit, and with how many of each part's cases
were played, unless the checkout differs from its commit. `--small` plays a few cases of each part, and writes no
file.

A part is a file in this folder and a row of `PARTS`. It has `cases(small)`, the names of its cases; `play(name,
folder)`, which plays one and returns what it counted, by kind; and `lacks()`, which says why it cannot be played
here, or "".
"""

import argparse
import faulthandler
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDERS = ("", "training", "federated", "study", "norms", "faults")
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / folder) for folder in FOLDERS)]

from syncnorm.environment import environment  # noqa: E402
from syncnorm.files import write_file  # noqa: E402
from syncnorm.progress import span  # noqa: E402

STARTS = 5
"""How often a part is started, which goes on after a case that hung or took the part along."""


@dataclass(frozen=True)
class Part:
    """One kind of fault."""

    title: str
    seconds: float
    """What a case takes, as long as none has been timed."""
    limit: float
    """Seconds after which a case counts as hung."""


PARTS = {
    "kills": Part("Trainings killed by SIGKILL, resumed, and held against undisturbed ones", 20, 600),
    "studies": Part("Studies in which any process is killed, and started again", 60, 600),
    "nodes": Part("Studies on a Ray cluster in which any process, or a node, is killed", 90, 600),
    "odd_ranks": Part("Ranks that are uneven, empty or mismatched", 60, 1200),
    "disks": Part("Disks that fill up or turn read-only in mid run", 60, 900),
    "clocks": Part("Clocks that jump, or run backwards", 60, 600),
    "writers": Part("Two writers of one folder", 20, 300),
}


def main() -> int:
    """Play the parts; return 0 where nothing failed."""
    parser = argparse.ArgumentParser(description="Faults, counted.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--small", action="store_true", help="a few cases of each part")
    parser.add_argument("--again", action="store_true", help="forget what was played before")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "faults.txt")
    parser.add_argument("--case", help="play this case of the one part named, and show what happens")
    parser.add_argument("--folder", type=Path, help="where a case, or the journal, is")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"there is no part {unknown[0]}: write some of {', '.join(PARTS)}")
    if options.case:
        options.folder.mkdir(parents=True, exist_ok=True)
        with_deadline(PARTS[options.parts[0]].limit)
        print(json.dumps(import_module(options.parts[0]).play(options.case, options.folder)))
        return 0
    if options.inside:
        print(json.dumps(import_module(options.parts[0]).inside(options.inside, options.folder)))
        return 0
    if options.serve:
        serve(options.parts[0], options.small, options.folder)
        return 0
    names = options.parts or list(PARTS)
    here = machine(options.out)
    journal = options.folder or ROOT / "out" / "faults" / (here["commit"] or "none")
    journal = journal / "small" if options.small else journal
    if options.again:
        shutil.rmtree(journal, ignore_errors=True)
    journal.mkdir(parents=True, exist_ok=True)
    for name in names:
        play_part(name, options.small, journal)
    text = table(list(PARTS), journal)
    print(text)
    if not options.small and here["commit"] and not here["commit"].endswith("-dirty"):
        write_file(options.out, head(here) + text)
    elif not options.small:
        print("faults: nothing is written, since files differ from the commit", file=sys.stderr)
    return int(any(line.get("failed") for name in names for line in read(journal / f"{name}.jsonl")))


def machine(out: Path) -> dict[str, str]:
    """Return this process's environment, where counts that were written before do not make the commit another one."""
    here = environment()
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "--", "."]
    with suppress(ValueError):
        command.append(f":(exclude){out.resolve().relative_to(ROOT)}")
    changed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return here if changed else {**here, "commit": here["commit"].removesuffix("-dirty")}


def head(here: dict[str, str]) -> str:
    """Return the first lines of the file: command, machine and versions."""
    return (
        f"make faults\n{here['cpu']}, {here['cores']} cores; Linux {platform.release()}; Python {here['python']}; "
        f"torch {here['torch']}; syncnorm {here['commit']}\n\n"
    )


def play_part(name: str, small: bool, journal: Path) -> None:
    """Play what is missing of a part, in processes of their own."""
    for _ in range(STARTS):
        command = [
            sys.executable,
            __file__,
            name,
            "--serve",
            "--folder",
            str(journal),
            *(["--small"] if small else []),
        ]
        process = subprocess.Popen(command, cwd=ROOT, env=child_environment(), start_new_session=True)
        try:
            code = process.wait()
        finally:
            end_group(process)
        if code == 0:
            return
        if (current := journal / f"{name}.current").exists():
            why = "hung, or took the part along: see where it stood above"
            note(
                journal / f"{name}.jsonl", {"case": current.read_text(), "seconds": 0.0, "counts": {}, "failed": why}
            )
            current.unlink()


def child_environment() -> dict[str, str]:
    """Return the environment of a part: one thread, and this checkout."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **more, "PYTHONWARNINGS": "ignore"}


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End what a part has left behind: all of its process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def serve(name: str, small: bool, journal: Path) -> None:
    """Play the cases of a part that its journal lacks, one after another."""
    part, module, path = PARTS[name], import_module(name), journal / f"{name}.jsonl"
    cases = module.cases(small)
    if why := module.lacks():
        note(path, {"case": "", "seconds": 0.0, "counts": {}, "cases": len(cases), "lacks": why})
        return
    if not path.exists():
        note(path, {"case": "", "seconds": 0.0, "counts": {}, "cases": len(cases)})
    known = [line for line in read(path) if line["case"]]
    done, times = {line["case"] for line in known}, [line["seconds"] for line in known if line["seconds"]]
    failed = sum("failed" in line for line in known)
    for case in cases:
        if case in done:
            continue
        (journal / f"{name}.current").write_text(case)
        folder = journal / f"{name} at work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with_deadline(part.limit)
        line, began = {"case": case}, time.monotonic()
        try:
            line["counts"] = module.play(case, folder)
        except Exception as error:
            print(traceback.format_exc(), file=sys.stderr)
            said = " ".join(f"{type(error).__name__}: {error}".split()).replace(f"{ROOT}/", "")
            line |= {"counts": {}, "failed": said[:600]}
            failed += 1
        with_deadline(0)
        times.append(time.monotonic() - began)
        note(path, line | {"seconds": round(times[-1], 2)})
        (journal / f"{name}.current").unlink()
        done.add(case)
        left = sum(times) / len(times) * (len(cases) - len(done))
        print(f"faults: {name} {len(done)}/{len(cases)}, {failed} failed, {span(left)} left: {case}", file=sys.stderr)
    shutil.rmtree(journal / f"{name} at work", ignore_errors=True)


def with_deadline(seconds: float) -> None:
    """End this process in so many seconds, and say where it stands then; 0 lifts that.

    By a signal, not by faulthandler's own timer: its thread does not survive a fork, so a child that sets one again
    would wait for it for ever.
    """
    faulthandler.register(signal.SIGALRM, file=sys.__stderr__, chain=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def note(path: Path, line: dict[str, Any]) -> None:
    """Append a line to a journal."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal, without one that was cut short."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def table(names: list[str], journal: Path) -> str:
    """Return the counts of every part in words."""
    lines = []
    for name in names:
        known = read(journal / f"{name}.jsonl")
        if not known:
            lines += [f"{name}: {PARTS[name].title}", "  not played", ""]
            continue
        total: Counter[str] = Counter()
        for line in known:
            total.update(line["counts"])
        lines.append(f"{name}: {PARTS[name].title}")
        lines += [f"  not played: {line['lacks']}" for line in known if "lacks" in line][:1]
        lines += [f"  {count:6d}  {what}" for what, count in total.items()]
        played = [line for line in known if line["case"]]
        bad = [line for line in played if "failed" in line]
        cases = next(line["cases"] for line in reversed(known) if "cases" in line)
        seconds = sum(line["seconds"] for line in played)
        lines.append(f"  {len(played)} of {cases} cases played, {len(bad)} failed, {seconds:.0f} s")
        lines += [f"    {line['case']}: {line['failed']}" for line in bad]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
