"""Tables of features: every numeric column except the label is a feature of the row's sample."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from syncnorm.data.raw import Pixels, Signals
from syncnorm.data.sources.assemble import Split, assemble
from syncnorm.data.sources.tables import Columns, labels_of
from syncnorm.errors import UserError
from syncnorm.tasks.task import where

INDEX_NAMES = ("", "id", "index", "row", "unnamed: 0", "__index_level_0__")
"""Names of columns with row numbers, in lower case."""
LISTED = 8


def to_features(
    tables: Mapping[str, Any], columns: Columns, what: str, note: str, task: str = "classification"
) -> Pixels | Signals:
    """Return tables by split ("train" and "test", or "whole") as feature vectors (N, F), float64.

    Columns of text, dates and the like, and of row numbers, are left out; `changes` says so. All splits use the
    columns of the first one.

    Raises `UserError` for a table without a numeric column, for missing values, and for splits that differ.
    """
    for split, table in tables.items():
        if len(table) == 0:
            raise UserError(f"{where(what, split)} is empty: it has the columns {columns.named()} but no row.")
    changes: list[str] = []
    first = next(iter(tables))
    names = _feature_names(tables[first], columns, where(what, first), changes)
    splits, class_names = {}, set()
    for split, table in tables.items():
        place = where(what, split)
        labels, named = labels_of(table, columns, place)
        class_names.add(named)
        natural = np.asarray(table[columns.natural][:], dtype=object) if columns.natural else None
        x = np.stack([_numbers(table, name, place) for name in names], axis=1)
        splits[split] = Split(x, labels, natural)
    return assemble(splits, what, note, class_names.pop() if len(class_names) == 1 else None, changes, task)


def _feature_names(table: Any, columns: Columns, where: str, changes: list[str]) -> list[str]:
    taken = (columns.label, columns.natural or None)  # a column may be called "", as pandas' index in a CSV file
    candidates = [name for name in table.column_names if name not in taken]
    left_out = [name for name in candidates if not _is_numeric(table.features[name]) or _is_index(table, name)]
    names = [name for name in candidates if name not in left_out]
    if not names:
        raise UserError(
            f"{where} has neither a column of images nor a numeric one beside the label '{columns.label}'; its "
            f"columns are {', '.join(table.column_names)}."
        )
    if left_out:
        shown = ", ".join(repr(name) for name in left_out[:LISTED])
        more = f" and {len(left_out) - LISTED} more" if len(left_out) > LISTED else ""
        changes.append(f"left out, as no features: {shown}{more}")
    return names


def _is_numeric(kind: Any) -> bool:
    import datasets

    prefixes = ("int", "uint", "float", "double", "bool", "half", "decimal")
    return isinstance(kind, datasets.Value) and kind.dtype.startswith(prefixes)


def _is_index(table: Any, name: str) -> bool:
    """Return whether a column has row numbers: a typical name, and distinct values."""
    return name.lower() in INDEX_NAMES and len(set(table[name][:])) == len(table)


def _numbers(table: Any, name: str, where: str) -> NDArray[np.float64]:
    if name not in table.column_names or not _is_numeric(table.features[name]):
        raise UserError(f"{where} has no numeric column '{name}', which the other split has: give both the same.")
    column = table.data.column(name).to_numpy()
    values: NDArray[np.float64] = column.astype(np.float64)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(
            f"{where}: row {row} has no finite value in the column '{name}': fill such cells, or leave out the rows "
            "or the column."
        )
    return values
