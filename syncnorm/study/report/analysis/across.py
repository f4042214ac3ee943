"""What lies along the x of a chart: a field of the runs, the rounds of a history, metrics, or layers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from syncnorm.study.plan.spec import WORLDS
from syncnorm.study.plot import Axis, names_of
from syncnorm.study.report.analysis.labels import Metric, axis_label, field_label, value_label
from syncnorm.study.report.analysis.lines import Place, axis_value
from syncnorm.study.rows import Row


@dataclass(frozen=True)
class Across(ABC):
    """What lies along the x of a chart, and the values that a row has there."""

    names: tuple[str, ...]
    """The metrics that it reads."""
    several: ClassVar[bool] = False
    """Whether every x has a metric of its own."""
    after_training: ClassVar[bool] = True
    """Whether training decides the values, so that those of a run that diverged are left out."""

    @abstractmethod
    def values(self, row: Row, at: Any) -> Iterator[tuple[Any, float | None]]:
        """Yield every x that a row has a value at, and the value; `at` is what `place` gave for it."""

    def place(self, fields: Mapping[str, Any], base: Mapping[str, Any]) -> Any:
        """Return the x of a run with these fields; None where a run has several."""
        return None

    def order(self, planned: Sequence[Any], seen: Sequence[Any]) -> list[Any]:
        """Return all x in order: numbers by size, others as they come."""
        return _ordered(seen)

    def planned(self, spots: Sequence[Place], xs: Sequence[Any]) -> list[Place]:
        """Return the places where runs at these spots will have values."""
        return [(panel, line, x) for panel, line, _ in spots for x in xs]

    def metric(self, x: Any) -> str:
        """Return the name of the metric at x."""
        return self.names[0]

    @abstractmethod
    def words(self, kind: str) -> str:
        """Return what x is, in the world `kind`."""

    def label(self, kind: str) -> str:
        """Return the same with its unit."""
        return self.words(kind)

    def text(self, x: Any, metrics: Mapping[Any, Metric], *, difference: bool = False) -> str:
        """Return a value of x as text, where `metrics` says how the values at every x are shown."""
        return value_label(x)

    def span(self, metrics: Mapping[Any, Metric], kind: str, *, difference: bool = False) -> str:
        """Return what a table's columns are values of."""
        return self.label(kind)

    def columns(self, x: Any, kind: str) -> dict[str, Any]:
        """Return the columns of a record that say where it is."""
        return {self.label(kind): x, "metric": self.names[0]}

    def needed(self) -> int:
        """Return the number of values that a finished run should have at least."""
        return 1

    def lacking(self, count: int) -> str:
        """Say that so many finished runs do not have them."""
        return f"Left out: {count} finished runs without a finite {self.names[0]}."

    def evaluated(self, kind: str) -> str:
        """Say whose statistics evaluated, where that is the same for every run; empty where it is not."""
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
        """Return a column named as the field is in a run."""
        return {"+".join(names_of(self.axis)): x, "metric": self.names[0]}


@dataclass(frozen=True)
class Steps(Across):
    """The epochs or rounds of a history, from 1."""

    def values(self, row: Row, at: Any) -> Iterator[tuple[Any, float | None]]:
        """Yield every step and its value."""
        yield from enumerate(row.get("history", {}).get(self.names[0], []), start=1)

    def words(self, kind: str) -> str:
        """Return "epoch" or "round"."""
        return WORLDS[kind].step

    def evaluated(self, kind: str) -> str:
        """Say that domains are not adapted to while a model trains."""
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
        """Return the metrics as they were asked for."""
        return list(self.names)

    def metric(self, x: Any) -> str:
        """Return x itself."""
        return str(x)

    def words(self, kind: str) -> str:
        """Return "metric"."""
        return "metric"

    def text(self, x: Any, metrics: Mapping[Any, Metric], *, difference: bool = False) -> str:
        """Return a metric's words with its unit, or without where all have the same."""
        if shared_unit(metrics):
            return metrics[x].short
        return metrics[x].difference_label if difference else metrics[x].label

    def span(self, metrics: Mapping[Any, Metric], kind: str, *, difference: bool = False) -> str:
        """Return the unit that all metrics share, else "metric"."""
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
        """Say that so many finished runs do not have them all."""
        return f"{count} finished runs do not have all of these metrics."


@dataclass(frozen=True)
class Layers(Across):
    """A model's layers, in its order. Runs that diverged count: what was measured before training is sound."""

    after_training: ClassVar[bool] = False

    def values(self, row: Row, at: Any) -> Iterator[tuple[Any, float | None]]:
        """Yield every layer and its value."""
        if found := self.profile(row):
            yield from zip(found["layers"], found["values"], strict=True)

    def profile(self, row: Row) -> dict[str, list[Any]]:
        """Return a row's layers and their values; empty where it has none."""
        found: dict[str, list[Any]] = row.get("details", {}).get("profiles", {}).get(self.names[0], {})
        return found

    def words(self, kind: str) -> str:
        """Return "layer"."""
        return "layer"


def shared_unit(metrics: Mapping[Any, Metric]) -> str:
    """Return what all metrics are ("Accuracy (%)"), or empty where they are not the same."""
    percent = all(metric.unit == "%" and "accuracy" in name for name, metric in metrics.items())
    return "Accuracy (%)" if percent else ""


def sample(kind: str) -> Any:
    """Return a value of the kind that the skew has in this world, which decides the words for it."""
    return "iid" if kind == "clients" else None


def _ordered(xs: Sequence[Any]) -> list[Any]:
    xs = list(dict.fromkeys(xs))
    return sorted(xs) if all(isinstance(x, int | float) for x in xs) else xs
