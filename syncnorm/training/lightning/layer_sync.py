"""`Trainer(sync_batchnorm=True)` with syncnorm's layer: it also works on CPU, and restores the user's classes at the
end."""

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import nn

from syncnorm.norms import SyncBatchNorm
from syncnorm.surgery import batch_norms
from syncnorm.surgery.conversion.convert import convert_layers, converted_layers, revert_layers


class SyncNorm(TorchSyncBatchNorm):
    """A Lightning LayerSync plugin: `Trainer(sync_batchnorm=True, plugins=[SyncNorm()])`.

    Replaces every batch norm by `syncnorm.SyncBatchNorm` while the Trainer fits, and afterwards restores each layer's
    class, with the learnt state. Norms that `syncnorm.convert` has put into the model are never changed. (Lightning
    accepts a plugin together with `sync_batchnorm=True` only if it is a TorchSyncBatchNorm, hence the base class;
    nothing of it is used.)
    """

    def __init__(self) -> None:
        super().__init__()
        self._chosen_before: set[nn.Module] = set()

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the batch norms of `model`."""
        self._chosen_before = set(converted_layers(model))
        layers = {
            layer: name
            for name, layer in batch_norms(model).items()
            if layer not in self._chosen_before and not isinstance(layer, SyncBatchNorm)
        }
        return convert_layers(model, layers, "sync_bn", {})

    def revert(self, model: nn.Module) -> nn.Module:
        """Restore the batch norms of `model`."""
        converted = converted_layers(model)
        return revert_layers(model, {layer: converted[layer] for layer in converted.keys() - self._chosen_before})
