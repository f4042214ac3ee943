"""syncnorm: whose samples share batch statistics?

The names below import torch at first use, so that the command line starts quickly. Most need torch alone; `fit`,
`load_run` and `register_adaptation` also need the packages of a study. Import `syncnorm.data`, `syncnorm.training`
and `syncnorm.study` by name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from syncnorm.baselines import register_baseline
    from syncnorm.data import register_data, register_partition
    from syncnorm.doctor import diagnose, register_check
    from syncnorm.domains.adaptation import register_adaptation
    from syncnorm.federated.aggregations import register_aggregation
    from syncnorm.federated.algorithms import register_algorithm
    from syncnorm.federated.attacks import register_attack
    from syncnorm.federated.policies import register_policy
    from syncnorm.models.registry import register_model
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
        keep_mask,
        make_norm,
        mask,
        norm_names,
        register_norm,
        stream,
    )
    from syncnorm.study.report.plots import register_plot
    from syncnorm.study.run.executors.registry import register_executor
    from syncnorm.surgery import (
        accumulate,
        adaptive_gradient_clip,
        batch_norms,
        convert,
        convert_report,
        domain_embeddings,
        domain_ensemble,
        fold,
        fold_report,
        freeze,
        frozen_layers,
        join,
        layer_moments,
        recalibrate,
        revert,
        tent,
        unfreeze,
    )
    from syncnorm.tasks import Task, register_task
    from syncnorm.training.metrics import register_metric
    from syncnorm.training.saved import LoadedRun, load_run
    from syncnorm.worlds import fit

__version__ = "0.1.0"

_HOMES = {
    "syncnorm.data": ["register_data", "register_partition"],
    "syncnorm.baselines": ["register_baseline"],
    "syncnorm.worlds": ["fit"],
    "syncnorm.federated.aggregations": ["register_aggregation"],
    "syncnorm.federated.algorithms": ["register_algorithm"],
    "syncnorm.federated.attacks": ["register_attack"],
    "syncnorm.federated.policies": ["register_policy"],
    "syncnorm.doctor": ["diagnose", "register_check"],
    "syncnorm.domains.adaptation": ["register_adaptation"],
    "syncnorm.models.registry": ["register_model"],
    "syncnorm.tasks": ["Task", "register_task"],
    "syncnorm.training.metrics": ["register_metric"],
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
        "keep_mask",
        "make_norm",
        "mask",
        "norm_names",
        "register_norm",
        "stream",
    ],
    "syncnorm.study.report.plots": ["register_plot"],
    "syncnorm.study.run.executors.registry": ["register_executor"],
    "syncnorm.surgery": [
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
    "Task",
    "accumulate",
    "adaptive_gradient_clip",
    "batch_norms",
    "convert",
    "convert_report",
    "diagnose",
    "domain",
    "domain_embeddings",
    "domain_ensemble",
    "fit",
    "fold",
    "fold_report",
    "freeze",
    "frozen_layers",
    "join",
    "keep_domain",
    "keep_mask",
    "layer_moments",
    "load_run",
    "make_norm",
    "mask",
    "norm_names",
    "recalibrate",
    "register_adaptation",
    "register_aggregation",
    "register_algorithm",
    "register_attack",
    "register_baseline",
    "register_check",
    "register_data",
    "register_executor",
    "register_metric",
    "register_model",
    "register_norm",
    "register_partition",
    "register_plot",
    "register_policy",
    "register_task",
    "revert",
    "stream",
    "tent",
    "unfreeze",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'syncnorm' has no attribute '{name}'")
