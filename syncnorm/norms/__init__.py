"""Norm layers, and the table of them by name."""

from syncnorm.norms.batch_renorm import BatchRenorm
from syncnorm.norms.core.domain_context import domain, keep_domain
from syncnorm.norms.core.mask_context import keep_mask, mask
from syncnorm.norms.cross_iteration_batch_norm import CrossIterationBatchNorm
from syncnorm.norms.diminishing_batch_norm import DiminishingBatchNorm
from syncnorm.norms.domain_batch_norm import DomainBatchNorm
from syncnorm.norms.eval_norm import EvalNorm, ExampleWeighedBatchNorm
from syncnorm.norms.evo_norm import EvoNormB0, EvoNormS0
from syncnorm.norms.filter_response_norm import FilterResponseNorm
from syncnorm.norms.frozen_batch_norm import FrozenBatchNorm, ReferenceBatchNorm
from syncnorm.norms.full_norm import FullNorm
from syncnorm.norms.ghost_batch_norm import GhostBatchNorm, pool_running_statistics
from syncnorm.norms.hybrid_batch_norm import HybridBatchNorm
from syncnorm.norms.instance_aware_batch_norm import InstanceAwareBatchNorm
from syncnorm.norms.make import make_norm, norm_options, register_norm
from syncnorm.norms.mix_style import MixStyle, MixStyleBatchNorm
from syncnorm.norms.moving_average_batch_norm import MovingAverageBatchNorm
from syncnorm.norms.online_batch_norm import OnlineBatchNorm, stream
from syncnorm.norms.per_sample import GroupNorm, InstanceNorm, LayerNorm
from syncnorm.norms.prediction_batch_norm import AlphaBatchNorm, PredictionBatchNorm
from syncnorm.norms.registry import NORMS, norm_names, norm_spec, sees_batch
from syncnorm.norms.rms_norm import RMSNorm
from syncnorm.norms.spec import NormSpec
from syncnorm.norms.sync_batch_norm import SyncBatchNorm
from syncnorm.norms.weight_side import WeightCentralization, WeightStandardization
from syncnorm.norms.weight_standardization import (
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
