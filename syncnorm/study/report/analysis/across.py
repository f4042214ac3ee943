"""The x axis of a chart: a field of the runs, the rounds of a history, metrics, or layers."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from syncnorm.study.plan.spec import WORLDS
from syncnorm.study.plot import Axis, names_of
from syncnorm.study.report.analysis.labels import PHRASES, Metric, axis_label, field_label, value_label
from syncnorm.study.report.analysis.lines import Place, axis_value
from syncnorm.study.rows import Row


@dataclass(frozen=True)
class Across(ABC):
    """The x axis of a chart, and a row's values along it."""

    names: tuple[str, ...]
    """The metrics to read."""
    several: ClassVar[bool] = False
    """Whether every x has its own metric."""
    after_training: ClassVar[bool] = True
    """Whether the values depend on training, so that those of diverged runs are left out."""
    final: ClassVar[bool] = True
    """Whether the values are metrics of finished runs, so that lines are compared by them."""

    @abstractmethod
    def values(self, row: Row, at: Any) -> Iterator[tuple[Any, float | None]]:
        """Yield every x at which a row has a value, and the value; `at` is the result of `place` for the row."""

    def place(self, fields: Mapping[str, Any], base: Mapping[str, Any]) -> Any:
        """Return the x of a run with these fields; None if a run has several."""
        return None

    def found(self, row: Row, at: Any) -> Any:
        """Return the x of a finished run, `at` in the plan."""
        return at

    def order(self, planned: Sequence[Any], seen: Sequence[Any]) -> list[Any]:
        """Return all x in order: numbers by size, others in order of appearance."""
        return _ordered(seen)

    def planned(self, spots: Sequence[Place], xs: Sequence[Any]) -> list[Place]:
        """Return the places at which runs at these spots will have values."""
        return [(panel, line, x) for panel, line, _ in spots for x in xs]

    def metric(self, x: Any) -> str:
        """Return the name of the metric at x."""
        return self.names[0]

    @abstractmethod
    def words(self, kind: str) -> str:
        """Return the words for x in the world `kind`."""

    def label(self, kind: str) -> str:
        """Return the same with its unit."""
        return self.words(kind)

    def text(self, x: Any, metrics: Mapping[Any, Metric], *, difference: bool = False) -> str:
        """Return a value of x as text; `metrics` says how the values at every x are shown."""
        return value_label(x)

    def span(self, metrics: Mapping[Any, Metric], kind: str, *, difference: bool = False) -> str:
        """Return the heading above a table's columns."""
        return self.label(kind)

    def columns(self, x: Any, kind: str) -> dict[str, Any]:
        """Return the columns of a record with its x."""
        return {self.label(kind): x, "metric": self.names[0]}

    def needed(self) -> int:
        """Return the minimum number of values of a finished run."""
        return 1

    def lacking(self, count: int) -> str:
        """Say that `count` finished runs do not have them."""
        return f"Left out: {count} finished runs without a finite {self.names[0]}."

    def evaluated(self, kind: str) -> str:
        """Say which statistics evaluated, if they are the same for every run; otherwise empty."""
        return "Measured in training." if all(name.startswith("train") for name in self.names) else ""


@dataclass(frozen=True)
class Field(Across):
    """A field of the runs, or several."""

    axis: Axis

    def place(self, fields: Mapping[str, Any], base: Mapping[str, Any]) -> Any:
        """Return the run's value of the field."""
        return axis_value(self.axis, fields, base)

    def values(self, row: Row, at: Any) -> Iterator[tuple[Any, float | None]]:
        """Yield the run's metric at its x."""
        yield at, row["metrics"].get(self.names[0])

    def order(self, planned: Sequence[Any], seen: Sequence[Any]) -> list[Any]:
        """Return the values that the study has runs at, finished or not."""
        return _ordered(planned)

    def planned(self, spots: Sequence[Place], xs: Sequence[Any]) -> list[Place]:
        """Return the spots themselves."""
        return list(spots)

    def words(self, kind: str) -> str:
        """Return the field's words."""
        return field_label(self.axis, sample(kind))

    def label(self, kind: str) -> str:
        """Return the field's words with its unit."""
        return axis_label(self.axis, sample(kind))

    def text(self, x: Any, metrics: Mapping[Any, Metric], *, difference: bool = False) -> str:
        """Return a value of the field as text."""
        return value_label(x, self.axis)

    def columns(self, x: Any, kind: str) -> dict[str, Any]:
        """Return a column with the field's name in a run."""
        return {"+".join(names_of(self.axis)): x, "metric": self.names[0]}


@dataclass(frozen=True)
class Measured(Across):
    """A metric as x: the second of `names`; every run is at its own value."""

    def found(self, row: Row, at: Any) -> Any:
        """Return the run's value of the metric that is x; None if it has none."""
        x = row["metrics"].get(self.names[1])
        return x if x is None or not x.is_integer() else int(x)

    def values(self, row: Row, at: Any) -> Iterator[tuple[Any, float | None]]:
        """Yield the run's value of x and its metric; nothing without an x."""
        if at is not None:
            yield at, row["metrics"].get(self.names[0])

    def planned(self, spots: Sequence[Place], xs: Sequence[Any]) -> list[Place]:
        """Return nothing: only a finished run says where it is."""
        return []

    def words(self, kind: str) -> str:
        """Return the metric's words."""
        return PHRASES.get(self.names[1], self.names[1].replace("_", " "))


@dataclass(frozen=True)
class Steps(Across):
    """The epochs or rounds of a history, from 1."""

    final: ClassVar[bool] = False

    def values(self, row: Row, at: Any) -> Iterator[tuple[Any, float | None]]:
        """Yield every step and its value."""
        yield from enumerate(row.get("history", {}).get(self.names[0], []), start=1)

    def words(self, kind: str) -> str:
        """Return "epoch" or "round"."""
        return WORLDS[kind].step

    def evaluated(self, kind: str) -> str:
        """Say that there is no adaptation to domains during training."""
        said = super().evaluated(kind)
        return said or ("Evaluated with statistics as trained, not adapted." if kind == "domains" else "")


@dataclass(frozen=True)
class Metrics(Across):
    """Metrics side by side: x is a metric's name."""

    several: ClassVar[bool] = True

    def values(self, row: Row, at: Any) -> Iterator[tuple[Any, float | None]]:
        """Yield every metric's name and value."""
        for name in self.names:
            yield name, row["metrics"].get(name)

    def order(self, planned: Sequence[Any], seen: Sequence[Any]) -> list[Any]:
        """Return the metrics in the requested order."""
        return list(self.names)

    def metric(self, x: Any) -> str:
        """Return x itself."""
        return str(x)

    def words(self, kind: str) -> str:
        """Return "metric"."""
        return "metric"

    def text(self, x: Any, metrics: Mapping[Any, Metric], *, difference: bool = False) -> str:
        """Return a metric's words with its unit, or without if all have the same."""
        if shared_unit(metrics):
            return metrics[x].short
        return metrics[x].difference_label if difference else metrics[x].label

    def span(self, metrics: Mapping[Any, Metric], kind: str, *, difference: bool = False) -> str:
        """Return the unit that all metrics share, or "metric"."""
        if not shared_unit(metrics):
            return "metric"
        return "accuracy (percentage points)" if difference else "accuracy (%)"

    def columns(self, x: Any, kind: str) -> dict[str, Any]:
        """Return the column of the metric."""
        return {"metric": x}

    def needed(self) -> int:
        """Return the number of metrics."""
        return len(self.names)

    def lacking(self, count: int) -> str:
        """Say that `count` finished runs do not have them all."""
        return f"{count} finished runs do not have all of these metrics."


@dataclass(frozen=True)
class Layers(Across):
    """A model's layers, in order. Diverged runs count, since values measured before training are valid."""

    after_training: ClassVar[bool] = False
    final: ClassVar[bool] = False

    def values(self, row: Row, at: Any) -> Iterator[tuple[Any, float | None]]:
        """Yield every layer and its value."""
        if found := self.profile(row):
            yield from zip(found["layers"], found["values"], strict=True)

    def profile(self, row: Row) -> dict[str, list[Any]]:
        """Return a row's layers and their values; empty if it has none."""
        found: dict[str, list[Any]] = row.get("details", {}).get("profiles", {}).get(self.names[0], {})
        return found

    def words(self, kind: str) -> str:
        """Return "layer"."""
        return "layer"


def layer_words(rows: Iterable[Row]) -> dict[str, str]:
    """Return what the layers of these rows are, by name: "3rd batch norm, 64 channels".

    Where rows differ, only what they share is said: a layer that is a batch norm in one and a group norm in another
    is a norm. Layers that no row describes are left out.
    """
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for name, layer in row.get("details", {}).get("layers", {}).items():
            found[name].append(layer)
    return {name: _words(layers) for name, layers in found.items()}


def with_name(layer: str, words: Mapping[str, str]) -> str:
    """Return "3rd batch norm, 64 channels (features.9)"; the name alone where no words are known."""
    return f"{words[layer]} ({layer})" if layer in words else layer


def _words(layers: Sequence[Mapping[str, Any]]) -> str:
    types = {layer["type"] for layer in layers}
    depths, channels = ({layer.get(key) for layer in layers} for key in ("depth", "channels"))
    said = types.pop() if len(types) == 1 else "norm" if all("orm" in one for one in types) else "layer"
    if len(depths) == 1 and said != "layer":
        said = f"{ordinal(depths.pop() or 0)} {said}"
    return said + (f", {channels.pop()} channels" if len(channels) == 1 and None not in channels else "")


def ordinal(place: int) -> str:
    """Return "1st", "2nd", "3rd", "11th" for a place.

    >>> [ordinal(place) for place in (1, 2, 3, 4, 11, 22, 113)]
    ['1st', '2nd', '3rd', '4th', '11th', '22nd', '113th']
    """
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"


def shared_unit(metrics: Mapping[Any, Metric]) -> str:
    """Return the title that all metrics share ("Accuracy (%)"), or an empty text."""
    percent = all(metric.unit == "%" and "accuracy" in name for name, metric in metrics.items())
    return "Accuracy (%)" if percent else ""


def sample(kind: str) -> Any:
    """Return an example value of the skew in this world; its type decides the words for the skew."""
    return "iid" if kind == "clients" else None


def _ordered(xs: Sequence[Any]) -> list[Any]:
    xs = list(dict.fromkeys(xs))
    return sorted(xs) if all(isinstance(x, int | float) for x in xs) else xs
