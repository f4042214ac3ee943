"""syncnorm: whose samples share batch statistics?

The names below need torch alone. `syncnorm.data`, `syncnorm.training` and `syncnorm.study` are imported by name.
"""

from syncnorm.moments import Moments
from syncnorm.norms import SyncBatchNorm

__all__ = ["Moments", "SyncBatchNorm"]
