"""A run of one process, in a process that belongs to a torchrun, knows no other rank."""

import json

import apart_program
import pytest
from processes import DEVICES, torchrun


@pytest.mark.dist
def test_a_run_of_one_process_within_a_torchrun_is_by_itself() -> None:
    """Rank 1 waits outside, so that a collective of rank 0 would hang or fail."""
    first, _ = torchrun(2, apart_program.__file__, imports=DEVICES)
    line = next(line for line in first.stdout.splitlines() if line.startswith("metrics "))
    assert json.loads(line.removeprefix("metrics ")) == apart_program.found()
