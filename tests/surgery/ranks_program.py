"""What each gloo rank of test_recalibrate_ranks.py runs under torchrun: each check raises where it fails."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from leaving import leave
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from syncnorm import layer_moments, recalibrate
from syncnorm.errors import UserError

# How many samples each batch of each rank has: uneven, and the last rank has none.
SHARES = {2: [[5, 2, 7], []], 3: [[4], [3, 0, 6, 2], []]}
SETTINGS: list[tuple[Any, Any]] = [(n, e) for n in ("batch", "running") for e in ("population", "mean_of_batches")]


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(12, 5), nn.BatchNorm1d(5)).to(dtype)


def batches(rank: int, world: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(rank)
    draw = [torch.randn(n, 2, 6, 6, dtype=torch.float64, generator=g) * (1 + rank) for n in SHARES[world][rank]]
    return [(x + 3 * i).to(dtype) for i, x in enumerate(draw)]


def check_against_one_process(rank: int, world: int) -> None:
    """Statistics are those of one process with all batches, and the very same on each rank."""
    everything = [x for r in range(world) for x in batches(r, world)]
    for normaliser, estimator in SETTINGS:
        right = recalibrate(network(), everything, normaliser, estimator, over_ranks=False).state_dict()
        found = recalibrate(network(), batches(rank, world), normaliser, estimator).state_dict()
        for key, value in found.items():
            torch.testing.assert_close(value, right[key], rtol=1e-12, atol=1e-12)
    for dtype in (torch.float32, torch.bfloat16):
        model = recalibrate(network(dtype), batches(rank, world, dtype))
        everywhere: list[Any] = [None] * world
        dist.all_gather_object(everywhere, model.state_dict())
        for state in everywhere:
            assert all(torch.equal(value, everywhere[0][key]) for key, value in state.items())
        assert not torch.equal(model[1].running_mean, torch.zeros(4, dtype=dtype))


def check_wrapped(rank: int, world: int) -> None:
    """In DDP, whose forward would wait for ranks that have no batch."""
    right = recalibrate(network(), batches(rank, world)).state_dict()
    model = DistributedDataParallel(network())
    found = recalibrate(model, batches(rank, world)).module.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(value, right[key]) for key, value in found.items())


def check_group(rank: int, world: int) -> None:
    """A group of fewer ranks: those in it merge, and the others are told that they are not in it."""
    group: Any = dist.new_group([0])
    before = copy.deepcopy(network().state_dict())
    if rank == 0:
        found = layer_moments(network(), batches(0, world), over_ranks=True, process_group=group)
        alone = layer_moments(network(), batches(0, world))
        assert all(torch.equal(found[name].mean, moments.mean) for name, moments in alone.items())
        return
    model = network()
    with pytest.raises(UserError, match="this rank is not in the process_group"):
        recalibrate(model, batches(rank, world), process_group=group)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def check_errors(rank: int, world: int) -> None:
    """A bad batch on the last rank is an error of every rank, which names it, and all go on afterwards."""
    model = network()
    mine: Any = batches(0, world)[:1] if rank < world - 1 else [(torch.zeros(2), 1)]
    with pytest.raises(UserError, match=rf"\(rank {world - 1}: a batch to measure batch norms with is a tuple"):
        recalibrate(model, mine)
    assert all(torch.equal(value, network().state_dict()[key]) for key, value in model.state_dict().items())
    recalibrate(model, batches(rank, world))


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for check in (check_against_one_process, check_wrapped, check_group, check_errors):
        check(dist.get_rank(), dist.get_world_size())
    leave()
