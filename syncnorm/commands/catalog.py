"""`syncnorm list`: every name that a run may use, with a one-line summary and its origin."""

import inspect
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from syncnorm.errors import unknown
from syncnorm.registry import GROUP, HOMES, Registry, registry_of

SUMMARIES = ("summary", "source")
"""Fields of a row that can serve as its one-line summary."""


def catalog(arguments: list[str]) -> int:
    """Print all names, or those of one kind, e.g. `syncnorm list norm`; return the exit code."""
    for kind in [_kind(argument) for argument in arguments] or HOMES:
        print("\n".join(_lines(kind, registry_of(kind))), end="\n\n")
    if not arguments:
        print("\n".join(_plugins()))
    return 0


def _kind(argument: str) -> str:
    """Return the kind that an argument names, in singular or plural."""
    singular = {"policies": "policy", **{f"{kind}s": kind for kind in HOMES}}.get(argument, argument)
    if singular not in HOMES:
        raise unknown("kind of name", argument, HOMES)
    return singular


def _lines(kind: str, registry: Registry[Any]) -> Iterator[str]:
    yield f"{kind} ({len(registry)})"
    width = max((len(name) for name in registry), default=0)
    for name in registry:
        source = registry.source(name)
        from_ = f" [{source.module}]" if source else ""
        yield f"  {name:<{width}}  {summary(registry[name])}{from_}".rstrip()


def summary(item: Any) -> str:
    """Return a one-line summary of an item: from its row, or the first line of its docstring."""
    for name in SUMMARIES:
        if isinstance(text := getattr(item, name, None), str) and text:
            return text
    documented = next((one for one in _documented(item) if inspect.getdoc(one)), None)
    text = inspect.getdoc(documented) or "" if documented is not None else ""
    first = text.partition("\n\n")[0].replace("\n", " ")
    sentence = re.split(r"\. (?=[A-Z])", first)[0]
    return sentence.rstrip(" .,;:") or getattr(item, "statistics", "")


def _documented(item: Any) -> Iterator[Any]:
    """Yield the objects that may have an item's docstring: itself, or the function or class in its row."""
    for name in ("layer", "factory", "adapt", "load", "partition", "function"):
        if callable(found := getattr(item, name, None)):
            yield getattr(found, "func", found)
    if inspect.isclass(item) or inspect.isroutine(item):
        yield item


def _plugins() -> Iterator[str]:
    found = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    yield f"plugin ({len(found)})"
    for point in found:
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.module
        yield f"  {point.name}  {package}: {point.value}"
