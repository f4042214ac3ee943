"""Select layers of a model: by name, by type, or by a predicate."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from syncnorm.errors import UserError, unknown

Rule = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Where = Rule | Iterable[Rule]
"""A pattern of names, a type of layers, a predicate of name and layer, or several of them.

"backbone" selects `backbone` and every layer within; "*.bn1" is a pattern as of file names. A layer is selected if
any of several rules selects it.
"""


def selected(layers: Mapping[str, nn.Module], where: Where | None) -> dict[str, nn.Module]:
    """Return those of `layers` that `where` selects, by name; None selects all.

    Raises:
        UserError: a rule that selects none of them.
    """
    if where is None:
        return dict(layers)
    rules: list[Rule] = [where] if isinstance(where, str) or callable(where) else list(where)
    names: set[str] = set()
    for rule in rules:
        found = {name for name, layer in layers.items() if _selects(rule, name, layer)}
        if not found and isinstance(rule, str):
            raise unknown("layer, in where,", rule, layers)
        if not found:
            raise UserError(f"where selects none of the {len(layers)} layers: {rule!r} is false for all of them.")
        names |= found
    return {name: layer for name, layer in layers.items() if name in names}


def _selects(rule: Rule, name: str, layer: nn.Module) -> bool:
    if isinstance(rule, str):
        return fnmatchcase(name, rule) or fnmatchcase(name, f"{rule}.*")
    if isinstance(rule, type):
        return isinstance(layer, rule)
    return bool(rule(name, layer))
