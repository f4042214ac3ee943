"""Ranks that differ in control flow, or in a layer: both are named, at once or with the group's timeout."""

import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parting_program import CHECKS
from processes import torchrun
from ranks import run_ranks
from torch import nn

from syncnorm import SyncBatchNorm, make_norm
from syncnorm.norms.core.ranks.parting import names_of

C = 3
PROGRAM = Path(__file__).with_name("parting_program.py")


@pytest.mark.dist
@pytest.mark.fault
@pytest.mark.parametrize("check", CHECKS)
def test_ranks_that_part_are_named(check: str) -> None:
    torchrun(3 if check == "ranks_of_a_group" else 2, PROGRAM, check)


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (lambda: SyncBatchNorm(C, eps=1e-3), r"\(rank 0: eps=1e-05, in SyncBatchNorm\(3\); rank 1: eps=0.001, in"),
        (lambda: SyncBatchNorm(C, momentum=0.3), r"\(rank 0: momentum=0.1, in .*; rank 1: momentum=0.3, in"),
        (lambda: make_norm("brn", C, sync=True), r"\(rank 0: SyncBatchNorm, in .*; rank 1: BatchRenorm, .*r_max=3.0"),
    ],
    ids=["eps", "momentum", "norm"],
)
def test_a_rank_with_other_settings_is_named(odd: Callable[[], nn.Module], says: str) -> None:
    """Otherwise the ranks would normalise one batch in two ways, and gradients would belong to neither."""
    for error in run_ranks(2, lambda rank: (odd() if rank else SyncBatchNorm(C))(torch.randn(2, C))):
        assert isinstance(error, ValueError)
        assert re.search(says, str(error)), error


def test_layers_that_run_in_another_order_on_a_rank_are_named() -> None:
    def work(rank: int) -> None:
        parts = nn.ModuleDict({name: SyncBatchNorm(C) for name in ("early", "late")})
        for names in (("early", "late"), ("early", "late")[:: 1 - 2 * rank]):
            for name in names:
                parts[name](torch.randn(2, C))

    for error in run_ranks(2, work):
        assert isinstance(error, ValueError)
        assert "rank 0 ran 'early'; rank 1 ran 'late'" in str(error)


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
