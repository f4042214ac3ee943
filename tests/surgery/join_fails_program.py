"""Rank 0 raises in `syncnorm.join`, while rank 1, out of batches, stands in for it; both then end as Python does."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import syncnorm

if __name__ == "__main__":
    dist.init_process_group("gloo")
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model = DistributedDataParallel(syncnorm.convert(network, "sync_bn"))
    with syncnorm.join(model):
        for step in range(4 if dist.get_rank() == 0 else 1):
            if step == 2:
                raise ValueError("a mistake of rank 0")
            model(torch.randn(6, 4)).sum().backward()
