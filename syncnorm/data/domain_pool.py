"""All domains of a run in one pool, so that an index identifies a sample."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate, combinations
from pathlib import Path

import torch
from torch import Tensor

from syncnorm.config import Data
from syncnorm.data.dataset import (
    CLASSES,
    KINDS,
    Dataset,
    Scale,
    content_hash,
    sizes,
    targets_in_words,
    targets_to,
    untrained,
)
from syncnorm.data.mapped import by_rows, moved, together
from syncnorm.data.normalise import signal_moments
from syncnorm.data.raw import Groups, Pixels, Signals
from syncnorm.data.sources.har import is_har
from syncnorm.data.sources.load import dataset_of, load_config, read_config
from syncnorm.data.sources.local import TABLE_SUFFIXES
from syncnorm.data.sources.registered import ON_REGISTRATION, SOURCES, is_registered
from syncnorm.data.split import WHOLE, Parts, Share
from syncnorm.errors import UserError, unknown
from syncnorm.tasks import task_named


@dataclass(frozen=True, eq=False, repr=False)
class Pool:
    """Training, validation and test samples of all domains, concatenated in the order of `names`.

    `x`, `validation_x`, `test_x`: images (N, C, H, W), signals (N, C, L) or feature vectors (N, F) on the device;
    `y`, `validation_y`, `test_y`: int64 (N,) there, or the targets of another task. Domain d has the training samples
    `starts[d]` to `starts[d + 1]`, and likewise the others. `natural` and `domain` have each domain's columns, if
    there are any. `scale` is the kind of normalisation. Runs share pools, so do not modify them.
    """

    names: tuple[str, ...]
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    starts: tuple[int, ...]
    test_starts: tuple[int, ...]
    class_names: tuple[str, ...]
    scale: Scale
    natural: tuple[Groups | None, ...]
    domain: tuple[Groups | None, ...]
    changes: tuple[str, ...]
    """Conversions and omissions during loading, one phrase each."""
    validation_x: Tensor
    validation_y: Tensor
    validation_starts: tuple[int, ...]
    origin: Tensor | None
    """What each test sample shows: int64 (N_test,), on the CPU; samples of one number show the same digit, also in
    different domains. None: every sample is its own."""
    train_origin: Tensor | None
    """The same of the training samples."""
    measured: bool
    """Whether mean and standard deviation of training samples normalise the samples, and not fixed numbers."""
    task: str = "classification"
    """The task whose targets `y`, `validation_y` and `test_y` are."""

    def labels(self, domain: int) -> Tensor:
        """Return the training labels of a domain: int64 (N,), on the CPU; of another task than classification, the
        strata of its targets."""
        return self.strata[self.starts[domain] : self.starts[domain + 1]].cpu()

    @cached_property
    def strata(self) -> Tensor:
        """What stratification and label skew go by: int64 (N,) of `y`, the labels themselves if they are classes."""
        return self._stratified[0]

    @cached_property
    def test_strata(self) -> Tensor:
        """The strata of `test_y`, numbered as those of `y`."""
        return self._stratified[1][: len(self.test_y)]

    @cached_property
    def validation_strata(self) -> Tensor:
        """The strata of `validation_y`, likewise."""
        return self._stratified[1][len(self.test_y) :]

    @cached_property
    def strata_names(self) -> tuple[str, ...]:
        """The names of the strata; those of classes are the classes."""
        return task_named(self.task).strata_names(self.class_names)

    @cached_property
    def _stratified(self) -> tuple[Tensor, Tensor]:
        others = torch.cat([self.test_y, self.validation_y])
        return task_named(self.task).stratify(self.y, others)

    def tests(self, domain: int) -> slice:
        """Return the index of a domain's test samples."""
        return slice(self.test_starts[domain], self.test_starts[domain + 1])

    def validations(self, domain: int) -> slice:
        """Return the index of a domain's validation samples."""
        return slice(self.validation_starts[domain], self.validation_starts[domain + 1])

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the content, see `syncnorm.data.fingerprint`."""
        places = torch.tensor([self.starts, self.validation_starts, self.test_starts])
        samples = (self.x, self.y, self.validation_x, self.validation_y, self.test_x, self.test_y)
        return content_hash((*samples, places), (*self.natural, *self.domain))

    def summary(self) -> str:
        """Return one line: numbers of samples and classes, and changes during loading."""
        shape, size = tuple(self.x.shape[1:]), sizes(self.y, self.validation_y, self.test_y)
        names = self.names[0] if len(self.names) == 1 else f"{len(self.names)} domains ({', '.join(self.names)})"
        said = f"{names}: {size} {KINDS.get(len(shape), 'samples')} {shape}, "
        said += targets_in_words(self.task, self.y, self.class_names)
        never = untrained(self.y, self.test_y, self.class_names) if self.task == CLASSES else []
        return "; ".join((said, *never, *self.changes))

    def __repr__(self) -> str:
        return f"<Pool {self.summary()}>"


@lru_cache(maxsize=2)
def load_pool(
    data: Data,
    names: tuple[str, ...],
    apart: bool,
    device: torch.device,
    dtype: torch.dtype,
    unseen: tuple[str, ...] = (),
    seed: int = 0,
    task: str = "classification",
) -> Pool:
    """Load the domains `names` into one pool, split by the seed; the last two pools are cached.

    With `apart`, `data.path` is a folder that contains each domain under its name, as a folder or a table file, or it
    is the folder of the UCI HAR Dataset, whose subjects are the domains. An embedded or registered data set that is
    not there is loaded by its name. If no name is one of these, and `data.natural` or a registered `data.name` gives
    a column of domains, the domains are values of that column.

    Embedded domains that are made of the same digits share them out, unless `data.content` says otherwise.

    A single domain is normalised by its own mean and standard deviation. Several share the fixed scale, or, if they
    have none (tables of features, registered arrays), the mean and standard deviation of the training samples of all
    domains except `unseen` ones. If some domains have colour images, grey images get three equal channels.

    Raises `UserError` if a domain cannot be loaded, or if classes or shapes differ.
    """
    by_column = _are_values(data, names)
    scale: Scale = "own" if len(names) == 1 and not by_column else "fixed"
    sets = _cut(data, names, seed, task) if by_column else _load_apart(data, names, apart, scale, seed, task)
    if {one.shape[0] for one in sets if len(one.shape) == 3} == {1, 3}:
        sets = [_in_colour(one) for one in sets]
    for first, second in combinations(sets, 2):
        _check_alike(first, second)
    measured = scale == "own" or not all(one.scaled for one in sets)
    sets = _scaled_together(sets, unseen)
    return Pool(
        names=names,
        x=moved(together([one.train_x for one in sets]), device, dtype),
        y=targets_to(together([one.train_y for one in sets]), device, dtype),
        test_x=moved(together([one.test_x for one in sets]), device, dtype),
        test_y=targets_to(together([one.test_y for one in sets]), device, dtype),
        starts=tuple(accumulate((len(one.train_y) for one in sets), initial=0)),
        test_starts=tuple(accumulate((len(one.test_y) for one in sets), initial=0)),
        class_names=sets[0].class_names,
        scale=scale,
        natural=tuple(one.natural for one in sets),
        domain=tuple(one.domain for one in sets),
        changes=tuple(dict.fromkeys(change for one in sets for change in one.changes)),
        validation_x=moved(together([one.validation_x for one in sets]), device, dtype),
        validation_y=targets_to(together([one.validation_y for one in sets]), device, dtype),
        validation_starts=tuple(accumulate((len(one.validation_y) for one in sets), initial=0)),
        origin=_origins([(one.origin, len(one.test_y)) for one in sets]),
        train_origin=_origins([(one.train_origin, len(one.train_y)) for one in sets]),
        measured=measured,
        task=task,
    )


ON_REGISTRATION.append(load_pool.cache_clear)


def _load_apart(data: Data, names: Sequence[str], apart: bool, scale: Scale, seed: int, task: str) -> list[Dataset]:
    """Return one data set per name."""
    asked = [replace(data, name=name, path=_place(data.path, name) if apart else data.path) for name in names]
    shares = _shares([read_config(one, task) for one in asked], data)
    pairs = zip(asked, shares, strict=True)
    return [load_config(one, scale=scale, seed=seed, share=share, task=task) for one, share in pairs]


def _shares(raws: Sequence[Pixels | Signals], data: Data) -> list[Share]:
    """Return the part of its content that each domain has: domains of one content share it out."""
    if data.content == "shared":
        return [WHOLE] * len(raws)
    contents = [raw.origin.content if raw.origin else None for raw in raws]
    return [
        Share(contents[:index].count(one), contents.count(one)) if one else WHOLE
        for index, one in enumerate(contents)
    ]


def _are_values(data: Data, names: Sequence[str]) -> bool:
    """Return whether domains are values of a column of `data` instead of separate data sets."""
    if data.name in names or not (data.natural or is_registered(data.name)):
        return False
    return not any(name in SOURCES or (data.path and _found(Path(data.path).expanduser(), name)) for name in names)


def _cut(data: Data, names: Sequence[str], seed: int, task: str) -> list[Dataset]:
    """Return the parts of one data set with the domains `names`; the limits apply to each."""
    whole = read_config(data, task)
    column = whole.domain or whole.natural
    if column is None:
        raise UserError(
            f"data set '{data.name}' has no column that says which domain a sample is from: set data.natural to it, "
            "or have its function return one as domain."
        )
    for name in names:
        if name not in column.names:
            raise unknown(f"domain of data set '{data.name}'", name, column.names)
    return [_part(whole, column, name, data, seed) for name in names]


def _part(whole: Pixels | Signals, column: Groups, name: str, data: Data, seed: int) -> Dataset:
    own = column.names.index(name)
    tested = column.test if len(column.test) else column.train

    def keep(parts: Parts) -> Parts:
        kept = [
            part[values[part] == own]
            for part, values in zip(parts, (column.train, column.train, tested), strict=True)
        ]
        for split, part in (("train", kept[0]), ("test", kept[2])):
            if len(part) == 0:
                raise UserError(f"domain '{name}' of data set '{data.name}' has no {split} sample: leave it out.")
        return Parts(*kept)

    return dataset_of(whole, data, name, "fixed", seed, keep=keep)


def _origins(parts: Sequence[tuple[Tensor | None, int]]) -> Tensor | None:
    """Return numbers of what the samples of all domains show, or None if every sample is its own.

    Samples of a domain without such numbers get numbers of their own, after all others.
    """
    given = [origin for origin, _ in parts if origin is not None]
    if not given:
        return None
    following = max((int(origin.max()) + 1 for origin in given if len(origin)), default=0)
    found = []
    for origin, count in parts:
        found.append(torch.arange(following, following + count) if origin is None else origin)
        following += count if origin is None else 0
    return torch.cat(found)


def _scaled_together(sets: list[Dataset], unseen: Sequence[str]) -> list[Dataset]:
    """Normalise data sets without a fixed scale by the moments of all training domains."""
    if all(one.scaled for one in sets):
        return sets
    for one, other in combinations(sets, 2):
        if one.scaled != other.scaled:
            raise UserError(
                f"domains '{one.name}' and '{other.name}' have no scale in common: one has pixels or known units, "
                "the other plain numbers, so give both as pixels (bytes)."
            )
    seen = [one for one in sets if one.name not in unseen] or sets
    mean, std = signal_moments(together([one.train_x for one in seen]))

    def scaled(x: Tensor) -> Tensor:
        return by_rows(lambda part: ((part - mean) / std).float(), x)

    return [
        replace(
            one,
            train_x=scaled(one.train_x),
            validation_x=scaled(one.validation_x),
            test_x=scaled(one.test_x),
            scaled=True,
        )
        for one in sets
    ]


def _in_colour(data: Dataset) -> Dataset:
    """Return one-channel images with three equal channels."""
    if data.shape[0] == 3:
        return data
    train, validation, test = (x.expand(-1, 3, -1, -1) for x in (data.train_x, data.validation_x, data.test_x))
    return replace(data, train_x=train, validation_x=validation, test_x=test)


def _place(path: str, name: str) -> str:
    """Return the path of a domain; empty for one that is loaded by its name alone."""
    if not path:
        return ""
    folder = Path(path).expanduser()
    if is_har(folder):
        return path
    if place := _found(folder, name):
        return str(place)
    if not folder.is_dir():
        raise UserError(
            f"data.path {folder} is no folder: give the folder in which each domain lies under its name, or set "
            "data.natural to the column of a table that names the domains."
        )
    if name in SOURCES:
        return ""
    found = {file.stem for file in folder.iterdir() if file.is_dir() or file.suffix in TABLE_SUFFIXES}
    raise unknown(f"domain in {folder}", name, found)


def _found(folder: Path, name: str) -> Path | None:
    """Return the folder or table file called `name`."""
    places = (folder / name, *(folder / f"{name}{suffix}" for suffix in TABLE_SUFFIXES))
    return next((place for place in places if place.exists()), None)


def _check_alike(first: Dataset, second: Dataset) -> None:
    pair = f"domains '{first.name}' and '{second.name}'"
    if first.class_names != second.class_names:
        raise UserError(
            f"{pair} have other classes ({_listed(first.class_names)}; {_listed(second.class_names)}): choose "
            "domains of one task."
        )
    if first.shape != second.shape:
        raise UserError(
            f"{pair} have samples of other shapes ({first.shape} and {second.shape}): {_mend(first, second)}."
        )


def _mend(first: Dataset, second: Dataset) -> str:
    if len(first.shape) != 3 or len(second.shape) != 3:
        return "choose domains of one kind of signal"
    same_channels = first.shape[0] == second.shape[0]
    return "set data.size" if same_channels else "choose domains that are all grey or all in colour"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:12])} and {len(names) - 12} more"
