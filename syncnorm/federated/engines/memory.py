"""What layers keep beside parameters and buffers, such as past steps: no client may train with another's."""

import copy
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from syncnorm.errors import UserError
from syncnorm.training.stacked.models import keeping

INSTEAD = "set engine to loop, or "
"""What helps where one step need not serve all clients."""


class Memory:
    """What a model's layers keep before any client trains, for each client to begin with."""

    def __init__(self, model: nn.Module) -> None:
        layers: list[Any] = list(keeping(model).values())
        own = [layer for layer in layers if hasattr(layer, "remember")]
        self._kept = [(layer, copy.deepcopy(layer.remember())) for layer in own]
        self._extra = [(layer, copy.deepcopy(layer.get_extra_state())) for layer in layers if layer not in own]

    def restore(self) -> None:
        """Let the layers forget what they have seen since."""
        for layer, state in self._kept:
            layer.recall(copy.deepcopy(state))
        for layer, state in self._extra:
            layer.set_extra_state(copy.deepcopy(state))


def check_without_memory(model: nn.Module, instead: str = INSTEAD) -> None:
    """Raise `UserError` if a layer has state that clients in one batched step cannot have of their own; `instead` is
    what the sentence advises before another norm."""
    for name, layer in keeping(model).items():
        raise UserError(
            f"layer '{name}' ({type(layer).__name__}) keeps more than parameters and buffers, which "
            f"clients in one batched step cannot have of their own: {instead}choose another norm."
        )


def check_momentum(model: nn.Module, instead: str = INSTEAD) -> None:
    """Raise `UserError` if a batch norm has no momentum: PyTorch's then reads its count of batches as a number, which
    no batched step can."""
    for name, layer in model.named_modules():
        torchs = isinstance(layer, _BatchNorm) and type(layer).forward is _BatchNorm.forward
        if torchs and layer.track_running_stats and layer.momentum is None:
            raise UserError(
                f"layer '{name}' ({type(layer).__name__}) has momentum None, the mean over all batches, which "
                f"clients in one batched step cannot take: {instead}give it a momentum, such as 0.1."
            )
