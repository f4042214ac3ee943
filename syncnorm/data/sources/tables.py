"""Tables of images or features, read with Hugging Face `datasets` from parquet and CSV files and from the hub."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from syncnorm.data.sources.decode import Raw
from syncnorm.errors import UserError, unknown

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "validation", "valid", "val", "dev", "eval")
"""Names of the test split, best first."""
LABEL_NAMES = ("label", "labels", "class", "target", "category", "fine_label", "y")
"""Common names of a label column, best first."""


class Wanted(NamedTuple):
    """Columns that the user named: the label column and the natural column; empty if not named."""

    label: str = ""
    natural: str = ""


class Columns(NamedTuple):
    """Names of the image column (empty in a table of features), the label column and the natural column."""

    image: str
    label: str
    natural: str = ""

    def named(self) -> str:
        """Return the columns' names for a note."""
        return ", ".join(filter(None, self))


def pick_splits(names: Sequence[str], what: str) -> dict[str, str]:
    """Return which of the split names are "train" and "test", or which one is "whole"."""
    train = next((name for name in TRAIN_NAMES if name in names), None)
    test = next((name for name in TEST_NAMES if name in names), None)
    if train and test:
        return {"train": train, "test": test}
    if train or len(names) == 1:
        return {"whole": train or names[0]}
    raise UserError(
        f"{what} has the parts {', '.join(sorted(names))} and none called train: give the path to one of "
        "them, or name them train and test."
    )


def parquet_table(files: Sequence[Path]) -> Any:
    """Return the rows of parquet files, in their order, as one `datasets.Dataset`."""
    import datasets
    import pyarrow as pa
    from datasets.table import InMemoryTable
    from pyarrow import parquet

    tables = []
    for file in files:
        try:
            tables.append(parquet.read_table(file, partitioning=None))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file} cannot be read as parquet: {_first_line(error)}") from error
    try:
        return datasets.Dataset(InMemoryTable(pa.concat_tables(tables)))
    except pa.ArrowException as error:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{names} do not have the same columns: {_first_line(error)}") from error


def csv_table(files: Sequence[Path]) -> Any:
    """Return the rows of CSV files with a header, in their order, as one `datasets.Dataset`.

    The separator is the most frequent of comma, semicolon and tab in the header.
    """
    import datasets
    import pyarrow as pa
    from datasets.table import InMemoryTable
    from pyarrow import csv

    tables = []
    for file in files:
        try:
            with file.open("rb") as lines:
                header = lines.readline().decode()
            options = csv.ParseOptions(delimiter=max(",;\t", key=header.count))
            table = csv.read_csv(file, parse_options=options)
            if any(pa.types.is_binary(column.type) for column in table.schema):  # text that could not be decoded
                raise UnicodeError
        except UnicodeError as error:
            raise UserError(f"{file} is not written in UTF-8: save it as UTF-8.") from error
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file} cannot be read as CSV: {_first_line(error)}") from error
        tables.append(table)
    names = tables[0].column_names
    if all(_is_number(name) for name in names):
        raise UserError(f"{files[0]} begins with numbers: its first line must be the names of the columns.")
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{files[0]} has the column {', '.join(sorted(twice))} twice: give each its own name.")
    try:
        return datasets.Dataset(InMemoryTable(pa.concat_tables(tables, promote_options="permissive")))
    except pa.ArrowException as error:
        raise UserError(f"{', '.join(file.name for file in files)} differ: {_first_line(error)}") from error


def hub_splits(name: str) -> dict[str, Any]:
    """Open a data set of the hub, or its local cache if the hub cannot be reached."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    quiet()
    reachable = True
    try:
        HfApi().dataset_info(name, timeout=5)
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise UserError(
            f"data set '{name}' is not on the Hugging Face hub, or is private: check the spelling "
            "(owner/name), or log in with `hf auth login`."
        ) from error
    except Exception:  # the type depends on the installed HTTP library; all mean that nothing answered
        reachable = False
    try:
        with _online(reachable):
            return dict(datasets.load_dataset(name))
    except Exception as error:  # the type depends on the problem with the data set
        if reachable:
            raise UserError(f"data set '{name}' of the Hugging Face hub: {_first_line(error)}") from error
        raise UserError(
            f"data set '{name}' is neither a path here nor in the local Hugging Face cache, and the hub "
            "cannot be reached: check the path or the network, or download it elsewhere and give its folder "
            "as `path`."
        ) from error


def raw_split(table: Any, what: str, columns: Columns) -> Raw:
    """Return one split's encoded images and labels; `columns` comes from `find_columns`."""
    import datasets

    if len(table) == 0:
        raise UserError(f"{what} is empty: it has the columns {columns.named()} but no row.")
    table = table.select_columns(list(filter(None, columns))).cast_column(columns.image, datasets.Image(decode=False))
    labels, names = labels_of(table, columns, what)
    natural = np.asarray(table[columns.natural][:], dtype=object) if columns.natural else None
    return Raw(_encoded(table, columns.image, what), labels, names, natural)


def labels_of(table: Any, columns: Columns, what: str) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    """Return a table's labels unchanged, and its class names."""
    import datasets

    labels = table[columns.label][:]
    if None in labels:
        raise UserError(f"{what}: row {labels.index(None)} has no label: leave such rows out.")
    feature = table.features[columns.label]
    return np.asarray(labels), tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def find_columns(features: Mapping[str, Any], what: str, wanted: Wanted) -> Columns:
    """Find the image and the label column by type, unless `wanted` names the label.

    Images have the type Image, {bytes, path} or bytes; labels are a ClassLabel, else integers or booleans, else text
    or floats in a column with a common name. Among several candidates, a common name is preferred, otherwise the
    first is taken; but several integer columns without a common name are ambiguous, since the first may be a row
    number. In a table without images integers are features, so a label there must be a ClassLabel or have a common
    name.
    """
    import datasets

    def is_image(kind: Any) -> bool:
        encoded = isinstance(kind, dict) and {*kind} == {"bytes", "path"}
        return encoded or isinstance(kind, datasets.Image) or _is_value(kind, "binary")

    for name in filter(None, wanted):
        if name not in features:
            raise unknown(f"column of {what}", name, features)
    images = [name for name, kind in features.items() if is_image(kind)]
    image = "image" if "image" in images else images[0] if images else ""
    others = {name: kind for name, kind in features.items() if name not in (wanted.natural, *images)}
    return Columns(image, wanted.label or _find_label(others, features, what, bool(image)), wanted.natural)


def _find_label(columns: Mapping[str, Any], everything: Mapping[str, Any], what: str, beside_images: bool) -> str:
    import datasets

    named = [name for name, kind in columns.items() if isinstance(kind, datasets.ClassLabel)]
    usual = [name for name in LABEL_NAMES if name in columns]
    whole = [name for name, kind in columns.items() if _is_value(kind, "int") or _is_value(kind, "bool")]
    if named:
        return next((name for name in usual if name in named), named[0])
    if usual:  # prefer integers to words, and words to fractions
        for fitting in (whole, [name for name in usual if is_text(columns[name])], usual):
            if found := [name for name in usual if name in fitting]:
                return found[0]
    if not beside_images:
        raise UserError(
            f"{what} has neither images nor a column called {', '.join(LABEL_NAMES[:-1])} or {LABEL_NAMES[-1]}; its "
            f"columns are {', '.join(everything)}: name that of the labels in data.label."
        )
    if len(whole) > 1:
        raise UserError(
            f"{what} may have its labels in any of {', '.join(whole)}: name the right column in data.label, or "
            "rename it to label."
        )
    if not whole:
        raise UserError(
            f"{what} has no column of class labels (ClassLabel, integers, or text or whole numbers called label); "
            f"its columns are {', '.join(everything)}: name one in data.label."
        )
    return whole[0]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_value(kind: Any, of: str) -> bool:
    """Whether a column holds plain values of a type: "int" for int8 to uint64, "binary" for both sizes of it."""
    import datasets

    return isinstance(kind, datasets.Value) and of in kind.dtype


def is_text(kind: Any) -> bool:
    """Return whether a column holds text."""
    return _is_value(kind, "string")


def quiet() -> None:
    """Turn off the progress bars and logs of `datasets` and its hub client."""
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)


def _encoded(table: Any, column: str, what: str) -> Iterator[bytes | Path]:
    for row, cell in enumerate(table[column]):
        if not cell or not (cell["bytes"] or cell["path"]):
            raise UserError(f"{what}: row {row} has no image: leave such rows out.")
        yield cell["bytes"] or Path(cell["path"])


@contextmanager
def _online(reachable: bool) -> Iterator[None]:
    """If the hub does not answer, use its local cache immediately, not after half a minute of retries."""
    import datasets.config
    import huggingface_hub.constants

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = place.HF_HUB_OFFLINE or not reachable
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
