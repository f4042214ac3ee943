"""Running statistics that differ from rank to rank, and which of them evaluate a model.

Batch norm that nobody synchronises leaves every device with running statistics of its own. DDP saves rank 0's; the
alternative is to pool them. A run keeps all of them, virtual or real, to evaluate with either.
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norms import GhostBatchNorm, SyncBatchNorm, pool_running_statistics
from syncnorm.surgery import batch_norms

Statistics = dict[str, tuple[Tensor, Tensor]]
"""By layer: running means and variances of all ranks, (R, C) each."""


def statistics_by_rank(model: nn.Module) -> Statistics:
    """Return every rank's running statistics of the batch norms that ranks do not share; {} where there are none.

    Virtual ranks keep them in the layer; real ranks gather them, in one collective that every rank has to call.
    """
    layers = {name: layer for name, layer in batch_norms(model).items() if not isinstance(layer, SyncBatchNorm)}
    ghosts = {name: layer for name, layer in layers.items() if isinstance(layer, GhostBatchNorm)}
    if any(layer.rank_mean is not None for layer in ghosts.values()):
        return {
            name: (layer.rank_mean.clone(), layer.rank_var.clone())
            for name, layer in ghosts.items()
            if layer.rank_mean is not None and layer.rank_var is not None
        }
    mine = [buffer for layer in layers.values() for buffer in (layer.running_mean, layer.running_var)]
    if not mine or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return {}
    flat = torch.cat([buffer for buffer in mine if isinstance(buffer, Tensor)])
    rows = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, flat)
    sizes = [size for layer in layers.values() for size in 2 * [int(layer.num_features)]]  # type: ignore[arg-type]
    parts = iter(torch.stack(rows).split(sizes, dim=1))  # type: ignore[no-untyped-call]
    return {name: (next(parts), next(parts)) for name in layers}


def use_statistics(model: nn.Module, statistics: Statistics, whose: Literal["rank0", "pooled"]) -> None:
    """Let `model` evaluate with rank 0's running statistics, or with those of all ranks pooled."""
    layers = batch_norms(model)
    for name, (means, variances) in statistics.items():
        mean, var = (means[0], variances[0]) if whose == "rank0" else pool_running_statistics(means, variances)
        for buffer, value in ((layers[name].running_mean, mean), (layers[name].running_var, var)):
            assert isinstance(buffer, Tensor)
            buffer.copy_(value)
