"""Names of norms, models, policies, ...: built-in ones, and those that users' modules register.

A module that registers something (a study's own file, a module that it imports, an installed package with an entry
point in the group `syncnorm.plugins`) is imported again in every process that trains a run: a parent passes
`environment_of_plugins` to its children, and they call `load_plugins`.
"""

import json
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Generic, TypeVar

from syncnorm.errors import UserError, unknown

GROUP = "syncnorm.plugins"
"""The group of entry points in which an installed package registers its module."""
VARIABLE = "SYNCNORM_PLUGINS"
"""The environment variable that lists the modules that have registered something, as JSON."""
PATH = "SYNCNORM_PATH"
"""The environment variable with the folders in which Python finds modules."""
OURS = "syncnorm"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Source:
    """The module that registered something; `file` is empty if it has none, as in an interactive session."""

    module: str
    file: str


class Registry(Mapping[str, Item], Generic[Item]):
    """The items of one kind by name: a mapping to which names can be added.

    Looking up an unknown name, or listing all names, loads the plugins first.

    Args:
        what: the word for such a name in messages, e.g. "norm".
        builtin: syncnorm's own items.
    """

    def __init__(self, what: str, builtin: Mapping[str, Item]) -> None:
        self.what = what
        self._items: dict[str, Item] = dict(builtin)
        self._sources: dict[str, Source] = {}
        REGISTRIES[what] = self

    def add(self, name: str, item: Item) -> None:
        """Register `item` as `name`, and remember the calling module.

        Raises:
            UserError: an invalid name, or one that another module has registered.
        """
        source = _caller()
        if (
            not isinstance(name, str)
            or not name
            or name.startswith("-")
            or any(sign.isspace() or sign in ",+:=/" for sign in name)
        ):
            raise UserError(
                f"{self.what} {name!r}: a name is a text without spaces or , + : = / and with no - at its start"
            )
        if name in self._items and (name not in self._sources or not _same(self._sources[name], source)):
            owner = self.source(name)
            by = f"by {owner.module}" if owner else "by syncnorm itself"
            raise UserError(f"{self.what} '{name}' is registered already, {by}: choose another name.")
        self._items[name] = item
        self._sources[name] = source

    def __setitem__(self, name: str, item: Item) -> None:
        """Register `item` as `name`: what `add` does."""
        self.add(name, item)

    def source(self, name: str) -> Source | None:
        """Return the module that registered `name`; None for syncnorm's own."""
        return self._sources.get(name)

    def __getitem__(self, name: str) -> Item:
        if name not in self:
            raise unknown(self.what, str(name), self)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._items:
            load_plugins()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(self._items)

    def __len__(self) -> int:
        load_plugins()
        return len(self._items)


def check_named(name: Any, decorator: str) -> None:
    """Raise `UserError` if a decorator that takes a name was used without one."""
    if callable(name):
        raise UserError(
            f'{decorator} needs a name: write @{decorator}("{getattr(name, "__name__", "name").lower()}").'
        )


REGISTRIES: dict[str, Registry[Any]] = {}
"""The imported registries, by kind."""
HOMES = {
    "norm": ("syncnorm.norms.registry", "norm"),
    "model": ("syncnorm.models.registry", "model"),
    "task": ("syncnorm.tasks", "task"),
    "policy": ("syncnorm.federated.policies", "federated policy"),
    "algorithm": ("syncnorm.federated.algorithms", "algorithm"),
    "aggregation": ("syncnorm.federated.aggregations", "aggregation"),
    "attack": ("syncnorm.federated.attacks", "attack"),
    "partition": ("syncnorm.data", "partition method"),
    "data": ("syncnorm.data", "data set"),
    "metric": ("syncnorm.training.metrics", "metric"),
    "adaptation": ("syncnorm.domains.adaptation", "adaptation"),
    "baseline": ("syncnorm.baselines", "baseline"),
    "plot": ("syncnorm.study", "plot"),
    "executor": ("syncnorm.study.run.executors.registry", "executor"),
    "check": ("syncnorm.doctor.registry", "check"),
}
"""For each kind, the module that creates its registry, and the registry's own word for it."""


def registry_of(kind: str) -> Registry[Any]:
    """Return the registry of a kind of name, one of `HOMES`."""
    module, what = HOMES[kind]
    import_module(module)
    return REGISTRIES[what]


def sources() -> list[Source]:
    """Return the modules that have registered something in this process, each once."""
    found = (source for registry in REGISTRIES.values() for source in registry._sources.values())
    return list(dict.fromkeys(found))


def environment_of_plugins() -> dict[str, str]:
    """Return the environment variable that tells child processes the registered names.

    Raises:
        UserError: a registering module that no other process can import.
    """
    for source in sources():
        if not source.file:
            raise UserError(
                f"something is registered in {source.module}, which is no file, so other processes cannot know it: "
                "move it into a module and import that."
            )
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return {PATH: path, VARIABLE: json.dumps([asdict(source) for source in sources()])}


def environment_of_children() -> dict[str, str]:
    """Return the environment of a child Python process that trains, tracks or reports.

    The child finds the same modules. The working directory and the study's folder come last on its path, so that a
    file there called `html.py`, say, does not hide Python's own.
    """
    own, inherited = str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")
    installed = Path(own) in SITES
    path = inherited if installed else os.pathsep.join(filter(None, (inherited, own)))
    return {**os.environ, **environment_of_plugins(), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


SITES = tuple(dict.fromkeys(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")))
NAMES_OF_SITES = ("site-packages", "dist-packages")


def site_folder(file: Path) -> Path | None:
    """Return the folder of installed packages that a file lies in; None for a file of somebody's own.

    It need not be this interpreter's: one environment may build on another, and a user has a folder of packages too.
    """
    return next((one for one in file.resolve().parents if one in SITES or one.name in NAMES_OF_SITES), None)


_state = {"loaded": False, "importing": ""}


def load_plugins() -> None:
    """Import the modules that register names: those of the parent process, and those of installed packages.

    Does so once per process. An installed plugin that cannot be imported gives a warning, and its names stay unknown.

    Raises:
        UserError: a module that the parent process could import, but this one cannot; an environment that no parent
            process has made.
    """
    if _state["loaded"]:
        return
    _state["loaded"] = True  # set first: a plugin may look up a name while it is imported
    extend_path()
    for source in _given():
        _state["importing"] = source["file"]
        try:
            import_source(Source(**source))
        except UserError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"{source['file']}, which registers names, cannot be imported here: {what}.") from error
        finally:
            _state["importing"] = ""
    for point in entry_points(group=GROUP):
        _load(point)


def _given() -> list[dict[str, str]]:
    """Return the sources that the parent process has given. Raises `UserError` for a variable that it did not set."""
    try:
        given: list[dict[str, str]] = json.loads(os.environ.get(VARIABLE, "[]"))
        [Source(**source) for source in given]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"the environment's {VARIABLE} is set by syncnorm for its own processes, and has something else here: "
            "unset it, and import your plugins in the study's file."
        ) from error
    return given


def extend_path() -> None:
    """Append the parent process's module folders to this one's path."""
    folders = filter(None, os.environ.get(PATH, "").split(os.pathsep))
    sys.path += [folder for folder in folders if folder not in sys.path]


def refuse_while_importing(what: str) -> None:
    """Raise `UserError` if a module that is imported only for its names starts work."""
    if file := _state["importing"]:
        raise UserError(
            f"{file} calls {what} while a worker imports it for the names that it registers: write the call under "
            "if __name__ == '__main__'."
        )


def _load(point: EntryPoint) -> None:
    """Import a package's module; if the entry point names a function, call it."""
    try:
        found = point.load()
        if callable(found):
            found()
    except Exception as error:
        package = point.dist.name if point.dist else point.module
        what = f"{type(error).__name__}: {error}"
        warnings.warn(f"plugin '{point.name}' of package {package} cannot be loaded: {what}", stacklevel=2)


def import_source(source: Source) -> None:
    """Import the module of `source`, by its name if Python finds the same file that way, else by its file."""
    path = Path(source.file).resolve()
    for module in list(sys.modules.values()):
        if (file := getattr(module, "__file__", None)) and Path(file).resolve() == path:
            return
    if source.module != "__main__" and _is_found(source.module, path):
        import_module(source.module)
        return
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_{abs(hash(str(path))):x}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _is_found(name: str, path: Path) -> bool:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path


def _caller() -> Source:
    """Return the module outside syncnorm from which a registration came."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == OURS:
        frame = frame.f_back
    spec, file = frame.f_globals.get("__spec__"), frame.f_globals.get("__file__") or ""
    name = spec.name if spec else frame.f_globals.get("__name__", "?")  # of `python -m a.b`, a.b and not __main__
    return Source(name, file if Path(file).is_file() else "")


def _same(one: Source, other: Source) -> bool:
    """Return whether two registrations come from one file (imported twice, or edited in between)."""
    return one == other or (bool(one.file) and Path(one.file).resolve() == Path(other.file).resolve())
