"""The order of samples in an epoch's batches, for both real and virtual ranks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.seeds import derive


def rank_batches(shards: Sequence[Tensor], per_device_batch: int, seed: int, epoch: int) -> Tensor:
    """Return an epoch's sample indices, int64 (steps, b, R): entry [s, j, r] is sample j of rank r in step s.

    Each rank reshuffles its own shard every epoch. `t[s].flatten()` is the global batch, in which sample i belongs to
    virtual rank i mod R; `t[s, :, r]` is the batch of real rank r. The number of steps is the number of full batches
    in the smallest shard; remaining samples are not used in this epoch.

    Raises `UserError` if a shard has fewer samples than one batch.
    """
    sizes = [len(shard) for shard in shards]
    steps = min(sizes) // per_device_batch
    if steps == 0:
        raise UserError(
            f"rank {sizes.index(min(sizes))} of {len(sizes)} holds {min(sizes)} training samples, fewer than "
            f"one batch of {per_device_batch}: lower per_device_batch or ranks, or use more training samples."
        )
    columns = []
    for rank, shard in enumerate(shards):
        order = np.random.default_rng(derive("order", seed, epoch, rank)).permutation(len(shard))
        columns.append(shard[torch.from_numpy(order[: steps * per_device_batch])].view(steps, per_device_batch))
    return torch.stack(columns, dim=2)
