"""A stand-in for torchvision, which timm imports and no model that is built here uses.

torchvision is built for one version of torch, and there is none beside some builds of torch. Where it cannot be
imported, `stand_in` makes every `import torchvision...` give a module whose attributes are empty classes.
"""

import enum
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

MODES = ("nearest", "nearest_exact", "bilinear", "bicubic", "box", "hamming", "lanczos")


class Nothing(type):
    """Makes classes whose attributes are the class itself."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class Empty(ModuleType):
    """A module that has every attribute: a class that does nothing."""

    __version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "InterpolationMode":
            value: Any = enum.Enum(name, {mode.upper(): mode.replace("_", "-") for mode in MODES})
        else:
            value = Nothing(name, (), {"__init__": lambda self, *args, **options: None})
        setattr(self, name, value)
        return value


class Finder(MetaPathFinder, Loader):
    """Finds torchvision and all modules in it."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """Return a module of ours for names of torchvision."""
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the empty module."""
        return Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module is there."""


def stand_in() -> None:
    """Let timm be imported where torchvision is not installed."""
    if "torchvision" not in sys.modules and find_spec("torchvision") is None:
        sys.meta_path.append(Finder())
