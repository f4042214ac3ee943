"""Fingerprints of users' code and files: a row is reused only if the same source code and data made it.

The fingerprint of a function or class is a hash of its source, of the parts of its module that it uses, and of what
those import from the user's other modules (not Python's, installed or syncnorm's; for code in an installed package:
other modules of the package). So an edit elsewhere in the file does not change it, and an edit of a helper module
does.
"""

import ast
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from syncnorm.registry import site_folder

DIGITS = 12
PACKAGE = Path(__file__).parent
PYTHON = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))


def code_fingerprint(item: Any) -> str:
    """Return the hash of the source of `item`: a function, a class, or an object that holds such."""
    return _hash(sorted(set(_texts(item))))


def files_fingerprint(path: Path) -> str:
    """Return the hash of a file's content, or of the names and contents of all files in a folder."""
    if path.is_file():
        return _hash([_content(path, path.stat().st_size, path.stat().st_mtime_ns)])
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    parts = [f"{file.relative_to(path)} {_content(file, *_state(file))}" for file in files]
    return _hash(parts)


def _state(file: Path) -> tuple[int, int]:
    return file.stat().st_size, file.stat().st_mtime_ns


@cache
def _content(file: Path, size: int, changed: int) -> str:
    """Return the hash of a file's content; a process reads an unchanged file only once."""
    digest = sha256()
    with file.open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _hash(texts: Iterable[str]) -> str:
    return sha256("\0".join(texts).encode()).hexdigest()[:DIGITS]


def _texts(item: Any) -> Iterator[str]:
    """Yield the source texts and plain values of an item."""
    item = inspect.unwrap(item) if callable(item) else item  # what functools.cache returns has a source of its own
    if isinstance(item, partial):
        yield from _texts(item.func)
        yield repr((item.args, sorted(item.keywords.items())))
    elif is_dataclass(item) and not isinstance(item, type):
        for field in fields(item):
            value = getattr(item, field.name)
            yield field.name
            yield from _texts(value) if callable(value) else [repr(value)]
    elif inspect.isclass(item) or inspect.isfunction(item):
        yield from _of_definition(item.__module__, item.__qualname__.partition(".")[0])
    else:
        yield from _of_definition(type(item).__module__, type(item).__qualname__.partition(".")[0])


def _of_definition(module: str, name: str) -> Iterator[str]:
    """Yield the source of a top-level name of a module, and of everything it uses."""
    home = sys.modules.get(module)
    file = getattr(home, "__file__", None)
    if not file or not file.endswith(".py"):
        yield f"{module}.{name}"
        return
    package = getattr(home, "__package__", None) or ""
    seen: set[tuple[str, str]] = set()
    todo = [(file, package, name)]
    while todo:
        file, package, name = todo.pop()
        if (file, name) in seen:
            continue
        seen.add((file, name))
        parts = _definitions(file, _state(Path(file)))
        known = parts.get(name)
        for node, text in known if known else [pair for pairs in parts.values() for pair in pairs]:
            yield text
            todo += [(file, package, used) for used in _names(node) if used in parts]
            todo += [found for imported in _imports(node, package) if (found := _local(*imported, file))]


Part = tuple[ast.AST, str]


@cache
def _definitions(file: str, state: tuple[int, int]) -> dict[str, list[Part]]:
    """Return the top-level statements of a file with their source, by the names that they define."""
    source = Path(file).read_text()
    lines = source.splitlines()
    found: dict[str, list[Part]] = {}
    for node in ast.parse(source).body:
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(one.lineno for one in decorators)])
        part = (node, "\n".join(line.rstrip() for line in lines[first - 1 : node.end_lineno]))
        for name in _defined(node):
            found.setdefault(name, []).append(part)
    return found


def _defined(node: ast.AST) -> set[str]:
    """Return the names that a statement defines; "" if it defines none, such as a call."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    stored = {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    return stored or {""}


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)}


def _imports(node: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """Yield the module and the name ("" for all of it) of everything that a statement imports."""
    for one in ast.walk(node):
        if isinstance(one, ast.Import):
            yield from ((alias.name, "") for alias in one.names)
        elif isinstance(one, ast.ImportFrom):
            base = one.module or ""
            if one.level:
                owner = package.split(".")[: len(package.split(".")) - one.level + 1]
                base = ".".join([*owner, *([base] if base else [])])
            for alias in one.names:
                inner = f"{base}.{alias.name}"
                yield (inner, "") if inner in sys.modules else (base, "" if alias.name == "*" else alias.name)


def _local(module: str, name: str, user: str) -> tuple[str, str, str] | None:
    """Return the file, package and name of an import if the file is part of the user's code."""
    try:
        home = sys.modules.get(module)
        spec = home.__spec__ if home is not None else importlib.util.find_spec(module)
        file = getattr(home, "__file__", None) or (spec.origin if spec else None)
    except (ImportError, ValueError, AttributeError):
        return None
    if not file or not file.endswith(".py") or not Path(file).is_file():
        return None
    path = Path(file).resolve()
    if PACKAGE in path.parents:
        return None
    if not _own(path, Path(user).resolve()):
        return None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return file, package, name


def _own(path: Path, user: Path) -> bool:
    """Return whether a file is neither Python's nor installed, or installed in the same package as `user`."""
    if site := site_folder(path):
        return site in user.parents and path.relative_to(site).parts[0] == user.relative_to(site).parts[0]
    return not any(folder in path.parents for folder in PYTHON)
