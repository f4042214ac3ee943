"""Every registered norm: real ranks are virtual ranks, and one process with the whole batch where they share it."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from over_ranks import (
    CASES,
    SHARED,
    WHOLE,
    batches,
    compare,
    compare_states,
    network,
    options_of,
    state,
    train,
    virtual,
)
from processes import torchrun
from ranks import ok, run_ranks
from torch import Tensor

from syncnorm.training.ranks.virtual_ranks import rank_0


def summed(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        dist.all_reduce(tensor)


@pytest.mark.parametrize("sizes", [[4, 3, 0], [1, 6]], ids=str)
@pytest.mark.parametrize("name", WHOLE)
def test_ranks_that_share_are_one_process_with_the_whole_batch(name: str, sizes: list[int]) -> None:
    """Outputs, gradients, running statistics and evaluation, of uneven shares and none."""
    one, whole = network(name, **options_of(name, False)), batches(sum(sizes))
    right = train(one, list(whole))
    models = [network(name, **options_of(name, name in SHARED)) for _ in sizes]

    def work(rank: int) -> dict[str, Tensor]:
        told = train(models[rank], [batch.split(sizes)[rank] for batch in whole], summed)
        at = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        compare(told, right, at, f"{name}, rank {rank}")
        return state(models[rank])

    states = ok(run_ranks(len(sizes), work))
    compare_states(states[0], state(one), name)
    for other in states[1:]:
        assert all(torch.equal(value, states[0][key]) for key, value in other.items())


@pytest.mark.parametrize(("name", "sync"), CASES)
def test_real_ranks_are_virtual_ranks(name: str, sync: bool) -> None:
    """As the devices world trains them, each with the statistics of its own samples, or with those of all."""
    ranks, samples = 2, 8
    model, whole = virtual(name, sync, ranks, samples), batches(samples)
    right = train(model, list(whole))
    models = [network(name, **options_of(name, sync)) for _ in range(ranks)]

    def work(rank: int) -> dict[str, Tensor]:
        parts = [batch[rank::ranks] for batch in whole]
        if not sync:
            parts[-1] = whole[-1]  # every rank evaluates it
        told = train(models[rank], parts, summed)
        compare(told[:-1], right[:-1], slice(rank, None, ranks), f"{name}, rank {rank}")
        if sync or rank == 0:  # others evaluate by statistics of their own
            compare(told[-1:], right[-1:], slice(rank, None, ranks) if sync else slice(None), f"{name}, evaluated")
        return state(models[rank])

    compare_states(ok(run_ranks(ranks, work))[0], state(rank_0(model)), name)


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 3])
def test_gloo_processes_under_ddp(ranks: int) -> None:
    torchrun(ranks, Path(__file__).with_name("every_norm_program.py"))
