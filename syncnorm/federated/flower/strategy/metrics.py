"""Clients' metrics: their weights, and means over those who sent a metric."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from flwr.app import MetricRecord, RecordDict

EQUAL = "norm-equal-weights"
"""Name of the record with the weight of a client whose counts are not used."""


def weight_in(content: RecordDict, key: str) -> float:
    """Return a client's weight, the metric `key` of one of its records.

    Raises:
        ValueError: no such metric, or one that is no finite number of at least 0.
    """
    records = [record for record in content.values() if isinstance(record, MetricRecord)]
    found: list[Any] = [record[key] for record in records if key in record]
    if not found:
        what = "its metrics have" if records else "it sent no metrics, so it has"
        raise ValueError(f"{what} no '{key}', which weighs its update")
    weight = found[0]
    if not (isinstance(weight, int | float) and isfinite(weight) and weight >= 0):
        raise ValueError(f"its weight '{key}' is {weight}, which is no number from 0")
    return float(weight)


def without_weight(content: RecordDict, key: str) -> None:
    """Let a client's records say the weight 1, whatever they said."""
    for record in content.values():
        if isinstance(record, MetricRecord) and key in record:
            del record[key]
    content[EQUAL] = MetricRecord({key: 1})


def weighted_means(contents: Sequence[RecordDict], key: str) -> MetricRecord:
    """Return the mean of each metric, sum_k w_k m_k / sum_k w_k, over the clients k that sent it.

    Flower's own mean needs the same metrics from everyone. The weights w are the metric `key`, which has no mean
    itself. Lists are averaged value by value; a metric without a mean (lists of several lengths, a list beside a
    number, no weight above 0) is left out.
    """
    by_name: dict[str, list[tuple[float, Any]]] = {}
    for content in contents:
        weight = weight_in(content, key)
        for record in content.values():
            if isinstance(record, MetricRecord):
                for name, value in record.items():
                    by_name.setdefault(name, []).append((weight, value))
    means = {name: _mean(pairs) for name, pairs in by_name.items() if name != key}
    return MetricRecord({name: mean for name, mean in means.items() if mean is not None})


def _mean(pairs: list[tuple[float, Any]]) -> Any:
    total = sum(weight for weight, _ in pairs)
    lengths = {len(value) if isinstance(value, list) else None for _, value in pairs}
    if total == 0 or len(lengths) > 1:
        return None
    if lengths == {None}:
        return sum(weight / total * value for weight, value in pairs)
    columns = zip(*(value for _, value in pairs), strict=True)
    shares = [weight / total for weight, _ in pairs]
    return [sum(share * value for share, value in zip(shares, column, strict=True)) for column in columns]
