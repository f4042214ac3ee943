"""SyncBatchNorm between real processes, where the process is the point: gloo, DDP, compiled graphs, errors."""

from pathlib import Path

import pytest
from processes import torchrun
from real_ranks_program import CHECKS

PROGRAM = Path(__file__).with_name("real_ranks_program.py")


@pytest.mark.dist
@pytest.mark.parametrize("check", CHECKS)
def test_two_gloo_ranks(check: str) -> None:
    torchrun(2, PROGRAM, check)
