"""`load`: a single entry point to embedded and registered data, local files and the Hugging Face hub."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from syncnorm.checks import check_fraction
from syncnorm.config import Data
from syncnorm.data.augment import Kind, check_augment
from syncnorm.data.dataset import CLASSES, Dataset, Scale
from syncnorm.data.embedded.digits import DOMAINS
from syncnorm.data.embedded.signals import SYNOPSIS
from syncnorm.data.normalise import normalised
from syncnorm.data.raw import Pixels, Signals
from syncnorm.data.sources.cache import cached
from syncnorm.data.sources.har import har_signals, is_har
from syncnorm.data.sources.local import columns_of, find, read_tables
from syncnorm.data.sources.memory import Memory
from syncnorm.data.sources.registered import ON_REGISTRATION, SOURCES, Read, Request, is_registered, without_size
from syncnorm.data.sources.tables import Wanted, hub_splits, pick_splits
from syncnorm.data.split import (
    WHOLE,
    Parts,
    Share,
    check_validation,
    drawn_in_words,
    limited,
    split_samples,
    strata_of,
)
from syncnorm.errors import UserError, unknown
from syncnorm.fingerprint import files_fingerprint
from syncnorm.tasks import task_named

Split = Literal["random", "writers", "fixed"]
"""The values of `Data.split`."""
MEMORY = Memory()
"""The samples of this process's last runs, before the split."""
ON_REGISTRATION.append(MEMORY.clear)


def load(
    name: str,
    *,
    path: str = "",
    size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    split: Split = "random",
    validation: float = 0.0,
    augment: Kind = "none",
    label: str = "",
    natural: str = "",
    options: Mapping[str, Any] | None = None,
    on_disk: bool = False,
    scale: Scale = "own",
    seed: int = 0,
    task: str = "classification",
) -> Dataset:
    """Return a data set by name; all arguments but `scale`, `seed` and `task` are fields of `config.Data`.

    `name` is an embedded data set (`DOMAINS`, or a person's signals, `SIGNALS`), one that `register_data` registered,
    or any name for the data at `path` (a parquet or CSV file, a folder with train*.parquet and test*.parquet, or an
    image folder with one subfolder per class, with or without train/ and test/), or such a path itself, or a data set
    of the Hugging Face hub ("owner/name"). If `path` is the folder of the UCI HAR Dataset, `name` is one of its
    subjects, "subject-1" to "subject-30", see `har_signals`.

    `seed` draws the split, as `syncnorm.data.split` describes: a stratified fifth for the test if there is no test
    split, the fraction `validation` of the other samples, and what the limits keep.

    A table with an image column gives images; any other table, including CSV files, gives feature vectors (F,) of its
    numeric columns. `label` names the label column, which is otherwise found by its type and common names (label,
    class, target, y, ...); `natural` names the column with each sample's client or domain.

    `size` is the side in pixels to which images are stretched (embedded data: 16 by default). Decoded images are
    cached, see `files.cache_folder`. `augment` is only checked here: training applies it, and it is refused if the
    samples are not images. `options` are those of a registered data set. With `on_disk`, samples lie in files.

    `scale` selects the normalisation of each channel. "own" uses the mean and standard deviation of the training
    samples. "fixed" gives (pixel - 0.5) / 0.5 for pixels in [0, 1], and for generated signals uses a centre and a
    unit of each channel that all persons share, so that domains can be compared. Other data have no fixed scale and
    are not changed (`Dataset.scaled` is False).

    `task` is that of a run (`Run.task`): it says what the targets may be, in place of labels (N,).

    Raises:
        UserError: invalid names, paths, columns, sizes or files, and data that no classifier can learn.
    """
    asked: dict[str, Any] = {"label": label, "natural": natural, "options": dict(options or {}), "augment": augment}
    data = Data(name, path, size, train_limit, test_limit, split, on_disk=on_disk, validation=validation, **asked)
    check_data(data)
    if split not in get_args(Split):
        raise unknown("data.split", split, get_args(Split))
    if scale not in get_args(Scale):
        raise unknown("scale", scale, get_args(Scale))
    return dataset_of(_raw(_request(data, task)), data, name, scale, seed)


def load_config(
    data: Data,
    name: str | None = None,
    path: str | None = None,
    scale: Scale = "own",
    seed: int = 0,
    share: Share = WHOLE,
    task: str = "classification",
) -> Dataset:
    """Return the data set of a run's `data` and seed; a given `name` or `path` overrides its own.

    `share` is the part of an embedded domain's digits that it has. Samples that were read stay in memory, so that
    another seed only draws another split.
    """
    data = replace(data, name=data.name if name is None else name, path=data.path if path is None else path)
    return dataset_of(read_config(data, task), data, data.name, scale, seed, share)


def read_config(data: Data, task: str = "classification") -> Pixels | Signals:
    """Return the samples of a run's `data` before the split; the last ones are kept in memory."""
    check_data(data)
    request, place = _request(data, task), Path(data.path or data.name).expanduser()
    state = files_fingerprint(place) if place.exists() else ""  # another content is other samples
    key = repr((request, sorted(request.options.items()), state))
    return MEMORY.get(key, lambda: _raw(request))


def dataset_of(
    raw: Pixels | Signals,
    data: Data,
    name: str,
    scale: Scale,
    seed: int,
    share: Share = WHOLE,
    keep: Callable[[Parts], Parts] = lambda parts: parts,
) -> Dataset:
    """Return samples as a data set: split by the seed, limited, normalised.

    `keep` takes a domain's samples from the parts of a whole.
    """
    parts = keep(split_samples(raw, data, seed, name, share))
    trained, tested = strata_of(raw)
    labels = trained[parts.train], trained[parts.validation], tested[parts.test]
    kept = limited(labels, data, seed, name)
    parts = Parts(*(part[index] for part, index in zip(parts, kept, strict=True)))
    if raw.task == CLASSES:
        what = f"data set '{name}'"
        check_validation(data.validation, trained[parts.train], trained[parts.validation], raw.class_names, what)
    made = normalised(name, raw, parts, scale, drawn_in_words(raw, data), data.on_disk)
    check_augment(data.augment, name, made.shape, raw.task)
    return made


def check_data(data: Data) -> None:
    """Raise `UserError` for numbers of `data` that are out of range."""
    for option, value in (("size", data.size), ("train_limit", data.train_limit), ("test_limit", data.test_limit)):
        if value is not None and value < 1:
            raise UserError(f"data.{option} is {value}: it must be at least 1.")
    check_fraction(data)


def _request(data: Data, task: str) -> Request:
    return Request(data.name, data.path, data.size, data.label, data.natural, data.options, task, data.on_disk)


def _raw(request: Request) -> Pixels | Signals:
    try:
        return _for_task(_read(request), request.name, request.task)
    except ImportError as error:
        if is_registered(request.name):  # raised in the user's own function, which knows what it needs
            raise
        raise UserError(
            f"loading data needs the package '{error.name}', which is not installed: pip install 'syncnorm[study]'."
        ) from error


def _for_task(raw: Pixels | Signals, name: str, task: str) -> Pixels | Signals:
    """Return the samples with the targets of `task`: those of a source that knows one task only are converted."""
    if raw.task == task:
        return raw
    given = {"train": raw.train_y, "test": raw.test_y} if len(raw.test_y) else {"whole": raw.train_y}
    count = len(raw.class_names)
    try:
        y, names = task_named(task).read(given, f"data set '{name}'")
    except UserError as error:
        raise UserError(f"{error} Its targets are those of the task {raw.task}.") from error
    names = raw.class_names if len(names) == count else names
    train, test = (y["train"], y["test"]) if len(y) > 1 else (y["whole"], y["whole"][:0])
    return raw._replace(train_y=train, test_y=test, class_names=names, task=task)


def _read(request: Request) -> Pixels | Signals:
    if request.name in SOURCES:
        return SOURCES[request.name](request)
    request.refuse("options", because=f"they are for registered data sets, and '{request.name}' is none")
    for matches, read in MATCHERS:
        if matches(request):
            return read(request)
    own = [name for name in SOURCES if is_registered(name)]
    message = str(unknown("data set", request.name, SOURCES, (*sorted(DOMAINS), *SYNOPSIS, *own)))
    raise UserError(
        f"{message} A path, or a name of the Hugging Face hub with its slash (owner/name), works as well."
    )


def _read_path(request: Request, path: str) -> Pixels | Signals:
    folder = Path(path).expanduser()
    no_table = f"it names a column of a table, and {path} is none"
    if is_har(folder):
        request.refuse("label", "natural", because=no_table)
        return without_size(request, har_signals(folder, request.name))
    files = find(path)
    label = re.sub(r"\W+", "_", files.path.stem)
    key = f"{label}-{files.fingerprint()}-{request.size or 'own'}"
    if files.kind == "images":
        request.refuse("label", because=no_table)
        request.refuse("natural", because=f"{no_table} (folders of domains are named in world.domains)")
        if request.on_disk:
            return files.read_images(request.size, on_disk=True)
        return cached(key, lambda: files.read_images(request.size))
    return _read_tables(request, files.tables, key, str(files.path), f"{files.kind} {files.path.name}")


def _read_hub(request: Request) -> Pixels | Signals:
    name, what = request.name, f"data set '{request.name}'"
    splits = hub_splits(name)
    chosen = {split: splits[found] for split, found in pick_splits(list(splits), what).items()}
    files = [Path(part["filename"]) for table in chosen.values() for part in table.cache_files]
    state = "\n".join(f"{file}\t{file.stat().st_size}\t{file.stat().st_mtime_ns}" for file in files)
    key = f"{name.replace('/', '--')}-{sha256(state.encode()).hexdigest()[:16]}-{request.size or 'own'}"
    return _read_tables(request, lambda: chosen, key, what, f"{name} of the Hugging Face hub")


def _read_tables(
    request: Request, open_tables: Callable[[], dict[str, Any]], key: str, what: str, note: str
) -> Pixels | Signals:
    """Return the samples of tables, from the cache if they are stored under `key`."""
    wanted = Wanted(request.label, request.natural)
    if request.task != "classification":
        key += f"-{request.task}"
    if any(wanted):
        key += f"-{sha256(repr(tuple(wanted)).encode()).hexdigest()[:8]}"

    def build() -> Pixels | Signals:
        tables = open_tables()
        return read_tables(
            tables, columns_of(tables, what, wanted), request.size, what, note, request.task, request.on_disk
        )

    return build() if request.on_disk else cached(key, build)


def _is_hub_name(request: Request) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", request.name) is not None


MATCHERS: tuple[tuple[Callable[[Request], bool], Read], ...] = (
    (lambda asked: bool(asked.path), lambda asked: _read_path(asked, asked.path)),
    (lambda asked: os.path.exists(os.path.expanduser(asked.name)), lambda asked: _read_path(asked, asked.name)),
    (_is_hub_name, _read_hub),
    (
        lambda asked: "/" in asked.name or asked.name.startswith(("~", ".")),
        lambda asked: _read_path(asked, asked.name),
    ),
)
"""For a name that is not in `SOURCES`: pairs of a test and a reader; the first match reads it."""
