"""The words and units that a report uses for fields, their values and metrics."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isinf
from typing import Any

from syncnorm.study.plot import Axis, names_of

WORDS = {
    "per_device_batch": "samples per device",
    "global_batch": "samples per step",
    "ranks": "devices",
    "skew": "label-sorted data",
    "natural_skew": "group-sorted data",
    "domain_skew": "domain-sorted data",
    "partition": "partition",
    "skew_options": "partition",
    "norm": "norm",
    "data": "data set",
    "lr": "learning rate",
    "algorithm_options.lr": "server's learning rate",
    "train_limit": "training samples",
    "test_limit": "test samples",
    "size": "image side",
    "buffers": "evaluated buffers",
    "optim": "optimiser",
    "count": "clients",
    "participation": "clients per round",
    "batch": "samples per client's step",
    "alpha": "Dirichlet alpha",
    "noise": "image noise",
    "held_out": "held-out clients",
    "unseen": "unseen domains",
    "equal_size": "equal client size",
    "small_batch": "small batches",
    "min_batch": "smallest normalised batch",
    "clip": "gradient clipping",
    "hostile": "hostile clients",
    "unsampled": "unsampled clients",
    "adapt": "adaptation",
    "adapt_samples": "samples seen",
    "batches": "training batches",
    "test_batch": "samples per test batch",
    "test_order": "test order",
}
UNITS = {"skew": "%", "natural_skew": "%", "domain_skew": "%", "size": "pixels", "participation": "%", "hostile": "%"}
PERCENT = {"participation", "hostile"}
"""Fields with fractions that are shown in percent."""
NAMES = {"norm", "method", "algorithm", "aggregation", "attack", "model", "data", "optim", "adapt", "batches"}
"""Fields whose values are self-explanatory names."""
VALUES = {("batches", "mixed"): "mixed batches", ("batches", "one_domain"): "one-domain batches"}
"""Words for special values, by field."""
ALL = {"adapt_samples", "train_limit", "test_limit"}
"""Fields for which None means "all": on an axis, None is at infinity."""
PHRASES = {
    "gradient_norm_initial": "gradient norm before training",
    "gradient_norm_final": "gradient norm after training",
    "effective_samples": "effective samples per channel",
    "values_per_channel": "values per channel",
}
"""Words for metrics that are not shown by name."""

SCORES = {
    "accuracy": "accuracy",
    "mean_iou": "mean IoU",
    "dataset_iou": "mean IoU of all images together",
    "position_accuracy": "accuracy of positions",
    "label_accuracy": "accuracy of labels",
    "f1": "F1",
    "r2": "R²",
    "mse": "mean squared error",
}
"""Words for the metrics of syncnorm's tasks (`syncnorm.tasks`), which worlds use within longer names."""
MAIN = ("accuracy", "mean_iou", "f1", "r2")
"""Main metrics of tasks: where they stand in a name, accuracy would with classification."""
FRACTIONS = ("mean_iou", "dataset_iou", "f1")
"""Metrics that are shown in percent, beside accuracies and errors."""
IN_NATS = ("classification", "segmentation", "multi_label")
"""Tasks whose losses are in nats."""

DOMAIN_METRICS = {
    "accuracy": ("accuracy on unseen domains", "unseen domains"),
    "accuracy_seen": ("accuracy on seen domains", "seen domains"),
    "seen_accuracy": ("accuracy on seen domains, not adapted", "seen domains"),
    "unseen_accuracy": ("accuracy on unseen domains, not adapted", "unseen domains"),
    "validation_accuracy": ("validation accuracy on seen domains", "validation"),
    "validation_loss": ("validation loss on seen domains", "validation loss"),
    "loss": ("loss on unseen domains", "unseen domains' loss"),
    "train_loss": ("training loss", "training loss"),
}
"""Metrics of the domains world: their words, and a short form for column headings."""

CLIENT_METRICS = {
    "accuracy": ("accuracy, mean over clients", "mean over clients"),
    "validation_accuracy": ("validation accuracy, mean over clients", "validation"),
    "validation_loss": ("validation loss, mean over clients", "validation loss"),
    "loss": ("loss, mean over clients", "loss"),
    "train_loss": ("training loss", "training loss"),
    "client_accuracy_weighted": ("accuracy, mean over clients' samples", "mean over samples"),
    "client_accuracy_worst": ("accuracy of the worst client", "worst client"),
    "client_accuracy_std": ("standard deviation of accuracy between clients", "deviation between clients"),
    "global_accuracy": ("accuracy of the global model", "global model"),
    "global_reestimated_accuracy": (
        "accuracy of the global model with statistics re-estimated on all clients' images",
        "global model, re-estimated",
    ),
    "global_batch_accuracy": (
        "accuracy of the global model with the test images' own statistics",
        "global model, test statistics",
    ),
    "global_loss": ("loss of the global model", "global model's loss"),
    "reestimated_accuracy": (
        "accuracy with each client's statistics re-estimated, mean over clients",
        "re-estimated, mean",
    ),
    "reestimated_accuracy_worst": (
        "accuracy of the worst client with its statistics re-estimated",
        "re-estimated, worst client",
    ),
    "heldout_accuracy": ("accuracy of held-out clients with averaged statistics", "held out"),
    "heldout_reestimated_accuracy": (
        "accuracy of held-out clients with their statistics re-estimated",
        "held out, re-estimated",
    ),
    "bytes_up": ("data sent to the server", "sent to the server"),
    "bytes_down": ("data sent to clients", "sent to clients"),
    "bytes_total": ("data sent both ways", "sent both ways"),
    "clients_left_out": ("updates left out", "left out"),
    "small_batches": ("batches too small to normalise", "small batches"),
    "never_sampled": ("clients never sampled", "never sampled"),
    "staleness": ("rounds since a client was last sampled", "staleness"),
}
"""Metrics of the clients world: their words, and a short form for column headings."""
COUNTS = ("clients_left_out", "small_batches", "never_sampled", "staleness", "round", "idle", "batch_norms")
"""Metrics that count something: one decimal is enough."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: its stored value times `scale`, in `unit` (may be empty), with `decimals` decimals."""

    words: str
    short: str
    """Short form for column headings."""
    unit: str
    difference_unit: str
    scale: float
    decimals: int
    higher_is_better: bool | None
    """None if neither is better."""

    @property
    def title(self) -> str:
        """Name and unit: "Accuracy (%)"."""
        return _capital(self.label)

    @property
    def label(self) -> str:
        """The same within a sentence: "accuracy (%)"."""
        return _with_unit(self.words, self.unit)

    @property
    def difference_label(self) -> str:
        """Name and unit of a difference within a sentence: "accuracy (percentage points)"."""
        return _with_unit(self.words, self.difference_unit)

    def difference_title(self, reference: str) -> str:
        """Name, reference and unit of a difference: "Accuracy, difference to bn (percentage points)"."""
        return _with_unit(f"{_capital(self.words)}, difference to {reference}", self.difference_unit)

    def sign(self, reference: str) -> str:
        """What a positive difference means."""
        words = {True: "better than", False: "worse than", None: "more than"}[self.higher_is_better]
        return f"Positive is {words} {reference}."


def metric_label(name: str, kind: str = "devices", *, unseen: bool | None = True, nats: bool = True) -> Metric:
    """Return how to show a metric of a world ("devices", "clients", "domains").

    `unseen` says whether runs of the domains world leave out domains in training; None if only some do. `nats`
    says whether losses are in nats, as those of `IN_NATS` are. Accuracies, errors and a task's fractions (mean IoU,
    F1) are in percent, losses in nats, bytes in megabytes (10^6), others as stored.
    """
    words, short = _metric_words(name, kind, unseen)
    if "loss" in name:
        unit = "nats" if nats else ""
        return Metric(words, short, unit, unit, 1.0, 3, higher_is_better=False)
    fraction = "accuracy" in name or "error" in name or any(_stands_in(part, name) for part in FRACTIONS)
    if fraction and name.endswith("_std"):
        return Metric(words, short, "percentage points", "percentage points", 100.0, 1, higher_is_better=None)
    if fraction:
        return Metric(words, short, "%", "percentage points", 100.0, 1, higher_is_better="error" not in name)
    if _stands_in("r2", name) or name == "mse":
        better = None if name.endswith("_std") else name != "mse"
        return Metric(words, short, "", "", 1.0, 3, higher_is_better=better)
    if name.startswith("bytes"):
        return Metric(words, short, "MB", "MB", 1e-6, 2, higher_is_better=False)
    counted = kind == "clients" and name in COUNTS
    return Metric(words, short, "", "", 1.0, 1 if counted else 3, higher_is_better=None)


def _metric_words(name: str, kind: str, unseen: bool | None) -> tuple[str, str]:
    """Return the words for a metric: those of accuracy, with the metric of the run's task in its place."""
    if name in SCORES and name not in MAIN:
        return SCORES[name], SCORES[name]
    main = next((one for one in MAIN[1:] if _stands_in(one, name)), None)
    if main is None:
        return _words_of_accuracy(name, kind, unseen)
    words, short = _words_of_accuracy(name.replace(main, "accuracy", 1), kind, unseen)
    return words.replace("accuracy", SCORES[main]), short.replace("accuracy", SCORES[main])


def _stands_in(part: str, name: str) -> bool:
    """Return whether a metric's name has these words: "r2" is in "client_r2_worst", and not in "tier2"."""
    return f"_{part}_" in f"_{name}_"


def _words_of_accuracy(name: str, kind: str, unseen: bool | None) -> tuple[str, str]:
    plain = PHRASES.get(name, name.replace("_", " "))
    if kind == "devices":
        return plain, plain
    if kind == "domains" and name in ("accuracy", "loss") and not unseen:
        where = "seen domains" if unseen is False else "unseen domains, on seen ones where none is unseen"
        return f"{name} on {where}", "seen domains" if unseen is False else "unseen, if any"
    known = CLIENT_METRICS if kind == "clients" else DOMAIN_METRICS
    domain = name.removeprefix("accuracy_")
    return known.get(name, (plain, plain) if domain == name else (f"accuracy on {domain}", domain))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _with_unit(words: str, unit: str) -> str:
    return f"{words} ({unit})" if unit else words


def field_label(axis: Axis, value: Any = None) -> str:
    """Return a field's words, without its unit: "world.skew" gives "label-sorted data".

    `value`, a value of the field, distinguishes fields with the same name: a skew that is a text is a partition. The
    label of an axis of several fields is that of the first, or of all if its values are not self-explanatory.
    """
    if not isinstance(axis, str) and not _speaks(axis):
        return listing(dict.fromkeys(field_label(name, value) for name in axis))
    name = _last(axis, value)
    return WORDS.get(name, name.replace("_", " "))


def axis_label(axis: Axis, value: Any = None) -> str:
    """Return a field's words with its unit: "label-sorted data (%)". Labels of several fields contain their units."""
    unit = UNITS.get(_last(axis, value), "") if isinstance(axis, str) else ""
    return _with_unit(field_label(axis, value), unit)


def setting(axis: Axis, value: Any) -> str:
    """Return a field and its value in words: "label-sorted data 50 %". A label of several fields is returned
    unchanged."""
    if not isinstance(axis, str):
        return str(value)
    if _last(axis, value) == "domains":
        count = len(value) if isinstance(value, list) else value.count(", ") + 1 if value != "none" else 0
        return f"{count} domains" if count else "one domain"
    if isinstance(value, bool):
        return field_label(axis) if value else f"no {field_label(axis)}"
    if isinstance(value, dict) or (_last(axis, value), str(value)) in VALUES:
        return value_label(value, axis)
    unit = UNITS.get(_last(axis, value))
    return " ".join([field_label(axis, value), value_label(value, axis), *([unit] if unit else [])])


def choice_label(axis: Axis, values: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Return one label for the values of several fields.

    If the first value is a self-explanatory name, such as a norm or a method, the label is that name plus the values
    that differ from `base`: "fedbn", "fedavg + gn"; numbers are always included: "fedavg + momentum 0.1". Otherwise
    every value that is set appears with its field, including the base's: "Dirichlet alpha 0.1, learning rate 0.0125".
    """
    if not _speaks(axis):
        own = [name for name in names_of(axis) if values[name] not in (None, {}, [])] or names_of(axis)
        return ", ".join(setting(name, values[name]) for name in own)
    first, *others = names_of(axis)
    words = [value_label(values[first], first)]
    for name in others:
        value = values[name]
        if name not in base or value != base[name] or _is_number(value):
            words.append(short_setting(name, value))
    return " + ".join(words)


def short_setting(axis: Axis, value: Any) -> str:
    """Return a value for use without its field's name: "fedbn", but "Dirichlet alpha 0.1", "norm none"."""
    says_itself = _last(axis, value) in NAMES and value != "none"
    return value_label(value, axis) if says_itself else setting(axis, value)


def value_label(value: Any, axis: Axis = "") -> str:
    """Return a field's value as text: 50.0 is "50", an unset option is "default".

    Options are {"groups": 8, "affine": False} as "groups 8, no affine".
    """
    last = _last(axis, value)
    if value is None:
        return "all" if last in ALL else "default"
    if isinstance(value, float) and isinf(value) and last in ALL:
        return "all"
    if isinstance(value, dict):
        return ", ".join(setting(name, item) for name, item in sorted(value.items())) or f"default {last}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and last in PERCENT:
        value = 100 * value
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else VALUES.get((last, str(value)), str(value))


def _speaks(axis: Axis) -> bool:
    """Return whether the values of an axis's first field are self-explanatory names."""
    return _last(axis, None) in NAMES


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def takes_all(field: str) -> bool:
    """Return whether None means "all" for a field."""
    return _last(field, None) in ALL


def _last(axis: Axis, value: Any) -> str:
    *_, option, name = ("", *(names_of(axis) or ("",))[0].removesuffix(".name").split("."))
    if f"{option}.{name}" in WORDS:
        return f"{option}.{name}"
    return "partition" if name == "skew" and isinstance(value, str) else name


def listing(words: Iterable[str]) -> str:
    """Join words as in prose: "a, b and c"."""
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last
