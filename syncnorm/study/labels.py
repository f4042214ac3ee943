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
    """How a metric is shown: its stored value times `scale`, in `unit` (may be empty), with so many decimals."""

    words: str
    unit: str
    difference_unit: str
    scale: float
    decimals: int
    higher_is_better: bool | None
    """None where neither is better."""

    @property
    def title(self) -> str:
        """Name and unit: "Accuracy (%)"."""
        return _with_unit(self.words.capitalize(), self.unit)

    def difference_title(self, reference: str) -> str:
        """Name, reference and unit of a difference: "Accuracy, difference to bn (percentage points)"."""
        return _with_unit(f"{self.words.capitalize()}, difference to {reference}", self.difference_unit)

    def sign(self, reference: str) -> str:
        """What a positive difference means."""
        words = {True: "better than", False: "worse than", None: "more than"}[self.higher_is_better]
        return f"Positive is {words} {reference}."


def metric_label(name: str) -> Metric:
    """Return how to show a metric: accuracies and errors in percent, losses in nats, others as they are stored."""
    words = name.replace("_", " ")
    if "loss" in name:
        return Metric(words, "nats", "nats", 1.0, 3, higher_is_better=False)
    if "accuracy" in name or "error" in name:
        return Metric(words, "%", "percentage points", 100.0, 1, higher_is_better="accuracy" in name)
    return Metric(words, "", "", 1.0, 3, higher_is_better=None)


def _with_unit(words: str, unit: str) -> str:
    return f"{words} ({unit})" if unit else words


def field_label(name: str) -> str:
    """Return a field's words, without its unit: "world.skew" gives "label-sorted data"."""
    last = name.rsplit(".", 1)[-1]
    return WORDS.get(last, last.replace("_", " "))


def axis_label(name: str) -> str:
    """Return a field's words with its unit: "label-sorted data (%)"."""
    return _with_unit(field_label(name), UNITS.get(name.rsplit(".", 1)[-1], ""))


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
