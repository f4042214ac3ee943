"""How a rank's program ends."""

import gc

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def leave(together: bool = True) -> None:
    """Wait for the other ranks, if all are there, and leave the group, once no DDP model is left.

    A DDP model that is freed after its group was seen to wait for gloo's threads for ever.
    """
    gc.collect()
    left = sum(issubclass(type(one), DistributedDataParallel) for one in gc.get_objects())
    assert not left, f"{left} DDP models would be freed after their group: delete them before"
    if together:
        dist.barrier()
    dist.destroy_process_group()
