"""Put modules in the place of others, wherever a model holds them, so that no replaced module runs any more.

model = replace_modules(model, {old: new})
"""

from __future__ import annotations

import copy
import sys
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import (
    BuiltinMethodType,
    CellType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from syncnorm.errors import UserError

_LEAVES = (Tensor, type, ModuleType, str, bytes, int, float, complex, type(None), torch.dtype, torch.device)
# Most of what there is, told by a look at its exact type.
_PLAIN = frozenset({str, bytes, int, float, bool, type(None), Tensor, nn.Parameter})
# Objects of these packages hold much and no layers of a model (a logger knows all loggers, a loader all samples).
_CLOSED = (set(sys.stdlib_module_names) - {"types", "argparse", "collections"}) | {
    *("torch", "numpy", "lightning", "pytorch_lightning", "lightning_fabric")
}
# What a module's forward calls on itself, so that a bound forward that somebody kept is seen as well.
METHODS = ("forward", "_check_input_dim", "_conv_forward", "check", "_check")


def replace_modules(model: nn.Module, swaps: dict[nn.Module, nn.Module]) -> nn.Module:
    """Replace modules wherever `model` holds them, and return the model, or its own swap.

    Looked into are children, attributes of modules and of plain objects, lists, tuples, dicts, sets and deques
    however nested, `functools.partial`, bound methods, and what functions close over or have as defaults. A replaced
    module that runs all the same (a global variable holds it, or another model) raises a `UserError` that names it.
    A module that is inside its own replacement may run.
    """
    names = {module: name for name, module in model.named_modules()}
    swaps = {old: new for old, new in swaps.items() if new is not old}
    for new in swaps.values():
        _revive(new)
    search = _Search(swaps)
    search.run(model)
    for old, new in swaps.items():
        if all(old is not inner for inner in new.modules()):
            _retire(old, names.get(old, ""), new)
    return swaps.get(model, model)


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return `copy.deepcopy(model, memo)`, whose functions hold the layers of the copy.

    Python does not copy functions: those in a plain copy would go on running the original's layers.
    """
    memo = dict(memo or {})
    twin = copy.deepcopy(model, memo)
    if reaches(twin, set(model.modules())):
        _Copy({module: memo[id(module)] for module in model.modules() if id(module) in memo}, memo).run(twin)
    return twin


def reaches(model: nn.Module, modules: set[nn.Module]) -> bool:
    """Return whether `model` holds any of `modules`, in any of the places that `replace_modules` looks into."""
    search = _Search({})
    search.run(model)
    return any(id(module) in search.seen for module in modules)


@dataclass
class _Retired:
    """Stands in place of a replaced module's methods; `before` is what the module itself had there, if anything."""

    sentence: str
    before: Any = None

    def __call__(self, *args: Any, **options: Any) -> NoReturn:
        raise UserError(self.sentence)


def _retire(old: nn.Module, name: str, new: nn.Module) -> None:
    kinds = f"{type(old).__name__}, by {type(new).__name__}"
    sentence = (
        f"layer '{name}' was replaced ({kinds}), and the forward still reaches the old one, through a global "
        "variable, a class, a cache or another model: let the forward take it from the model's own attributes."
        if name
        else f"this module was replaced ({kinds}): use the one that was returned instead."
    )
    for method in METHODS:
        if hasattr(type(old), method) and not isinstance(vars(old).get(method), _Retired):
            vars(old)[method] = _Retired(sentence, vars(old).get(method))


def is_retired(module: nn.Module) -> bool:
    """Return whether `module` was replaced somewhere."""
    return isinstance(vars(module).get("forward"), _Retired)


def _revive(module: nn.Module) -> None:
    for method in METHODS:
        found = vars(module).get(method)
        if isinstance(found, _Retired):
            del vars(module)[method]
            if found.before is not None:
                vars(module)[method] = found.before


class _Search:
    """Goes through what a model holds, and puts new modules in place of old ones.

    What can be changed is changed in place; tuples, functions and the like are built anew for who holds them. Types
    are compared by `type`, since `isinstance` may run code of the object.
    """

    def __init__(self, swaps: dict[nn.Module, nn.Module]) -> None:
        self.swaps = {id(old): new for old, new in swaps.items()}
        # By id: what takes the place of an object. What is replaced is kept, since its id counts as long as it lives.
        self.seen: dict[int, Any] = {id(new): new for new in swaps.values()}
        self.kept: list[Any] = []
        self.pending: list[Any] = []

    def run(self, model: nn.Module) -> None:
        for module in list(model.modules()):
            self.renewed(module)
        self.finish()

    def finish(self) -> None:
        while self.pending:
            self._look_into(self.pending.pop())

    def renewed(self, value: Any) -> Any:
        """Return what takes the place of `value`: mostly itself."""
        kind = type(value)
        if kind in _PLAIN or issubclass(kind, _LEAVES):
            return value
        if kind in (tuple, list) and all(type(part) in _PLAIN for part in value):
            return value
        key = id(value)
        if key in self.swaps:
            return self.swaps[key]
        if key in self.seen:
            return self.seen[key]
        self.seen[key] = value  # a circle ends here
        new = self._built_anew(value, kind)
        if new is not value:
            self.seen[key] = new
            self.kept.append(value)
        return new

    def _built_anew(self, value: Any, kind: type) -> Any:
        if issubclass(kind, tuple):
            return self._tuple(value)
        if kind in (dict, list):
            self.pending.append(value)
            return value
        if kind is frozenset:
            found = frozenset(map(self.renewed, value))
            return value if found == value else found
        if kind is FunctionType:
            return self._function(value)
        if kind is MethodType:
            return self._method(value)
        if issubclass(kind, partial):
            return self._partial(value)
        if kind is MappingProxyType:
            options = {key: self.renewed(part) for key, part in value.items()}
            return value if all(options[key] is part for key, part in value.items()) else MappingProxyType(options)
        if kind is weakref.ref:
            target = value()
            return weakref.ref(self.swaps[id(target)]) if id(target) in self.swaps else value
        if kind in (BuiltinMethodType, MethodWrapperType):
            return self._builtin(value)
        self.pending.append(value)
        return value

    def _tuple(self, value: Any) -> Any:
        found = [self.renewed(part) for part in value]
        if all(new is old for new, old in zip(found, value, strict=True)):
            return value
        return tuple.__new__(type(value), found)

    def _method(self, value: Any) -> Any:
        owner, function = self.renewed(value.__self__), self.renewed(value.__func__)
        if owner is not value.__self__:
            return getattr(owner, value.__func__.__name__, value)
        return value if function is value.__func__ else MethodType(function, owner)

    def _builtin(self, value: Any) -> Any:
        self.renewed(value.__self__)  # such as a dict, which is changed in place
        return value

    def _partial(self, value: Any) -> Any:
        function, args = self.renewed(value.func), self.renewed(value.args)
        options = {key: self.renewed(part) for key, part in value.keywords.items()}
        same = function is value.func and args is value.args
        if same and all(options[key] is part for key, part in value.keywords.items()):
            return value
        new = type(value)(function, *args, **options)
        vars(new).update(vars(value))
        return new

    def _function(self, value: Any) -> Any:
        held = [] if value.__closure__ is None else [self._cell(cell) for cell in value.__closure__]
        defaults, by_name = self._held(value.__defaults__), value.__kwdefaults__ or {}
        options = {key: self._held(part) for key, part in by_name.items()}
        self._dict(vars(value))
        same = defaults is value.__defaults__ and all(options[key] is part for key, part in by_name.items())
        if same and all(new is old for new, old in zip(held, value.__closure__ or (), strict=True)):
            return value
        own = [_contents(cell) is value for cell in value.__closure__ or ()]  # where it calls itself
        cells = tuple(CellType() if mine else cell for mine, cell in zip(own, held, strict=True))
        new = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, cells or None)
        for mine, cell in zip(own, cells, strict=True):
            if mine:
                cell.cell_contents = new
        for key in ("__qualname__", "__doc__", "__annotations__", "__module__"):
            setattr(new, key, getattr(value, key))
        new.__kwdefaults__ = options or None
        vars(new).update(vars(value))
        return new

    def _held(self, value: Any) -> Any:
        """Return what takes the place of `value`, which a function holds."""
        return self.renewed(value)

    def _cell(self, cell: CellType) -> CellType:
        """Return the cell, or one with other contents, the same for all functions that share it."""
        if id(cell) not in self.seen:
            self.seen[id(cell)] = cell
            old = _contents(cell)
            new = self._held(old)
            if new is not old:
                self.seen[id(cell)] = CellType(new)
                self.kept.append(cell)
        found: CellType = self.seen[id(cell)]
        return found

    def _look_into(self, value: Any) -> None:
        kind = type(value)
        if issubclass(kind, dict):
            self._dict(value)
        elif issubclass(kind, list | deque):
            for place, old in enumerate(value):
                if (new := self.renewed(old)) is not old:
                    value[place] = new
        elif issubclass(kind, set):
            found = {self.renewed(part) for part in value}
            if found != value:
                value.clear()
                value.update(found)
        if kind in (dict, list, set):
            return
        if issubclass(kind, nn.Module) or kind.__module__.partition(".")[0] not in _CLOSED:
            self._attributes(value, kind)

    def _attributes(self, value: Any, kind: type) -> None:
        with suppress(AttributeError):  # it may have slots alone, or nothing
            self._dict(object.__getattribute__(value, "__dict__"))
        for slot in (own for base in kind.__mro__ for own in vars(base).values()):
            if type(slot) is MemberDescriptorType:
                with suppress(AttributeError):  # it may not be set
                    old = slot.__get__(value, kind)
                    if (new := self.renewed(old)) is not old:
                        slot.__set__(value, new)

    def _dict(self, value: dict[Any, Any]) -> None:
        held = list(dict.items(value))
        if any(type(key) is not str and self.renewed(key) is not key for key, _ in held):
            held = [(self.renewed(key), old) for key, old in held]
            value.clear()
            value.update(held)
        for key, old in held:
            if type(old) not in _PLAIN and (new := self.renewed(old)) is not old:
                dict.__setitem__(value, key, new)


class _Copy(_Search):
    """Builds anew, for a copied model, functions that hold modules of the original, with copies of what they hold."""

    def __init__(self, swaps: dict[nn.Module, nn.Module], memo: dict[int, Any]) -> None:
        super().__init__(swaps)
        self.seen.clear()  # the copies are looked into as well
        self.memo = memo

    def _function(self, value: Any) -> Any:
        return super()._function(value) if self._reached_from(value) else value

    def _builtin(self, value: Any) -> Any:
        return getattr(self._held(value.__self__), value.__name__) if self._reached_from(value) else value

    def _reached_from(self, value: Any) -> bool:
        search = _Search({})
        search.renewed(value)
        search.finish()
        return not self.swaps.keys().isdisjoint(search.seen)

    def _held(self, value: Any) -> Any:
        return self.renewed(copy.deepcopy(value, self.memo))


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # not filled yet
