"""Ranks that differ in control flow: the layer and the rank are named, at once or with the group's timeout."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from parting_program import CHECKS
from processes import torchrun

PROGRAM = Path(__file__).with_name("parting_program.py")


@pytest.fixture(scope="module")
def ends() -> Iterator[dict[str, Future[None]]]:
    """Run the checks, four at once, for most of their time is waiting for a timeout."""
    with ThreadPoolExecutor(4) as pool:
        ranks = {check: 3 if check == "ranks_of_a_group" else 2 for check in CHECKS}
        yield {check: pool.submit(torchrun, ranks[check], PROGRAM, check) for check in CHECKS}


@pytest.mark.dist
@pytest.mark.fault
@pytest.mark.parametrize("check", CHECKS)
def test_ranks_that_part_are_named(check: str, ends: dict[str, Future[None]]) -> None:
    ends[check].result()
