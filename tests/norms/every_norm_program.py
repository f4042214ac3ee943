"""What each gloo rank of test_every_norm_over_ranks.py runs: every norm under DDP, held against one process."""

import torch
import torch.distributed as dist
from leaving import leave
from over_ranks import (
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
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from syncnorm.norms import NORMS

SIZES = {2: [5, 1], 3: [4, 0, 2]}


def times_ranks(gradients: list[Tensor]) -> None:
    """Make DDP's means over ranks sums."""
    for gradient in gradients:
        gradient.mul_(dist.get_world_size())


def trained(model: nn.Module, parts: list[Tensor]) -> list[dict[str, Tensor]]:
    """Train in DDP; its names are those of the model."""
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    return [
        {name.removeprefix("module."): value for name, value in step.items()}
        for step in train(wrapped, parts, times_ranks)
    ]


def check_whole(name: str) -> None:
    """Uneven shares, and none: what one process does with the whole batch; the same statistics on all ranks."""
    rank, sizes = dist.get_rank(), SIZES[dist.get_world_size()]
    one, whole = network("bn" if name == "sync_bn" else name, **options_of(name, False)), batches(sum(sizes))
    model = network(name, **options_of(name, name in SHARED))
    told = trained(model, [batch.split(sizes)[rank] for batch in whole])
    at = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    compare(told, train(one, list(whole)), at, f"{name}, rank {rank}")
    kept = state(model)
    compare_states(kept, state(one), name)
    for key, value in kept.items():
        first = value.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, value), f"{name}, {key} of rank {rank} is not rank 0's"


def check_virtual(name: str) -> None:
    """Equal shares, statistics by rank: what the devices world does on virtual ranks."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    twin, whole = virtual(name, False, ranks, 4 * ranks), batches(4 * ranks)
    told = trained(network(name, **options_of(name, False)), [batch[rank::ranks] for batch in whole])
    compare(told[:-1], train(twin, list(whole))[:-1], slice(rank, None, ranks), f"{name}, by rank, rank {rank}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name in NORMS:
        if name in WHOLE:
            check_whole(name)
        if NORMS[name].by_device({}):
            check_virtual(name)
    leave()
