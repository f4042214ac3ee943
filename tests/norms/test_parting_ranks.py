"""Ranks that differ in control flow: the layer and the rank are named, at once or with the group's timeout."""

from pathlib import Path

import pytest
from parting_program import CHECKS
from processes import torchrun

PROGRAM = Path(__file__).with_name("parting_program.py")


@pytest.mark.dist
@pytest.mark.fault
@pytest.mark.parametrize("check", CHECKS)
def test_ranks_that_part_are_named(check: str) -> None:
    torchrun(3 if check == "ranks_of_a_group" else 2, PROGRAM, check)
