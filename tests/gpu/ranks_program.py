"""A rank: SyncBatchNorm under DDP on its part of a batch, against one process with all of it.

    torchrun --nproc-per-node R tests/gpu/ranks_program.py BACKEND DEVICE

Ranks share devices where there are fewer than ranks.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import syncnorm


def network() -> nn.Module:
    """Return the same network at every call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    return model.double()


def main() -> None:
    """Compare outputs, gradients and running statistics."""
    backend, kind = sys.argv[1:]
    dist.init_process_group(backend)
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device(kind)
    if kind == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    torch.manual_seed(1)
    x = torch.randn(4 * size, 3, 8, 8, dtype=torch.float64).to(device)
    ours = DistributedDataParallel(syncnorm.convert(network(), "sync_bn").to(device))
    whole = network().to(device)
    y, expected = ours(x[4 * rank : 4 * rank + 4]), whole(x)
    y.square().mean().backward()
    expected.square().mean().backward()
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(y, expected[4 * rank : 4 * rank + 4], **close)
    for found, right in zip(ours.module.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(found.grad, right.grad, **close)
    for found, right in zip(ours.module.buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(found, right, **close)
    del ours  # freed after its group, DDP was seen to wait for gloo's threads for ever
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
