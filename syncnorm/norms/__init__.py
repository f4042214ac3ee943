"""Norm layers, and the table of them by name."""

from syncnorm.norms.batch.batch_renorm import BatchRenorm
from syncnorm.norms.batch.cross_iteration_batch_norm import CrossIterationBatchNorm
from syncnorm.norms.batch.diminishing_batch_norm import DiminishingBatchNorm
from syncnorm.norms.batch.eval_norm import EvalNorm, ExampleWeighedBatchNorm
from syncnorm.norms.batch.evo_norm import EvoNormB0, EvoNormS0
from syncnorm.norms.batch.frozen_batch_norm import FrozenBatchNorm, ReferenceBatchNorm
from syncnorm.norms.batch.full_norm import FullNorm
from syncnorm.norms.batch.ghost_batch_norm import GhostBatchNorm, pool_running_statistics
from syncnorm.norms.batch.hybrid_batch_norm import HybridBatchNorm
from syncnorm.norms.batch.moving_average_batch_norm import MovingAverageBatchNorm
from syncnorm.norms.batch.sync_batch_norm import SyncBatchNorm
from syncnorm.norms.core.domain_context import domain, keep_domain
from syncnorm.norms.core.mask_context import keep_mask, mask
from syncnorm.norms.domains.domain_batch_norm import DomainBatchNorm
from syncnorm.norms.domains.instance_aware_batch_norm import InstanceAwareBatchNorm
from syncnorm.norms.domains.mix_style import MixStyle, MixStyleBatchNorm
from syncnorm.norms.domains.online_batch_norm import OnlineBatchNorm, stream
from syncnorm.norms.domains.prediction_batch_norm import AlphaBatchNorm, PredictionBatchNorm
from syncnorm.norms.make import make_norm, norm_options, register_norm
from syncnorm.norms.registry import NORMS, norm_names, norm_spec, sees_batch
from syncnorm.norms.sample.filter_response_norm import FilterResponseNorm
from syncnorm.norms.sample.per_sample import GroupNorm, InstanceNorm, LayerNorm
from syncnorm.norms.sample.rms_norm import RMSNorm
from syncnorm.norms.spec import NormSpec
from syncnorm.norms.weight.weight_side import WeightCentralization, WeightStandardization
from syncnorm.norms.weight.weight_standardization import (
    ScaledWSConv1d,
    ScaledWSConv2d,
    ScaledWSConv3d,
    scaled_weight_standardization,
)

__all__ = [
    "NORMS",
    "AlphaBatchNorm",
    "BatchRenorm",
    "CrossIterationBatchNorm",
    "DiminishingBatchNorm",
    "DomainBatchNorm",
    "EvalNorm",
    "EvoNormB0",
    "EvoNormS0",
    "ExampleWeighedBatchNorm",
    "FilterResponseNorm",
    "FrozenBatchNorm",
    "FullNorm",
    "GhostBatchNorm",
    "GroupNorm",
    "HybridBatchNorm",
    "InstanceAwareBatchNorm",
    "InstanceNorm",
    "LayerNorm",
    "MixStyle",
    "MixStyleBatchNorm",
    "MovingAverageBatchNorm",
    "NormSpec",
    "OnlineBatchNorm",
    "PredictionBatchNorm",
    "RMSNorm",
    "ReferenceBatchNorm",
    "ScaledWSConv1d",
    "ScaledWSConv2d",
    "ScaledWSConv3d",
    "SyncBatchNorm",
    "WeightCentralization",
    "WeightStandardization",
    "domain",
    "keep_domain",
    "keep_mask",
    "make_norm",
    "mask",
    "norm_names",
    "norm_options",
    "norm_spec",
    "pool_running_statistics",
    "register_norm",
    "scaled_weight_standardization",
    "sees_batch",
    "stream",
]
