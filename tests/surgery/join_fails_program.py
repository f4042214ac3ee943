"""Rank 0 raises in `syncnorm.join`, while rank 1, out of batches, stands in for it; both then end as Python does."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import syncnorm


def train(model: nn.Module, steps: int) -> None:
    """Train in join; step 2 fails."""
    with syncnorm.join(model):
        for step in range(steps):
            if step == 2:
                raise ValueError("a mistake of rank 0")
            model(torch.randn(6, 4)).sum().backward()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    try:
        train(DistributedDataParallel(syncnorm.convert(network, "sync_bn")), 4 if dist.get_rank() == 0 else 1)
    except (ValueError, RuntimeError) as error:
        print(type(error).__name__)
