"""Programs as processes that are forked, ranks of a group among them: they start without importing torch again."""

import atexit
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ATTEMPTS = 3
ABORTS = {-6, -11}
"""Exit codes of SIGABRT and SIGSEGV."""
HANGING = "Timeout ("
"""How faulthandler's words on a hanging rank begin."""
LAYERS = "syncnorm.surgery"
COMPILER = "torch._dynamo"
"""Torch's optimisers import it too."""
CLIENTS = f"{COMPILER} syncnorm.federated.world"
DEVICES = "syncnorm.devices.world syncnorm.domains.world"


@dataclass(frozen=True)
class Done:
    """How a process ended: its exit code (minus the signal that ended it), and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def torchrun(ranks: int, program: str | Path, *arguments: str, imports: str = LAYERS, **more: Any) -> list[Done]:
    """Run `program` on so many gloo ranks, in the environment of torchrun; fail the test with what it wrote where a
    rank fails. Return how each rank ended.

    `imports` names the modules whose import takes the program's time: it is done once for all launches.

    A launch in which a rank is ended by a signal of its own runtime (gloo was seen to abort while its peers leave) is
    started afresh, as a study's workers do; once, and with a warning that says where the ranks stood, also one that
    hangs. A rank that raises, as a failed check does, ends the test.
    """
    for attempt in range(1, ATTEMPTS + 1):
        done = _forker().ask(str(program), arguments, imports, ranks, **more)
        if not any(one.returncode for one in done):
            return done
        said = "\n".join(f"rank {rank}: {one}" for rank, one in enumerate(map(_told, done)))
        hangs = attempt == 1 and any(HANGING in one.stderr for one in done)
        if attempt == ATTEMPTS or not (hangs or any(one.returncode in ABORTS for one in done)):
            raise AssertionError(f"attempt {attempt}:\n{said}")
        if hangs:
            warnings.warn(f"{program} hung, and is started afresh:\n{said}", stacklevel=2)
    raise AssertionError("no attempt")


def on_ranks(ranks: int, program: str | Path, *arguments: str, imports: str = LAYERS, **more: Any) -> list[Done]:
    """Run `program` as `torchrun` does, once; return how each rank ended. `by_rank` gives each its own arguments."""
    return _forker().ask(str(program), arguments, imports, ranks, **more)


def run(program: str | Path, *arguments: str, imports: str = LAYERS, **more: Any) -> Done:
    """Run a program, or the module of this name, in a process of its own; `more`: its `cwd`, `env` and `path`."""
    (done,) = _forker().ask(str(program), arguments, imports, None, **more)
    return done


def _told(done: Done) -> str:
    return f"code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}"


@cache
def _forker() -> "_Forker":
    forker = _Forker()
    atexit.register(forker.close)
    return forker


class _Forker:
    """The process that forks the others (`forking.py`): started once a session, for importing takes seconds."""

    def __init__(self) -> None:
        program = str(Path(__file__).with_name("forking.py"))
        self._process = subprocess.Popen(
            [sys.executable, program],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(
        self,
        program: str,
        arguments: Sequence[str],
        imports: str,
        ranks: int | None,
        *,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        path: Sequence[str] | None = None,
        by_rank: Sequence[Sequence[str]] | None = None,
    ) -> list[Done]:
        """Have a program run, on ranks or alone (None); return how each process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with TemporaryDirectory() as folder:
            order = {
                "program": program,
                "arguments": arguments,
                "by_rank": by_rank,
                "imports": imports,
                "ranks": ranks,
                "output": folder,
                "cwd": str(cwd or Path.cwd()),
                "environment": {**(dict(os.environ) if env is None else env), "OMP_NUM_THREADS": "1"},
                "path": list(filter(None, sys.path if path is None else path)),
            }
            print(json.dumps(order), file=self._process.stdin, flush=True)
            codes = json.loads(self._answer())
            texts = [[Path(folder, f"{kind} {n}").read_text() for kind in ("out", "err")] for n in range(len(codes))]
            return [Done(code, *text) for code, text in zip(codes, texts, strict=True)]

    def _answer(self) -> str:
        assert self._process.stdout is not None
        try:
            return self._process.stdout.readline()
        except BaseException:  # the test's time is over, and a later answer would be taken for another's
            self.close()
            _forker.cache_clear()
            raise

    def close(self) -> None:
        """End the process, and with it those that it has forked."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
