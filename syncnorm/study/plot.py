"""What all kinds of plots have in common: a plot is what the user asks for, its view is what a report shows.

A plot is a frozen dataclass of plain data, kept in `study.json`. It collects a study's rows into a view, which has
tables and a figure. The kinds are in `report/plots`, one a file; `syncnorm.register_plot` adds others.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from syncnorm.errors import UserError
from syncnorm.study.rows import Results
from syncnorm.study.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Axis = str | tuple[str, ...]
"""One field of a run ("norm", "world.skew"), or several for a choice that is spread over them: see `choice_label`."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What a plot shows of a study's rows: tables, and a figure if it has one."""

    name: str
    """Of its files: letters, digits, hyphens and underscores. The report puts the plot's number before it."""
    title: str
    caption: str = ""
    """What stands below the figure on the page; empty where the figure says it itself."""
    wide: bool = False
    """Whether the figure takes the whole width of the page."""
    empty: bool = False
    """Whether no finished run is in it."""

    def tables(self) -> list[Table]:
        """Return its tables, each with a name of its own that starts with the view's."""
        return []

    def figure(self) -> "Figure | None":
        """Draw and return its matplotlib figure, in the report's style; None for a plot that is a table alone.

        Import matplotlib in here and not above: a study file is imported to start it.
        """
        return None


@dataclass(frozen=True)
class Reads:
    """The names that a plot reads from a row."""

    metrics: tuple[str, ...] = ()
    """Of its metrics."""
    histories: tuple[str, ...] = ()
    """Of its history, one value an epoch or round."""
    profiles: tuple[str, ...] = ()
    """Of its details["profiles"], one value a layer."""


@dataclass(frozen=True)
class Plot(ABC):
    """What a user asks to see of a study. A subclass is a frozen dataclass whose fields are plain data.

    A field that is a sequence must be a tuple, since `study.json` has no other difference between the two.
    """

    kind: ClassVar[str] = ""
    """What `study.json` calls it; `register_plot` sets it."""

    where: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """Leaves out runs whose fields have other values; of a list of values, any will do."""
    title: str = field(default="", kw_only=True)
    """What stands above; left empty, the view makes one."""

    @abstractmethod
    def collect(self, results: Results) -> View:
        """Collect the rows that the plot is about; of a study that has just started there may be none."""

    def axes(self) -> tuple[Axis | None, ...]:
        """Return the axes whose values tell its runs apart."""
        return ()

    def averaged(self) -> tuple[str, ...]:
        """Return the fields whose runs count as one: their mean, where all of a seed have finished."""
        return ()

    def references(self) -> tuple[str, ...]:
        """Return the fields that pick the runs which it compares with."""
        return ()

    def reads(self) -> Reads:
        """Return the names that it shows of a row, so that a misspelt one is refused before anything is trained."""
        return Reads()

    def check(self, planned: Results) -> None:  # noqa: B027
        """Raise `UserError` for a plot that these runs cannot fill; their rows have no metrics yet."""

    def fields(self) -> tuple[str, ...]:
        """Return the fields that a run needs to be in the plot, each once."""
        axes = [name for axis in self.axes() for name in names_of(axis)]
        return tuple(dict.fromkeys([*axes, *self.averaged(), *self.where]))

    def fits(self, fields: Mapping[str, Any]) -> bool:
        """Return whether a run is in the plot: it has the plot's fields, and the values of `where`."""
        return all(name in fields for name in self.fields()) and agrees(fields, self.where)


def names_of(axis: Axis | None) -> tuple[str, ...]:
    """Return the fields of an axis."""
    return (axis,) if isinstance(axis, str) else axis or ()


def agrees(fields: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Return whether a run has all fields of `where`, each with the value that is wanted, or one of several."""
    return all(name in fields and _is_one_of(fields[name], wanted) for name, wanted in where.items())


def as_plain(plot: Plot) -> dict[str, Any]:
    """Return a plot as plain data: its kind and its fields.

    Raises:
        UserError: a class of plots that is not registered.
    """
    if "kind" not in type(plot).__dict__:  # an inherited kind is another class's
        name = type(plot).__name__
        raise UserError(f"the plot {name} is not registered: write @syncnorm.register_plot(...) above class {name}.")
    values = asdict(plot)
    common = {name: values.pop(name) for name in ("where", "title")}
    return {"kind": plot.kind, **values, **common}


def _is_one_of(value: Any, wanted: Any) -> bool:
    value, wanted = _as_lists(value), _as_lists(wanted)
    return bool(value == wanted or (isinstance(wanted, list) and value in wanted))


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple | list) else value
