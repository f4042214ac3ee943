"""Sharded models, groups of ranks, and ranks that run out of batches, between real processes."""

from pathlib import Path

import pytest
from processes import on_ranks, torchrun

HERE = Path(__file__).parent


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("program", ["fsdp_program.py", "join_program.py"])
def test_over_gloo_ranks(program: str, ranks: int) -> None:
    torchrun(ranks, HERE / program)


@pytest.mark.dist
def test_a_rank_that_stands_in_ends_without_a_signal_where_another_fails() -> None:
    first, other = on_ranks(2, HERE / "join_fails_program.py")
    assert (first.stdout, other.stdout) == ("ValueError\n", "RuntimeError\n")
    assert (first.returncode, other.returncode) == (0, 0), other.stderr
