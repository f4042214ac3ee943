"""The domains world: one model, trained centrally on several domains and tested on those and on unseen ones."""

from syncnorm.domains.adaptation import ADAPTATIONS, Adaptation, TargetBatches, register_adaptation
from syncnorm.domains.world import WORLD, fit

__all__ = ["ADAPTATIONS", "WORLD", "Adaptation", "TargetBatches", "fit", "register_adaptation"]
