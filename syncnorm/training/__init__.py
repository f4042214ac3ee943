"""Training code that all worlds share: the classifier, the optimiser, building a model, Lightning's Trainer.

What needs Lightning is imported at first use. `fit` trains a run of devices: it is defined in `syncnorm.devices`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from syncnorm.training.evaluation import evaluate

if TYPE_CHECKING:
    from syncnorm.config import Result
    from syncnorm.training.lightning.accumulation import ExactAccumulation
    from syncnorm.training.lightning.classifier import Classifier
    from syncnorm.training.lightning.freezing import FreezeNorms
    from syncnorm.training.lightning.layer_sync import SyncNorm

    fit: Callable[..., Result]

_HOMES = {
    "ExactAccumulation": "syncnorm.training.lightning.accumulation",
    "Classifier": "syncnorm.training.lightning.classifier",
    "FreezeNorms": "syncnorm.training.lightning.freezing",
    "SyncNorm": "syncnorm.training.lightning.layer_sync",
    "fit": "syncnorm.devices",
}

__all__ = ["Classifier", "ExactAccumulation", "FreezeNorms", "SyncNorm", "evaluate", "fit"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'syncnorm.training' has no attribute '{name}'")
