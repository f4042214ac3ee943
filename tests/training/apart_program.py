"""Runs of one process inside of a torchrun, on rank 0 alone; prints their metrics."""

import json
from dataclasses import replace

import torch.distributed as dist
from leaving import leave

from syncnorm.config import Clients, Data, Devices, Norm, Optim, Run
from syncnorm.worlds import fit

DATA = Data("digits", size=8, train_limit=64, test_limit=30, validation=0.25)
BASE = Run(DATA, model_options={"width": 4}, optim=Optim(lr=0.1, epochs=1))
RUNS = (
    replace(BASE, norm=Norm("sync_bn"), world=Devices(ranks=2, per_device_batch=8)),
    replace(BASE, world=Devices(ranks=2, per_device_batch=8, buffers="pooled")),
    replace(BASE, world=Clients(count=2, rounds=1, engine="loop")),
)


def found() -> list[dict[str, float]]:
    """Return the metrics of all runs."""
    return [fit(run).metrics for run in RUNS]


if __name__ == "__main__":
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        print("metrics", json.dumps(found()))
    leave()
