"""Start a run in a federation, follow it, and start it again if the SuperLink was lost in the middle.

    python run.py '{"world": {"count": 3, "rounds": 10, "method": "fedbn"}}' --folder results

The run is JSON, or a file of it; what it leaves out has its defaults. `--folder`, on the SuperLink's machine, is
where the model is kept after each round (global.pt) and the result at the end (result.json). The same command goes on
with a run that was interrupted. Exit code 0: the run has ended with a model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from syncnorm.errors import UserError
from syncnorm.federated.flower.wire import run_as_text, run_from_text

ROOT = Path(__file__).resolve().parents[2]
PAUSE = 5.0
"""Seconds between two questions about a run."""
LOST = "heartbeat"
"""What Flower says of a run whose server it has lost."""


def main() -> int:
    """Start the run of the command line, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--superlink", default="127.0.0.1:8000")
    parser.add_argument("--certificates", type=Path, default=Path("certificates"))
    parser.add_argument("--folder", type=Path, default=Path("results"))
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds to wait for a round's replies")
    parser.add_argument("--at-once", type=int, default=0, help="sites that work at the same time; 0: all of a round")
    given = parser.parse_args()
    try:
        text = Path(given.run).read_text() if Path(given.run).is_file() else given.run
    except OSError:  # longer than a file's name may be
        text = given.run
    try:
        text = run_as_text(run_from_text(text))
    except UserError as mistake:
        print(f"run: {mistake}", file=sys.stderr)
        return 2
    ca = given.certificates.resolve() / "ca.crt"
    if not ca.exists():
        print(f"run: there is no {ca}: give the folder that `certificates.py make` wrote.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="federation-") as home:
        os.environ.update(FLWR_HOME=home, FLWR_TELEMETRY_ENABLED=os.environ.get("FLWR_TELEMETRY_ENABLED", "0"))
        known = f'[superlink]\ndefault = "fed"\n\n[superlink.fed]\naddress = "{given.superlink}"\n'
        Path(home, "config.toml").write_text(f"{known}root-certificates = {json.dumps(str(ca))}\n")
        options = {"timeout": given.timeout, "folder": str(given.folder.resolve()), "run": text}
        options["at-once"] = given.at_once
        own = Path(home, "run.toml")
        own.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items()))
        return _until_it_ends(own)


def _until_it_ends(own: Path) -> int:
    while True:
        started = _asked("run", str(ROOT), "fed", "--run-config", str(own))
        number = started.get("run-id")
        if number is None:
            print(f"run: {_why(started)}", file=sys.stderr)
            return 1
        print(f"run: started as {number}", file=sys.stderr, flush=True)
        status, details = _followed(str(number))
        if status == "finished:completed":
            return 0
        print(f"run: {status}: {details}", file=sys.stderr, flush=True)
        if LOST not in details:
            return 1
        print("run: the SuperLink was lost; the run goes on after its last round", file=sys.stderr, flush=True)


def _followed(number: str) -> tuple[str, str]:
    """Show a run's log until it has ended; return its status and the details."""
    silent = False
    while True:
        subprocess.run(["flwr", "log", number, "fed", "--stream"], check=False)
        answer = _asked("list", "fed", "--run-id", number)
        found = next(iter(answer.get("runs", [])), None)
        if found and str(found["status"]).startswith("finished"):
            return str(found["status"]), str(found.get("status-details", ""))
        if not found and not silent:
            print(f"run: {_why(answer)} It is asked again.", file=sys.stderr, flush=True)
        silent = not found
        time.sleep(PAUSE)


def _asked(*command: str) -> dict[str, Any]:
    """Return what a command of Flower's answers, as JSON."""
    done = subprocess.run(["flwr", *command, "--format", "json"], capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"error-message": done.stderr.strip() or done.stdout.strip()}
    return answer


def _why(answer: dict[str, Any]) -> str:
    lines = str(answer.get("error-message", answer)).strip().splitlines()
    return lines[-1] if lines else "Flower does not say why."


if __name__ == "__main__":
    sys.exit(main())
