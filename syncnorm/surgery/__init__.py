"""What you do to a model: find its norms by type, swap them, put them back."""

from syncnorm.surgery.convert import batch_norms, convert, revert

__all__ = ["batch_norms", "convert", "revert"]
