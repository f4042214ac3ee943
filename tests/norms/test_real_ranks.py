"""SyncBatchNorm between real processes, where the process is the point: gloo, DDP, compiled graphs, errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_ranks_program import CHECKS

PROGRAM = Path(__file__).with_name("real_ranks_program.py")


@pytest.mark.dist
@pytest.mark.parametrize("check", CHECKS)
def test_two_gloo_ranks(check: str) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, str(PROGRAM), check], env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
