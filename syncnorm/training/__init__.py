"""The devices world: one model on many ranks, real or virtual, trained with Lightning."""

from syncnorm.training.batches import RankBatches, evaluate
from syncnorm.training.classifier import Classifier
from syncnorm.training.fit import fit
from syncnorm.training.layer_sync import SyncNorm
from syncnorm.training.prepare import check, forget

__all__ = ["Classifier", "RankBatches", "SyncNorm", "check", "evaluate", "fit", "forget"]
