"""Sharded models, groups of ranks, and ranks that run out of batches, between real processes."""

from pathlib import Path

import pytest
from processes import torchrun

HERE = Path(__file__).parent


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("program", ["fsdp_program.py", "join_program.py"])
def test_over_gloo_ranks(program: str, ranks: int) -> None:
    torchrun(ranks, HERE / program)
