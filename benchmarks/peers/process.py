"""A contender in a process of its own that plays one round whenever it is told to, and says how long that took.

So contenders take turns, round by round, whatever environment each one lives in. Needs nothing but Python.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGTERM
from tempfile import TemporaryFile
from typing import Any, TextIO

HERE = Path(__file__).resolve().parent.parent


class Contender:
    """A module of `peers` as a program, run by `python`, on so many ranks of torchrun if `ranks` says so.

    What it prints is kept, and shown if it fails.
    """

    def __init__(self, module: str, *arguments: str, python: str = sys.executable, ranks: int = 1) -> None:
        self._log = TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--max-restarts=0", "-m"]
        self._process = subprocess.Popen(
            [python, "-m", *(launch if ranks > 1 else []), f"peers.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def wait(self) -> Any:
        """Return what the process says next.

        Raises:
            RuntimeError: it ended; with the last lines that it printed.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        raise RuntimeError(f"{' '.join(map(str, self._process.args))} ended:\n" + self._log.read()[-3000:])  # type: ignore[arg-type]

    def play(self) -> float:
        """Let it play a round; return the seconds that took."""
        self._say("round")
        return float(self.wait())

    def end(self) -> None:
        """Tell it that no more rounds are wanted; its last words can be waited for."""
        self._say("end")

    def close(self) -> None:
        """Wait until it has ended; where it does not by itself, end it with all that it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, SIGTERM)
            self._process.wait(60)
        self._log.close()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            print(word, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            self.wait()


def peak() -> int:
    """Return the most memory that this process has had, in bytes; `getrusage` counts the one that started it, too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


class Host:
    """The other end of a contender's pipes. Everything else that the process prints goes to standard error."""

    def __init__(self) -> None:
        self._out: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, word: Any) -> None:
        """Say something: that the contender is ready, seconds, or its last words."""
        print(json.dumps(word), file=self._out, flush=True)

    def told_to_play(self) -> bool:
        """Wait for the next word; return whether another round is wanted."""
        return sys.stdin.readline().strip() == "round"

    def serve(self, play: Callable[[], float]) -> None:
        """Say that the contender is ready, and play rounds until no more is wanted."""
        self.say("ready")
        while self.told_to_play():
            self.say(play())


def alternate(contenders: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Let contenders play a round each in turn, first one that does not count; return the seconds of each."""
    for play in contenders:
        play()
    turns = [[play() for play in contenders] for _ in range(rounds)]
    return [list(seconds) for seconds in zip(*turns, strict=True)]
