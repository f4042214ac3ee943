"""`load`: a single entry point to embedded and registered data, local files and the Hugging Face hub."""

import os
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from syncnorm.config import Data
from syncnorm.data.augment import Kind, check_augment
from syncnorm.data.dataset import Dataset, Scale
from syncnorm.data.normalise import normalised
from syncnorm.data.raw import Pixels, Signals
from syncnorm.data.sources.cache import cached
from syncnorm.data.sources.digits import DOMAINS
from syncnorm.data.sources.har import har_signals, is_har
from syncnorm.data.sources.local import columns_of, find, read_tables
from syncnorm.data.sources.registered import SOURCES, Read, Request, is_registered, without_size
from syncnorm.data.sources.signals import SYNOPSIS
from syncnorm.data.sources.tables import Wanted, hub_splits, pick_splits
from syncnorm.errors import UserError, unknown
from syncnorm.tasks import task_named


def load(
    name: str,
    *,
    path: str = "",
    size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    augment: Kind = "none",
    label: str = "",
    natural: str = "",
    options: Mapping[str, Any] | None = None,
    scale: Scale = "own",
    task: str = "classification",
) -> Dataset:
    """Return a data set by name; all arguments but `scale` and `task` are fields of `config.Data`.

    `name` is an embedded data set (`DOMAINS`, or a person's signals, `SIGNALS`), one that `register_data` registered,
    or any name for the data at `path` (a parquet or CSV file, a folder with train*.parquet and test*.parquet, or an
    image folder with one subfolder per class, with or without train/ and test/), or such a path itself, or a data set
    of the Hugging Face hub ("owner/name"). If `path` is the folder of the UCI HAR Dataset, `name` is one of its
    subjects, "subject-1" to "subject-30", see `har_signals`. Without a test split a stratified fifth, drawn by seed
    0, is held out.

    A table with an image column gives images; any other table, including CSV files, gives feature vectors (F,) of its
    numeric columns. `label` names the label column, which is otherwise found by its type and common names (label,
    class, target, y, ...); `natural` names the column with each sample's client or domain.

    `size` is the side in pixels to which images are stretched (embedded data: 16 by default). Limits keep that many
    samples, drawn by seed 0. Decoded images are cached, see `cache.folder`. `augment` is only checked here: training
    applies it, and it is refused if the samples are not images. `options` are those of a registered data set.

    `scale` selects the normalisation of each channel. "own" uses the mean and standard deviation of the training
    samples. "fixed" gives (pixel - 0.5) / 0.5 for pixels in [0, 1], and for generated signals uses a centre and a
    unit of each channel that all persons share, so that domains can be compared. Other data have no fixed scale and
    are not changed (`Dataset.scaled` is False).

    `task` is that of a run (`Run.task`): it says what the targets may be, in place of labels (N,).

    Raises:
        UserError: invalid names, paths, columns, sizes or files, and data that no classifier can learn.
    """
    if scale not in get_args(Scale):
        raise unknown("scale", scale, get_args(Scale))
    for option, value in (("size", size), ("train_limit", train_limit), ("test_limit", test_limit)):
        if value is not None and value < 1:
            raise UserError(f"data.{option} is {value}: it must be at least 1.")
    try:
        raw = _for_task(_read(Request(name, path, size, label, natural, options or {}, task)), name, task)
    except ImportError as error:
        if is_registered(name):  # raised in the user's own function, which knows what it needs
            raise
        raise UserError(
            f"loading data needs the package '{error.name}', which is not installed: pip install 'syncnorm[study]'."
        ) from error
    data = normalised(name, raw, train_limit, test_limit, scale)
    check_augment(augment, name, data.shape, task)
    return data


def load_config(
    data: Data,
    name: str | None = None,
    path: str | None = None,
    scale: Scale = "own",
    task: str = "classification",
) -> Dataset:
    """Return the data set of a run's `data`; a given `name` or `path` overrides its own."""
    return load(
        data.name if name is None else name,
        path=data.path if path is None else path,
        size=data.size,
        train_limit=data.train_limit,
        test_limit=data.test_limit,
        augment=data.augment,
        label=data.label,
        natural=data.natural,
        options=data.options,
        scale=scale,
        task=task,
    )


def _for_task(raw: Pixels | Signals, name: str, task: str) -> Pixels | Signals:
    """Return the samples with the targets of `task`: those of a source that knows one task only are converted."""
    if raw.task == task:
        return raw
    given = {"train": raw.train_y, "test": raw.test_y}
    count = len(raw.class_names)
    try:
        y, names = task_named(task).read(given, f"data set '{name}'")
    except UserError as error:
        raise UserError(f"{error} Its targets are those of the task {raw.task}.") from error
    names = raw.class_names if len(names) == count else names
    return raw._replace(train_y=y["train"], test_y=y["test"], class_names=names, task=task)


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
        return read_tables(tables, columns_of(tables, what, wanted), request.size, what, note, request.task)

    return cached(key, build)


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
