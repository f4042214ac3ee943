"""Change a model's norms: find them by type, swap them, revert, fold, measure and adapt them."""

from syncnorm.surgery.balanced_memory import BalancedMemory
from syncnorm.surgery.convert import batch_norms, convert, revert
from syncnorm.surgery.convert_report import ConvertReport, convert_report
from syncnorm.surgery.domain_ensemble import domain_embeddings, domain_ensemble
from syncnorm.surgery.fold import fold
from syncnorm.surgery.fold_plan import FoldReport, fold_report
from syncnorm.surgery.freeze import freeze, frozen_layers, unfreeze
from syncnorm.surgery.gradient_clip import adaptive_gradient_clip
from syncnorm.surgery.recalibrate import layer_moments, recalibrate
from syncnorm.surgery.tent import Tent, tent

__all__ = [
    "BalancedMemory",
    "ConvertReport",
    "FoldReport",
    "Tent",
    "adaptive_gradient_clip",
    "batch_norms",
    "convert",
    "convert_report",
    "domain_embeddings",
    "domain_ensemble",
    "fold",
    "fold_report",
    "freeze",
    "frozen_layers",
    "layer_moments",
    "recalibrate",
    "revert",
    "tent",
    "unfreeze",
]
