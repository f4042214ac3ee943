"""Running statistics that differ between ranks, and the choice of those that evaluate a model.

With unsynchronised batch norm, every device has its own running statistics. DDP saves rank 0's; the alternative is to
pool them. A run keeps those of all ranks, virtual or real, to evaluate with either.
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syncnorm.norms import GhostBatchNorm, pool_running_statistics
from syncnorm.norms.core.ranks.collectives import rank_and_size
from syncnorm.norms.registry import spec_of
from syncnorm.surgery import batch_norms
from syncnorm.waiting import waiting

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Running means and variances of all ranks, (R, C) each, by layer."""


def statistics_by_rank(model: nn.Module) -> Statistics:
    """Return every rank's running statistics of PyTorch's unsynchronised batch norms; {} without any.

    Other norms have their own state and no common way to pool it, so they are left out. Virtual ranks keep the
    statistics in the layer; real ranks gather them in one collective, which every rank must call.
    """
    world = rank_and_size(None)[1]
    own: Statistics = {}
    for name, layer in batch_norms(model).items():
        if isinstance(layer, GhostBatchNorm) and layer.rank_mean is not None and layer.rank_var is not None:
            own[name] = layer.rank_mean.clone(), layer.rank_var.clone()
        elif world > 1 and _is_kept_by_rank(layer) and isinstance(layer.running_mean, Tensor):
            assert isinstance(layer.running_var, Tensor)
            own[name] = layer.running_mean.unsqueeze(0), layer.running_var.unsqueeze(0)
    if world == 1 or not own:
        return own
    flat = torch.cat([part.flatten() for pair in own.values() for part in pair])
    rows = [torch.empty_like(flat) for _ in range(world)]
    with waiting():
        dist.all_gather(rows, flat)
    sizes = [part.numel() for pair in own.values() for part in pair]
    parts = iter(torch.stack(rows).split(sizes, dim=1))  # type: ignore[no-untyped-call]
    # Virtual rank v of real rank r is rank v * W + r, because of the way samples are assigned.
    return {
        name: tuple(next(parts).unflatten(1, part.shape).transpose(0, 1).flatten(0, 1) for part in pair)
        for name, pair in own.items()
    }


def _is_kept_by_rank(layer: nn.Module) -> bool:
    spec = spec_of(layer)
    return spec is not None and spec.on_ranks is not None


def use_statistics(model: nn.Module, statistics: Statistics, whose: Literal["rank0", "pooled"]) -> None:
    """Let `model` evaluate with rank 0's running statistics, or with the pooled ones of all ranks."""
    layers = batch_norms(model)
    for name, (means, variances) in statistics.items():
        mean, var = (means[0], variances[0]) if whose == "rank0" else pool_running_statistics(means, variances)
        for buffer, value in ((layers[name].running_mean, mean), (layers[name].running_var, var)):
            assert isinstance(buffer, Tensor)
            buffer.copy_(value)
