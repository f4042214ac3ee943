"""What each gloo rank of test_join.py runs: ranks run out of batches at different times, some before the first."""

import warnings
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import syncnorm

TIMEOUT = 20.0
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


class Network(nn.Module):
    """Two branches of different widths, so that the order of backward passes is not that of a chain."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6))
        self.right = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 3)
        self.skip = False
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        left = x.mean(1, keepdim=True).expand(-1, 6, -1, -1) if self.skip else self.left(x)
        return self.head((left + self.right(x)).mean((2, 3)))


def batch(rank: int, step: int) -> Tensor:
    """Return the batch of one rank at one step: of 2 to 4 images."""
    size = 2 + (rank + step) % 3
    return torch.randn(size, 2, 6, 6, generator=torch.Generator().manual_seed(100 * rank + step), dtype=torch.float64)


def loss_of(y: Tensor) -> Tensor:
    """Return a loss that sums over samples, so that ranks' losses add up."""
    return y.pow(2).sum() / 10


def reference(steps: list[int], groups: list[list[int]]) -> tuple[nn.Module, list[nn.Module]]:
    """Return one process's model on the data that were there, and a model with the statistics of each group."""
    world = sum(map(len, groups))
    model = Network()
    statistics: list[nn.Module] = [Network() for _ in groups]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(max(steps)):
        optimizer.zero_grad()
        for group, own in zip(groups, statistics, strict=True):
            there = [rank for rank in group if step < steps[rank]]
            if there:
                model.load_state_dict({k: v for k, v in own.state_dict().items() if "running" in k}, strict=False)
                (loss_of(model(torch.cat([batch(rank, step) for rank in there]))) / world).backward()
                own.load_state_dict(model.state_dict())
        optimizer.step()
    return model, statistics


def trained(steps: list[int], **options: object) -> DistributedDataParallel:
    """Train on every rank, which has so many batches."""
    rank = dist.get_rank()
    model = DistributedDataParallel(
        syncnorm.convert(Network(), "sync_bn", **options),
        bucket_cap_mb=0.0001,
        broadcast_buffers=not options,  # with groups, DDP would give all of them the statistics of one
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with syncnorm.join(model):
        for step in range(steps[rank]):
            optimizer.zero_grad()
            loss_of(model(batch(rank, step))).backward()
            optimizer.step()
    return model


def check_equal(steps: list[int], groups: list[list[int]], **options: object) -> None:
    """Parameters are one process's on every rank, and statistics those of the rank's group."""
    model = trained(steps, **options)
    right, statistics = reference(steps, groups)
    own = next(own for group, own in zip(groups, statistics, strict=True) if dist.get_rank() in group)
    for name, found in model.module.named_parameters():
        torch.testing.assert_close(found, right.get_parameter(name), **CLOSE)
    if max(steps[rank] for group in groups if dist.get_rank() in group for rank in group):
        for name, found in model.module.named_buffers():
            if "running" in name:
                torch.testing.assert_close(found, own.get_buffer(name), **CLOSE)

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    world = dist.get_world_size()
    everyone = [list(range(world))]
    for steps in ([3,1,0,2],[0,2,4,0],[2,2,2,2],[0,0,0,1]):
        check_equal(steps[:world], everyone); dist.barrier(); print(steps,"ok",flush=True)
    if world==4:
        check_equal([1,2,4,3],[[0,1],[2,3]],group_size=2); print("groups ok",flush=True)
    dist.barrier()
    dist.destroy_process_group()
