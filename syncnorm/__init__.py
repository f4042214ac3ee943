"""syncnorm: whose samples share batch statistics?

The names below need torch alone. `syncnorm.data`, `syncnorm.training` and `syncnorm.study` are imported by name.
"""

from syncnorm.moments import Moments
from syncnorm.norms import GhostBatchNorm, SyncBatchNorm, make_norm, norm_names
from syncnorm.surgery import batch_norms, convert, revert

__all__ = [
    "GhostBatchNorm",
    "Moments",
    "SyncBatchNorm",
    "batch_norms",
    "convert",
    "make_norm",
    "norm_names",
    "revert",
]
