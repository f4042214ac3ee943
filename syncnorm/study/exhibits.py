"""What a report shows: the kinds of figures and tables that a study may ask for.

All name fields of a run ("norm", "world.skew"), and hold a `where`, which leaves out the runs whose fields have other
values (of a list of values any will do), and a `title`, what stands above; left empty, it is made of the names. An
`Axis` may be several fields, for a choice that is spread over them: its values are then one label, the first field's
value and those of the others that differ from the study's base, such as "fedbn" or "fedavg + gn" for
("method", "norm"). With `mean_over`, runs that differ in those fields alone count as one: their mean, where all of a
seed have finished.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

Axis = str | tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """A claim: rows that differ in the field `over` alone give the same metrics, within `tolerance`."""

    over: str = "engine"
    tolerance: float = 1e-6


@dataclass(frozen=True)
class Curve:
    """A figure: `metric` against `x`, one line a value of `line`, one panel a value of `panel`."""

    x: Axis
    line: Axis
    panel: Axis | None = None
    metric: str = "accuracy"
    mean_over: tuple[str, ...] = ()
    where: dict[str, Any] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class History:
    """A figure: how `metric` went, round by round or epoch by epoch, one line a value of `line`."""

    line: Axis
    metric: str = "train_loss"
    panel: Axis | None = None
    mean_over: tuple[str, ...] = ()
    where: dict[str, Any] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Trade:
    """A figure: `metric` against another metric, one point a value of `line`, with intervals both ways."""

    line: Axis
    x_metric: str = "bytes_total"
    metric: str = "accuracy"
    panel: Axis | None = None
    mean_over: tuple[str, ...] = ()
    where: dict[str, Any] = field(default_factory=dict)
    title: str = ""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Both metrics, as the columns of the table beside the figure."""
        return (self.x_metric, self.metric)


@dataclass(frozen=True)
class Columns:
    """A table: one row a value of `line`, one column a metric, one block a value of `panel`."""

    line: Axis
    metrics: tuple[str, ...]
    panel: Axis | None = None
    mean_over: tuple[str, ...] = ()
    where: dict[str, Any] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Drift:
    """A figure: how far every client's statistics are from the pooled ones, layer by layer, one map a `panel`.

    Shows what runs give as details["drift"]: {"layers": [...], "values": [one a client] a layer}.
    """

    panel: Axis | None = None
    where: dict[str, Any] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Gap:
    """A figure: how much of the gap between two places every line closes, against `x`, one panel a value of `panel`.

    The share is (line - low) / (high - low) of `metric`: a ratio of means over the paired seeds. `low` and `high`
    are fields and the values that pick those runs, beside the values of `where`: within the same panel, and at the
    same x if they were run at several. Fields of an axis that they name themselves are theirs. The runs that they
    pick are no points of the figure.
    """

    x: Axis
    line: Axis
    low: dict[str, Any]
    high: dict[str, Any]
    panel: Axis | None = None
    metric: str = "accuracy"
    where: dict[str, Any] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Profile:
    """A figure: one value a layer, in the order of the layers, one line a value of `line`.

    Shows what runs give as details["profiles"][metric]: {"layers": [...], "values": [one a layer]}.
    """

    line: Axis
    metric: str = "gradient_norm_initial"
    panel: Axis | None = None
    where: dict[str, Any] = field(default_factory=dict)
    title: str = ""


Exhibit = Curve | History | Trade | Columns | Drift | Gap | Profile
Chart = Curve | History | Trade | Columns | Gap | Profile
"""An exhibit of numbers, by line and panel."""

KINDS: dict[str, type[Exhibit]] = {
    kind.__name__.lower(): kind for kind in (Curve, History, Trade, Columns, Drift, Gap, Profile)
}


def fields_of(exhibit: Exhibit) -> tuple[str, ...]:
    """Return the names of a run's fields that place it in the exhibit, each once."""
    return tuple(dict.fromkeys(_names(exhibit)))


def references_of(exhibit: Exhibit) -> tuple[str, ...]:
    """Return the names of the fields that pick the runs which an exhibit compares with."""
    return tuple(dict.fromkeys((*exhibit.low, *exhibit.high))) if isinstance(exhibit, Gap) else ()


def names_of(axis: Axis | None) -> tuple[str, ...]:
    """Return the fields of an axis."""
    return (axis,) if isinstance(axis, str) else axis or ()


def as_plain(exhibit: Exhibit) -> dict[str, Any]:
    """Return an exhibit as plain data."""
    return {"kind": type(exhibit).__name__.lower(), **asdict(exhibit)}


def from_plain(plain: dict[str, Any]) -> Exhibit:
    """Return the exhibit that `as_plain` gave; data without a kind are a curve's."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
    }
    return KINDS[values.pop("kind", "curve")](**values)


def _names(exhibit: Exhibit) -> Iterator[str]:
    for axis in ("x", "line", "panel"):
        yield from names_of(getattr(exhibit, axis, None))
    yield from getattr(exhibit, "mean_over", ())
    yield from exhibit.where
