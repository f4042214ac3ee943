"""The domains world: one model trained in one place on several domains, tested on those and on unseen ones."""

from syncnorm.domains.adaptation import WAYS
from syncnorm.domains.world import WORLD, fit

__all__ = ["WAYS", "WORLD", "fit"]
