"""What you do to a model: find its norms by type, swap them, put them back, measure what they see."""

from syncnorm.surgery.convert import batch_norms, convert, revert
from syncnorm.surgery.recalibrate import layer_moments, recalibrate

__all__ = ["batch_norms", "convert", "layer_moments", "recalibrate", "revert"]
