"""Two ranks under DDP accumulate different numbers of micro-batches, with their own norms and synchronised ones."""

import copy

import torch
import torch.distributed as dist
from leaving import leave
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from syncnorm import accumulate, convert


def loss(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model(x)
    return y.sin().sum()


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    model = model.double()
    x = torch.randn(2, 6, 3, 8, 8, dtype=torch.float64)
    for norm in ("bn", "sync_bn"):
        start = convert(copy.deepcopy(model), norm) if norm == "sync_bn" else copy.deepcopy(model)
        large, small = (DistributedDataParallel(copy.deepcopy(start)) for _ in range(2))
        loss(large, x[rank]).backward()
        accumulate(small, x[rank].split([1, 5] if rank else [2, 2, 2]), loss)
        for one, other in zip(large.parameters(), small.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-10, atol=1e-10)
        for one, other in zip(large.buffers(), small.buffers(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)
        del large, small
    leave()


if __name__ == "__main__":
    main()
