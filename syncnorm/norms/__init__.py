"""Layers: what a layer does with moments."""

from syncnorm.norms.ghost_batch_norm import GhostBatchNorm, pool_running_statistics
from syncnorm.norms.per_sample import GroupNorm, InstanceNorm, LayerNorm
from syncnorm.norms.registry import make_norm, norm_names, norm_options
from syncnorm.norms.sync_batch_norm import SyncBatchNorm

__all__ = [
    "GhostBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "SyncBatchNorm",
    "make_norm",
    "norm_names",
    "norm_options",
    "pool_running_statistics",
]
