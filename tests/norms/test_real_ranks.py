"""SyncBatchNorm between real processes, where the process is the point: gloo, DDP, compiled graphs, errors."""

from pathlib import Path

import pytest
from processes import COMPILER, LAYERS, torchrun
from real_ranks_program import CHECKS

from syncnorm._torch import COMPILES_COLLECTIVES

PROGRAM = Path(__file__).with_name("real_ranks_program.py")


@pytest.mark.dist
@pytest.mark.parametrize(
    "check", [pytest.param(name, marks=[pytest.mark.slow] * (name == "inductor")) for name in CHECKS]
)
def test_two_gloo_ranks(check: str) -> None:
    if check in ("compiled", "inductor") and not COMPILES_COLLECTIVES:
        pytest.skip("this torch's collectives carry no gradient when compiled: 2.11 is the first whose do")
    torchrun(2, PROGRAM, check, imports=f"{COMPILER} {LAYERS}")
