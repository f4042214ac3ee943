"""Ranks as processes: a program under torchrun, supervised as a study supervises its launches."""

import os
import subprocess
import sys
from pathlib import Path

ATTEMPTS = 3


def torchrun(ranks: int, program: Path, *arguments: str) -> None:
    """Run `program` on so many gloo ranks; fail the test with what it wrote where it does not succeed.

    A launch in which a rank is ended by a signal of its own runtime (gloo was seen to abort while its peers leave) is
    started afresh, as a study's workers do. A rank that raises, as a failed check does, ends the test.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    for attempt in range(1, ATTEMPTS + 1):
        done = subprocess.run(
            [*command, str(program), *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=200,
        )
        if done.returncode == 0:
            return
        aborted = "(SIGABRT)" in done.stderr or "(SIGSEGV)" in done.stderr
        if not aborted or attempt == ATTEMPTS:
            raise AssertionError(f"attempt {attempt}:\n{done.stdout[-2000:]}\n{done.stderr[-8000:]}")
