"""Change a model's norms: find them by type, swap them, revert, fold, measure and adapt them."""

from syncnorm.surgery.accumulation.accumulate import accumulate
from syncnorm.surgery.adaptation.balanced_memory import BalancedMemory
from syncnorm.surgery.adaptation.domain_ensemble import domain_embeddings, domain_ensemble
from syncnorm.surgery.adaptation.recalibrate import layer_moments, recalibrate
from syncnorm.surgery.adaptation.tent import Tent, tent
from syncnorm.surgery.conversion.convert import batch_norms, convert, revert
from syncnorm.surgery.conversion.report import ConvertReport, convert_report
from syncnorm.surgery.folding.fold import fold
from syncnorm.surgery.folding.plan import FoldReport, fold_report
from syncnorm.surgery.freeze import freeze, frozen_layers, unfreeze
from syncnorm.surgery.gradient_clip import adaptive_gradient_clip
from syncnorm.surgery.uneven import join

__all__ = [
    "BalancedMemory",
    "ConvertReport",
    "FoldReport",
    "Tent",
    "accumulate",
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
    "join",
    "layer_moments",
    "recalibrate",
    "revert",
    "tent",
    "unfreeze",
]
