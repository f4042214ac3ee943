"""Layers of a model that FSDP2 (`fully_shard`) shards: which can be replaced, and how FSDP2 finds the new ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from syncnorm._torch import fully_sharded, move_sharded
from syncnorm.errors import UserError, with_article
from syncnorm.surgery.layers.replace import replace_modules


def put_shards_back(model: nn.Module) -> None:
    """Let every layer of a model in FSDP2 hold its shards, as between two steps: after a forward, some hold all."""
    for module in fully_sharded(model):
        module.reshard()


def check_shards(model: nn.Module, swaps: Mapping[nn.Module, nn.Module], names: Mapping[nn.Module, str]) -> None:
    """Raise `UserError` for a swap in a model in FSDP2 after which it could not serve the new layer.

    FSDP2 shards, gathers and reduces the parameters that there were, and each module that it was applied to has its
    hooks and its class.
    """
    sharded = set(fully_sharded(model))
    for old, new in swaps.items() if sharded else ():
        if old in sharded:
            raise UserError(
                f"layer '{names[old]}' is sharded by itself, by fully_shard: change the model "
                "before you shard it, or shard a part that holds the layer."
            )
        before, after = ({key: id(p) for key, p in layer.named_parameters() if p is not None} for layer in (old, new))
        if before != after:
            differ = sorted(key for key, _ in before.items() ^ after.items())
            raise UserError(
                f"layer '{names[old]}' would become {with_article(type(new).__name__)}, with other parameters than "
                f"fully_shard knows ({', '.join(dict.fromkeys(differ))}): change the model before you shard it."
            )


def replace_layers(model: nn.Module, swaps: dict[nn.Module, nn.Module], names: Mapping[nn.Module, str]) -> nn.Module:
    """Do what `replace_modules` does, for a model in FSDP2 too.

    Raises:
        UserError: what `check_shards` raises; the model is then unchanged.
    """
    check_shards(model, swaps, names)
    replaced = replace_modules(model, swaps)
    move_sharded(replaced, swaps)
    return replaced
