"""Training code that all worlds share: the classifier, the optimiser, building a model, Lightning's Trainer.

`fit` trains a run of devices: it is defined in `syncnorm.devices` and imported at first use.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from syncnorm.training.classifier import Classifier
from syncnorm.training.evaluation import evaluate
from syncnorm.training.freezing import FreezeNorms
from syncnorm.training.layer_sync import SyncNorm

if TYPE_CHECKING:
    from syncnorm.config import Result

    fit: Callable[..., Result]

__all__ = ["Classifier", "FreezeNorms", "SyncNorm", "evaluate", "fit"]


def __getattr__(name: str) -> Any:
    if name == "fit":
        return import_module("syncnorm.devices").fit
    raise AttributeError(f"module 'syncnorm.training' has no attribute '{name}'")
