"""`Trainer(sync_batchnorm=True)` with our layer: on CPU as well, and with the user's own classes back at the end."""

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn

from syncnorm.surgery import convert, revert


class SyncNorm(TorchSyncBatchNorm):
    """A Lightning LayerSync plugin: `Trainer(sync_batchnorm=True, plugins=[SyncNorm()])`.

    Replaces every batch norm by `syncnorm.SyncBatchNorm` while the Trainer fits, and restores afterwards the class
    each layer came from, with what it learnt. (Lightning accepts a plugin beside `sync_batchnorm=True` only where it
    is a TorchSyncBatchNorm, hence the base class; nothing of it is used.)
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the batch norms of `model`."""
        return convert(model, "sync_bn")

    def revert(self, model: nn.Module) -> nn.Module:
        """Restore the batch norms of `model`."""
        return revert(model)
