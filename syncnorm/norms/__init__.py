"""Layers: what a layer does with moments."""

from syncnorm.norms.sync_batch_norm import SyncBatchNorm

__all__ = ["SyncBatchNorm"]
