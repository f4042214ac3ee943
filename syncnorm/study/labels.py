"""The words and units that a report uses for fields, their values and metrics."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

WORDS = {
    "per_device_batch": "samples per device",
    "global_batch": "samples per step",
    "ranks": "devices",
    "skew": "label-sorted data",
    "norm": "norm",
    "data": "data set",
    "lr": "learning rate",
    "train_limit": "training samples",
    "test_limit": "test samples",
    "size": "image side",
    "buffers": "evaluated buffers",
    "optim": "optimiser",
}
UNITS = {"skew": "%", "size": "pixels"}


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: its stored value times `scale`, in `unit`, with so many decimals."""

    words: str
    unit: str
    difference_unit: str
    scale: float
    decimals: int
    higher_is_better: bool

    @property
    def title(self) -> str:
        """Name and unit, e.g. "Accuracy (%)"."""
        return f"{self.words.capitalize()} ({self.unit})"


def metric_label(name: str) -> Metric:
    """Return how to show a metric: a loss in nats, as it is stored, any other as a fraction in percent."""
    words = name.replace("_", " ")
    if "loss" in name:
        return Metric(words, "nats", "nats", 1.0, 3, higher_is_better=False)
    return Metric(words, "%", "percentage points", 100.0, 1, higher_is_better="error" not in name)


def field_label(name: str) -> str:
    """Return a field's words, without its unit: "world.skew" gives "label-sorted data"."""
    last = name.rsplit(".", 1)[-1]
    return WORDS.get(last, last.replace("_", " "))


def axis_label(name: str) -> str:
    """Return a field's words with its unit: "label-sorted data (%)"."""
    unit = UNITS.get(name.rsplit(".", 1)[-1])
    return f"{field_label(name)} ({unit})" if unit else field_label(name)


def setting(name: str, value: Any) -> str:
    """Return a field and its value in words: "label-sorted data 50 %"."""
    unit = UNITS.get(name.rsplit(".", 1)[-1])
    return " ".join([field_label(name), value_label(value), *([unit] if unit else [])])


def value_label(value: Any) -> str:
    """Return a field's value as text: 50.0 is "50", an option that is not set is "default"."""
    if value is None:
        return "default"
    return f"{value:g}" if isinstance(value, float) else str(value)


def listing(words: Iterable[str]) -> str:
    """Join words as prose does: "a, b and c"."""
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last
