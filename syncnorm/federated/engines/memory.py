"""What layers keep beside parameters and buffers, such as past steps: no client may train with another's."""

import copy
from typing import Any

from torch import nn

from syncnorm.errors import UserError


def keeping(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers with such state, by name (`training.checkpoints` says how a layer has it)."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if hasattr(layer, "remember") or type(layer).get_extra_state is not nn.Module.get_extra_state
    }


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


def check_without_memory(model: nn.Module) -> None:
    """Raise `UserError` if a layer has state that clients in one batched step cannot have of their own."""
    for name, layer in keeping(model).items():
        raise UserError(
            f"layer '{name}' ({type(layer).__name__}) keeps more than parameters and buffers, which "
            "clients in one batched step cannot have of their own: set engine to loop, or choose another norm."
        )
