"""Choose some of a model's layers: by name, type, depth or a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from syncnorm.errors import UserError
from syncnorm.surgery.layers.substitute import original_layer

Where = str | type[nn.Module] | slice | Callable[[str, nn.Module], bool] | Iterable[str | type[nn.Module]]
"""A pattern of names such as "*.bn1" (as in a shell: * and ? stand for any characters), or the name of a part, which
selects everything within; a class; a list of these, of which one is enough; a slice of positions among the layers in
the model's order; a function of name and layer.
Class and function see a converted layer as it was before."""


def selected(model: nn.Module, layers: dict[nn.Module, str], where: Where | None) -> dict[nn.Module, str]:
    """Return those of `layers` (with their names) that `where` selects; all of them for None.

    Raises:
        UserError: `where` is none of what it may be, fails, or selects no layer although there are some.
    """
    if where is None or not layers:
        return layers
    order = [module for module in model.modules() if module in layers]
    if isinstance(where, slice):
        chosen = {layer: layers[layer] for layer in order[where]}
    else:
        chosen = {layer: layers[layer] for layer in order if _selects(where, layers[layer], layer)}
    if not chosen:
        some = ", ".join(f"'{layers[layer]}'" for layer in order[:3])
        raise UserError(f"where={where!r} selects none of the {len(order)} layers to choose from, such as {some}.")
    return chosen


def _selects(where: Any, name: str, layer: nn.Module) -> bool:
    if isinstance(where, str):
        return fnmatchcase(name, where) or fnmatchcase(name, f"{where}.*")
    if isinstance(where, type) and issubclass(where, nn.Module):
        return isinstance(layer, where) or isinstance(original_layer(layer), where)
    if isinstance(where, list | tuple | set | frozenset):
        return any(_selects(part, name, layer) for part in where)
    if not callable(where) or isinstance(where, type | nn.Module):
        raise UserError(
            f"where is {where!r}: give a pattern of names, a class of layers, a list of these, a slice, or a "
            "function of a layer's name and the layer."
        )
    try:
        return bool(where(name, original_layer(layer)))
    except Exception as error:
        raise UserError(f"where fails on layer '{name}' ({type(error).__name__}: {error}).") from error
