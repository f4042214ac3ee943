"""syncnorm: whose samples share batch statistics?

The names below need torch alone (`load_run` what a study needs), and import it when they are first used, so that the
command line starts at once.
`syncnorm.data`, `syncnorm.training` and `syncnorm.study` are imported by name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncnorm.moments import Moments
    from syncnorm.norms import (
        DomainBatchNorm,
        FrozenBatchNorm,
        GhostBatchNorm,
        HybridBatchNorm,
        ReferenceBatchNorm,
        SyncBatchNorm,
        domain,
        keep_domain,
        make_norm,
        norm_names,
        stream,
    )
    from syncnorm.surgery import (
        adaptive_gradient_clip,
        batch_norms,
        convert,
        domain_embeddings,
        domain_ensemble,
        fold,
        fold_report,
        layer_moments,
        recalibrate,
        revert,
        tent,
    )
    from syncnorm.training.saved import LoadedRun, load_run
    from syncnorm.worlds import fit

_HOMES = {
    "syncnorm.worlds": ["fit"],
    "syncnorm.training.saved": ["LoadedRun", "load_run"],
    "syncnorm.moments": ["Moments"],
    "syncnorm.norms": [
        "DomainBatchNorm",
        "FrozenBatchNorm",
        "GhostBatchNorm",
        "HybridBatchNorm",
        "ReferenceBatchNorm",
        "SyncBatchNorm",
        "domain",
        "keep_domain",
        "make_norm",
        "norm_names",
        "stream",
    ],
    "syncnorm.surgery": [
        "adaptive_gradient_clip",
        "batch_norms",
        "convert",
        "domain_embeddings",
        "domain_ensemble",
        "fold",
        "fold_report",
        "layer_moments",
        "recalibrate",
        "revert",
        "tent",
    ],
}

__all__ = [
    "DomainBatchNorm",
    "FrozenBatchNorm",
    "GhostBatchNorm",
    "HybridBatchNorm",
    "LoadedRun",
    "Moments",
    "ReferenceBatchNorm",
    "SyncBatchNorm",
    "adaptive_gradient_clip",
    "batch_norms",
    "convert",
    "domain",
    "domain_embeddings",
    "domain_ensemble",
    "fit",
    "fold",
    "fold_report",
    "keep_domain",
    "layer_moments",
    "load_run",
    "make_norm",
    "norm_names",
    "recalibrate",
    "revert",
    "stream",
    "tent",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'syncnorm' has no attribute '{name}'")
