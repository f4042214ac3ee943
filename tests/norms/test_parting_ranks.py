"""Ranks that differ in control flow: the layer and the rank are named, at once or with the group's timeout."""

import threading
from pathlib import Path

import pytest
from parting_program import CHECKS
from processes import torchrun
from torch import nn

from syncnorm.norms.core.ranks.parting import names_of

PROGRAM = Path(__file__).with_name("parting_program.py")


@pytest.mark.dist
@pytest.mark.fault
@pytest.mark.parametrize("check", CHECKS)
def test_ranks_that_part_are_named(check: str) -> None:
    torchrun(3 if check == "ranks_of_a_group" else 2, PROGRAM, check)


def test_looking_for_names_leaves_other_threads_alone() -> None:
    """CPython raises SystemError in a thread whose half-built tuple another one holds."""
    layer, errors, done = nn.BatchNorm2d(3), [], threading.Event()
    model = nn.Sequential(nn.Identity(), layer)

    def build() -> None:
        try:
            while not done.is_set():
                tuple(number for number in range(3000))
        except SystemError as error:
            errors.append(error)

    thread = threading.Thread(target=build)
    thread.start()
    try:
        assert {names_of(model)[id(layer)] for _ in range(5)} == {"BatchNorm2d '1'"}
    finally:
        done.set()
        thread.join()
    assert not errors
