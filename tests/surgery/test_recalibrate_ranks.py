"""Recalibration over ranks against one process that has all batches: ranks as threads, and as real processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import torchrun
from ranks import ok, run_ranks
from ranks_program import SETTINGS, SHARES, batches, network

from syncnorm import layer_moments, recalibrate
from syncnorm.errors import UserError

PROGRAM = Path(__file__).with_name("ranks_program.py")
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.dist
@pytest.mark.parametrize("world", SHARES)
def test_real_ranks(world: int) -> None:
    torchrun(world, PROGRAM)


@pytest.mark.parametrize("world", SHARES)
@pytest.mark.parametrize(("normaliser", "estimator"), SETTINGS)
def test_every_rank_gets_the_statistics_of_all(world: int, normaliser: Any, estimator: Any) -> None:
    everything = [x for rank in range(world) for x in batches(rank, world)]
    right = recalibrate(network(), everything, normaliser, estimator).state_dict()
    models = [network() for _ in range(world)]
    states = ok(
        run_ranks(
            world, lambda rank: recalibrate(models[rank], batches(rank, world), normaliser, estimator).state_dict()
        )
    )
    for state in states:
        for key, value in state.items():
            torch.testing.assert_close(value, right[key], **CLOSE)
            assert torch.equal(value, states[0][key])


def test_moments_are_local_unless_asked_for() -> None:
    models = [network() for _ in range(3)]
    alone = [layer_moments(models[rank], batches(rank, 3)) for rank in (0, 1)]
    found = ok(run_ranks(2, lambda rank: layer_moments(models[rank], batches(rank, 3))))
    together = ok(run_ranks(3, lambda rank: layer_moments(models[rank], batches(rank, 3), over_ranks=True)))
    for name, first in alone[0].items():
        assert all(torch.equal(found[rank][name].m2, alone[rank][name].m2) for rank in (0, 1))
        merged = first.merge(alone[1][name])
        for ranks in together:
            assert (ranks[name].count, ranks[name].mean.dtype) == (merged.count, torch.float64)
            torch.testing.assert_close(ranks[name].mean, merged.mean, **CLOSE)
            torch.testing.assert_close(ranks[name].m2, merged.m2, **CLOSE)


def test_a_rank_may_keep_to_itself() -> None:
    models = [network() for _ in range(2)]
    right = [recalibrate(network(), batches(rank, 3)).state_dict() for rank in range(2)]
    done = ok(run_ranks(2, lambda rank: recalibrate(models[rank], batches(rank, 3), over_ranks=False).state_dict()))
    for rank in range(2):
        assert all(torch.equal(value, right[rank][key]) for key, value in done[rank].items())


@pytest.mark.parametrize(
    ("calls", "sentence"),
    [
        (
            lambda rank, model: recalibrate(model, batches(0, 3) if rank else [torch.zeros(2, 5, 6, 6).double()]),
            "the batch norms cannot be measured on all ranks (rank 0: the model fails on a batch to measure ",
        ),
        (
            lambda rank, model: recalibrate(model, batches(0, 3), estimator="population" if rank else "median"),
            "(rank 0: unknown estimator 'median'",
        ),
        (
            lambda rank, model: recalibrate(model if rank else model[:2], batches(0, 3)),
            "those of rank 1 are not those of rank 0 (at '4'), so give every rank the same model",
        ),
        (lambda rank, model: recalibrate(model, []), "there is no sample to measure batch norms with"),
        (
            lambda rank, model: recalibrate(
                model, [torch.full((2, 2, 6, 6), float("nan") if rank else 1.0).double()]
            ),
            "layer '1' got inputs whose mean or variance is not a finite torch.float64 number",
        ),
        (
            lambda rank, model: recalibrate(model[6:], [torch.ones(1, 12).double()] if rank else [], "running"),
            "layer '7' got one value per channel",
        ),
    ],
)
def test_an_error_of_one_rank_is_one_of_all(calls: Callable[[int, Any], Any], sentence: str) -> None:
    models = [network() for _ in range(2)]
    for error in run_ranks(2, lambda rank: calls(rank, models[rank])):
        assert isinstance(error, UserError), error
        assert sentence in str(error)
    for model in models:
        assert all(torch.equal(value, network().state_dict()[key]) for key, value in model.state_dict().items())
