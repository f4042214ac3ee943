"""SyncBatchNorm between real processes, where the process is the point: gloo, DDP, compiled graphs, errors."""

from pathlib import Path

import pytest
from processes import COMPILER, LAYERS, torchrun
from real_ranks_program import CHECKS

from syncnorm._torch import COMPILES_COLLECTIVES

PROGRAM = Path(__file__).with_name("real_ranks_program.py")


@pytest.mark.dist
@pytest.mark.parametrize("check", CHECKS)
def test_two_gloo_ranks(check: str) -> None:
    if check == "compiled" and not COMPILES_COLLECTIVES:
        pytest.skip("this torch's collectives carry no gradient when compiled: 2.11 is the first whose do")
    torchrun(2, PROGRAM, check, imports=f"{COMPILER} {LAYERS}")
