"""The table of norms: one row (`NormSpec`) per norm, with all that the rest of syncnorm needs to know about it."""

from inspect import isclass

from torch import nn

from syncnorm.errors import unknown
from syncnorm.norms.batch.batch_renorm import BatchRenorm
from syncnorm.norms.batch.cross_iteration_batch_norm import CrossIterationBatchNorm
from syncnorm.norms.batch.diminishing_batch_norm import DiminishingBatchNorm
from syncnorm.norms.batch.eval_norm import EvalNorm, ExampleWeighedBatchNorm
from syncnorm.norms.batch.evo_norm import EvoNormB0, EvoNormS0
from syncnorm.norms.batch.frozen_batch_norm import FrozenBatchNorm, ReferenceBatchNorm
from syncnorm.norms.batch.full_norm import FullNorm
from syncnorm.norms.batch.ghost_batch_norm import GhostBatchNorm
from syncnorm.norms.batch.hybrid_batch_norm import HybridBatchNorm
from syncnorm.norms.batch.moving_average_batch_norm import MovingAverageBatchNorm
from syncnorm.norms.batch.sync_batch_norm import SyncBatchNorm
from syncnorm.norms.core.affine import running_affine, running_square_affine
from syncnorm.norms.domains.domain_batch_norm import DomainBatchNorm
from syncnorm.norms.domains.instance_aware_batch_norm import InstanceAwareBatchNorm
from syncnorm.norms.domains.mix_style import MixStyleBatchNorm
from syncnorm.norms.domains.online_batch_norm import OnlineBatchNorm
from syncnorm.norms.domains.prediction_batch_norm import AlphaBatchNorm, PredictionBatchNorm
from syncnorm.norms.sample.filter_response_norm import FilterResponseNorm
from syncnorm.norms.sample.per_sample import GroupNorm, InstanceNorm, LayerNorm
from syncnorm.norms.sample.rms_norm import RMSNorm
from syncnorm.norms.spec import NormSpec
from syncnorm.norms.weight.weight_side import (
    BesideSpectralNorm,
    centre_weight,
    norm_beside_ws,
    nothing,
    scaled_standardise_weight,
    spectral_norm_weight,
    standardise_weight,
    weight_norm_weight,
)
from syncnorm.registry import Registry

_DOMAIN = "it has statistics for each domain: revert(model, domain=d) leaves one domain's batch norm, which folds"
_SAMPLE = "it evaluates each sample by the sample's own statistics too, and so is no fixed map"
_BATCH = "it evaluates by the batch at hand, and so is no fixed map"
_STREAM = "it follows the stream that it serves, and so is no fixed map"

# fmt: off
NORMS: Registry[NormSpec] = Registry("norm", {
    # Statistics of a batch.
    "bn": NormSpec(
        nn.BatchNorm2d, by_ndim={1: nn.BatchNorm1d, 3: nn.BatchNorm3d}, on_ranks="ghost_bn", fold=running_affine,
        by_rank="it is PyTorch's own layer ('sync_bn' is the same over ranks)",
        summary="Batch norm as in torch.nn (Ioffe & Szegedy, arXiv 1502.03167)"),
    "sync_bn": NormSpec(SyncBatchNorm, over_ranks=True, fold=running_affine),
    "ghost_bn": NormSpec(
        GhostBatchNorm, on_ranks="ghost_bn", fold=running_affine,
        by_rank="they are those of parts of a rank's batch"),
    "frozen_bn": NormSpec(FrozenBatchNorm, sees_batch=False, fold=running_affine),
    "reference_bn": NormSpec(ReferenceBatchNorm, sees_batch=False, fold=running_affine),
    "hybrid_bn": NormSpec(HybridBatchNorm, over_ranks="sync", by_channel=True, fold=running_affine),
    # Domains and streams.
    "domain_bn": NormSpec(
        DomainBatchNorm, over_ranks="sync", evaluates="domain", fold=_DOMAIN, from_world={"domains": "domains"}),
    "prediction_bn": NormSpec(
        PredictionBatchNorm, over_ranks="sync", by_channel=True, evaluates="corrected", fold=_BATCH),
    "alpha_bn": NormSpec(AlphaBatchNorm, over_ranks="sync", by_channel=True, evaluates="corrected", fold=_BATCH),
    "iabn": NormSpec(InstanceAwareBatchNorm, over_ranks="sync", by_channel=True, evaluates="corrected", fold=_SAMPLE),
    "online_bn": NormSpec(OnlineBatchNorm, over_ranks="sync", by_channel=True, evaluates="corrected", fold=_STREAM),
    "mixstyle": NormSpec(MixStyleBatchNorm, over_ranks="sync", fold=running_affine),
    # Small and skewed batches.
    "brn": NormSpec(BatchRenorm, over_ranks="sync", by_channel=True, fold=running_affine),
    "evonorm_b0": NormSpec(EvoNormB0, over_ranks="sync", by_channel=True, evaluates="corrected", fold=None),
    "mabn": NormSpec(
        MovingAverageBatchNorm, over_ranks="sync", by_channel=True, weight=centre_weight, fold=running_square_affine),
    "cbn": NormSpec(CrossIterationBatchNorm, over_ranks="sync", fold=running_affine),
    "diminishing_bn": NormSpec(DiminishingBatchNorm, over_ranks="sync", by_channel=True, fold=running_affine),
    "full_norm": NormSpec(FullNorm, over_ranks="sync", by_channel=True, fold=running_affine),
    # Corrections of evaluation.
    "eval_norm": NormSpec(
        EvalNorm, over_ranks="sync", by_channel=True, evaluates="corrected", fold=_SAMPLE,
        from_world={"batch": "batch"}),
    "example_bn": NormSpec(
        ExampleWeighedBatchNorm, over_ranks="sync", by_channel=True, evaluates="corrected", fold=_SAMPLE),
    # Each sample by itself.
    "gn": NormSpec(GroupNorm, sees_batch=False, evaluates="sample", fold=None),
    "ln": NormSpec(LayerNorm, sees_batch=False, evaluates="sample", fold=None),
    "in": NormSpec(InstanceNorm, sees_batch=False, evaluates="sample", fold=None),
    "rms": NormSpec(RMSNorm, sees_batch=False, evaluates="sample", fold=None),
    "frn": NormSpec(FilterResponseNorm, sees_batch=False, evaluates="sample", fold=None),
    "evonorm_s0": NormSpec(EvoNormS0, sees_batch=False, evaluates="sample", fold=None),
    # Weights of convolutions; `layer` builds the layer beside one.
    "scaled_ws": NormSpec(
        nothing, sees_batch=False, weight=scaled_standardise_weight, evaluates="nothing", fold=None,
        summary="Scaled weight standardisation in the convolutions, and no other norm (arXiv 2102.06171)"),
    "ws": NormSpec(norm_beside_ws, sees_batch=False, weight=standardise_weight, evaluates="sample", fold=None,
        summary="Weight standardisation in the convolutions, and group norm beside them (arXiv 1903.10520)"),
    "weight_norm": NormSpec(nothing, sees_batch=False, weight=weight_norm_weight, evaluates="nothing", fold=None,
        summary="Weight norm in the convolutions, and no other norm (arXiv 1602.07868)"),
    "spectral_norm": NormSpec(
        BesideSpectralNorm, sees_batch=False, weight=spectral_norm_weight, evaluates="nothing", fold=None,
        summary="Spectral norm in the convolutions, and no other norm (arXiv 1802.05957)"),
    "none": NormSpec(nothing, sees_batch=False, evaluates="nothing", fold=None, summary="No norm"),
})
# fmt: on
"""The row of each name; `syncnorm.register_norm` adds rows."""


def norm_spec(name: str) -> NormSpec:
    """Return the row of a norm; an unknown name raises `UserError`, which suggests the nearest known name."""
    if not isinstance(name, str):
        raise unknown("norm", str(name), NORMS)
    return NORMS[name]


def norm_names() -> list[str]:
    """Return the names that `make_norm` and `convert` know."""
    return list(NORMS)


def sees_batch(name: str) -> bool:
    """Return whether, in training, a sample's output depends on the rest of its batch."""
    return norm_spec(name).sees_batch


def spec_of(layer: nn.Module) -> NormSpec | None:
    """Return the row of a layer's class, or of its nearest base class that has one; None if none has."""
    rows = {kind: spec for spec in NORMS.values() for kind in (spec.layer, *spec.by_ndim.values()) if isclass(kind)}
    return next((rows[kind] for kind in type(layer).__mro__ if kind in rows), None)
