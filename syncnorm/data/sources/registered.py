"""All data sets by name: embedded, generated, and registered by users' modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, TypeVar

from syncnorm.data.embedded import shapes
from syncnorm.data.embedded.digits import DOMAINS, MAX_SIZE, MIN_SIZE, ORIGINS, SIZE, SUMMARIES
from syncnorm.data.embedded.signals import SIGNALS
from syncnorm.data.raw import Pixels, Signals
from syncnorm.data.sources.arrays import from_registered
from syncnorm.data.sources.cache import cached
from syncnorm.errors import UserError, unknown, with_article
from syncnorm.registry import Registry, check_named

Function = TypeVar("Function", bound=Callable[..., Any])
OFFERED = ("path", "size")
"""Fields of a request that a registered function gets if it has such parameters."""


@dataclass(frozen=True)
class Request:
    """A request for data: the fields of `config.Data` that a source may read, and the task."""

    name: str
    path: str = ""
    size: int | None = None
    label: str = ""
    natural: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    task: str = "classification"
    """The run's task, whose targets the data must have."""
    on_disk: bool = False
    """Whether samples lie in files (`Data.on_disk`)."""

    def refuse(self, *names: str, because: str) -> None:
        """Raise `UserError` if one of the fields `names` is given."""
        for name in names:
            if value := getattr(self, name):
                raise UserError(f"data.{name} is {value}: {because}, so leave it out.")


Read = Callable[[Request], Pixels | Signals]


def embedded_pixels(name: str, size: int = SIZE) -> Pixels:
    """Return the pixels of an embedded data set, from the cache if possible."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UserError(f"data.size is {size}: the embedded data can be {MIN_SIZE} to {MAX_SIZE} pixels wide.")
    return cached(f"{name}-{size}", lambda: DOMAINS[name](size))._replace(origin=ORIGINS.get(name))


def _read_embedded(request: Request) -> Pixels:
    _check_embedded(request)
    return embedded_pixels(request.name, request.size or SIZE)


def _read_shapes(request: Request) -> Pixels:
    _check_embedded(request)
    size = request.size or shapes.SIZE
    return cached(f"{shapes.NAME}-{size}", lambda: shapes.build(size))


def _read_generated(request: Request) -> Signals:
    _check_embedded(request)
    return without_size(request, SIGNALS[request.name]())


def _check_embedded(request: Request) -> None:
    if request.path:
        raise UserError(
            f"data.path is {request.path} but data.name is the embedded '{request.name}': give what lies there a "
            "name of its own, which results are kept under."
        )
    request.refuse("label", "natural", because=f"it names a column of a table, and '{request.name}' is none")
    request.refuse("options", because=f"they are for registered data sets, and '{request.name}' is embedded")


def without_size(request: Request, signals: Signals) -> Signals:
    """Return `signals`; raises `UserError` if a size is given, which is for images only."""
    if request.size is not None:
        raise UserError(
            f"data.size is {request.size}: size is for images, and data set '{request.name}' has signals of shape "
            f"{signals.train_x.shape[1:]}: leave it out."
        )
    return signals


@dataclass(frozen=True)
class BuiltIn:
    """The reader of an embedded or generated data set, with a one-line summary."""

    read: Read
    summary: str

    def __call__(self, request: Request) -> Pixels | Signals:
        """Read the data set."""
        return self.read(request)


def _generated(name: str) -> BuiltIn:
    kind, _, number = name.partition("-")
    what = {"activity": "wearable activity", "biosignal": "physiological signals"}[kind]
    return BuiltIn(_read_generated, f"generated {what} of person {int(number)}")


SOURCES: Registry[Read] = Registry(
    "data set",
    {
        **{name: BuiltIn(_read_embedded, SUMMARIES[name]) for name in DOMAINS},
        shapes.NAME: BuiltIn(_read_shapes, shapes.SUMMARY),
        **{name: _generated(name) for name in SIGNALS},
    },
)
"""Readers of data sets, by name."""
ON_REGISTRATION: list[Callable[[], None]] = []
"""Functions that drop cached data sets; called when a name is registered, since it may replace a cached one."""


@dataclass(frozen=True)
class Registered:
    """The reader of a registered data set: its function, whose source code is part of a row's fingerprint."""

    function: Callable[..., Any]

    def __call__(self, request: Request) -> Pixels | Signals:
        """Call the function with the arguments it needs, and check its result."""
        return _read_registered(self.function, request)


def register_data(name: str) -> Callable[[Function], Function]:
    """Register the decorated function as the data set `name`, for `data.name` and `syncnorm.data.load`.

        @syncnorm.register_data("two-moons")
        def two_moons(samples: int = 1000):
            x, y = sklearn.datasets.make_moons(samples, noise=0.2, random_state=0)
            return x, y

    The function gets the options of `data.options` by keyword, and `path` and `size` of `config.Data` if it has such
    parameters. `syncnorm.data.sources.arrays` describes its possible return values. Every process of a run calls it,
    so it must return the same data every time.

    Raises:
        UserError: a name that is taken or invalid; something that is no function.
    """
    check_named(name, "syncnorm.register_data")

    def register(function: Function) -> Function:
        if not callable(function):
            raise UserError(f"data set '{name}' is {with_article(type(function).__name__)}: register a function.")
        SOURCES.add(name, Registered(function))
        for drop in ON_REGISTRATION:
            drop()
        return function

    return register


def is_registered(name: str) -> bool:
    """Return whether a data set is a registered one."""
    return name in SOURCES and SOURCES.source(name) is not None


def _read_registered(function: Callable[..., Any], request: Request) -> Pixels | Signals:
    what = f"data set '{request.name}'"
    request.refuse("label", "natural", because=f"it names a column of a table, and {what} is registered")
    parameters = signature(function).parameters
    options = dict(request.options)
    for name in OFFERED:
        if name in parameters:
            options.setdefault(name, getattr(request, name))
        else:
            request.refuse(name, because=f"the function of {what} has no parameter '{name}'")
    if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        for option in options:
            if option not in parameters:
                if not parameters:
                    raise UserError(f"{what} takes no options: leave out '{option}'.")
                raise unknown(f"option of {what}", option, parameters)
    try:
        signature(function).bind(**options)
    except TypeError as error:
        raise UserError(f"{what}: {error}; give it in data.options.") from error
    return from_registered(function(**options), request.name, request.task, request.on_disk)
