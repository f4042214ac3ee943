"""The devices world: one model on many ranks, real or virtual, trained with Lightning."""

from syncnorm.devices.batches import RankBatches
from syncnorm.devices.world import WORLD, fit

__all__ = ["WORLD", "RankBatches", "fit"]
