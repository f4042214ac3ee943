"""The base of all plots: a plot is the user's request, and its view is what a report shows.

A plot is a frozen dataclass of plain data, stored in `study.json`. It collects a study's rows into a view, which has
tables and a figure. The kinds are in `report/plots`, one file each; `syncnorm.register_plot` adds others.
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
"""One field of a run ("norm", "world.skew"), or several fields that together make one choice: see `choice_label`."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A plot's view of a study's rows: tables, and possibly a figure."""

    name: str
    """Base name of its files: letters, digits, hyphens and underscores. The report prefixes the plot's number."""
    title: str
    caption: str = ""
    """Caption below the figure on the page; empty if the figure contains its caption."""
    wide: bool = False
    """Whether the figure takes the full width of the page."""
    empty: bool = False
    """Whether it contains no finished run."""

    def tables(self) -> list[Table]:
        """Return its tables; each has a unique name that starts with the view's."""
        return []

    def figure(self) -> "Figure | None":
        """Draw and return its matplotlib figure, in the report's style; None for a plot with tables only.

        Import matplotlib inside this function, so that importing a study file stays fast.
        """
        return None


@dataclass(frozen=True)
class Reads:
    """The names that a plot reads from a row."""

    metrics: tuple[str, ...] = ()
    """Of its metrics."""
    histories: tuple[str, ...] = ()
    """Names of its histories, one value per epoch or round each."""
    profiles: tuple[str, ...] = ()
    """Names in its details["profiles"], one value per layer each."""


@dataclass(frozen=True)
class Plot(ABC):
    """A user's request for one plot of a study. A subclass is a frozen dataclass whose fields are plain data.

    Use tuples, not lists, for sequence fields, since JSON does not distinguish them.
    """

    kind: ClassVar[str] = ""
    """Its name in `study.json`; `register_plot` sets it."""

    where: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """Selects runs by the values of their fields; a list allows any of its values."""
    title: str = field(default="", kw_only=True)
    """Title of the plot; if empty, the view creates one."""

    @abstractmethod
    def collect(self, results: Results) -> View:
        """Collect the plot's rows; a study that has just started may have none."""

    def axes(self) -> tuple[Axis | None, ...]:
        """Return the axes whose values distinguish its runs."""
        return ()

    def averaged(self) -> tuple[str, ...]:
        """Return the fields to average over: runs that differ in these fields only count as one, once all of a seed
        have finished."""
        return ()

    def references(self) -> tuple[str, ...]:
        """Return the fields that select the reference runs."""
        return ()

    def reads(self) -> Reads:
        """Return the names that it reads from a row, so that misspelt names are refused before training."""
        return Reads()

    def check(self, planned: Results) -> None:  # noqa: B027
        """Raise `UserError` if these planned runs, which have no metrics yet, cannot fill the plot."""

    def fields(self) -> tuple[str, ...]:
        """Return the fields that a run needs to be in the plot, without repeats."""
        axes = [name for axis in self.axes() for name in names_of(axis)]
        return tuple(dict.fromkeys([*axes, *self.averaged(), *self.where]))

    def fits(self, fields: Mapping[str, Any]) -> bool:
        """Return whether a run is in the plot: whether it has the plot's fields and the values of `where`."""
        return all(name in fields for name in self.fields()) and agrees(fields, self.where)


def names_of(axis: Axis | None) -> tuple[str, ...]:
    """Return the fields of an axis."""
    return (axis,) if isinstance(axis, str) else axis or ()


def agrees(fields: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Return whether a run has all fields of `where`, each with the wanted value or one of several."""
    return all(name in fields and _is_one_of(fields[name], wanted) for name, wanted in where.items())


def as_plain(plot: Plot) -> dict[str, Any]:
    """Return a plot as plain data: its kind and its fields.

    Raises:
        UserError: a class of plots that is not registered.
    """
    if "kind" not in type(plot).__dict__:  # an inherited kind belongs to another class
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
