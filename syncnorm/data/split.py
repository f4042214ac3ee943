"""Which samples train, validate and test, and which a limit keeps: all of it is drawn here, by the run's seed.

Every draw has its own random stream (`derive`), and samples of one origin (crops of one digit) stay on one side. Test
and validation samples do not depend on a domain's name: in domains that show the same digits, they are the same ones.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from syncnorm.config import Data
from syncnorm.data.raw import Labels, Pixels, Signals
from syncnorm.errors import UserError
from syncnorm.seeds import derive
from syncnorm.tasks import task_named

Indices = NDArray[np.int64]
FIFTH = 5
"""One of so many samples is for the test."""


class Share(NamedTuple):
    """The part of what several domains show that is one domain's: number `turn` of `domains`."""

    turn: int = 0
    domains: int = 1


WHOLE = Share()


class Parts(NamedTuple):
    """Indices of samples, ascending: `train` and `validation` into the training samples of a source.

    `test` indexes the official test samples, or, in a source without them, the same samples as `train`.
    """

    train: Indices
    validation: Indices
    test: Indices


def split_samples(raw: Pixels | Signals, data: Data, seed: int, name: str, share: Share = WHOLE) -> Parts:
    """Return the parts of a source called `name`, without limits.

    In a source without test samples, a fifth of every stratum is the test: of each class, and of each class of a
    natural client if there is such a column. Then `data.validation` of the rest is for validation, in the same
    strata. With `data.split` "writers", a fifth of the writers is the test, and that fraction of the others is for
    validation; both are rounded, to one writer at least. With "fixed", seed 0 draws.

    Of each part, `share` then takes this domain's: things are dealt in turn, stratified by class.

    Raises `UserError` if there are no writers, or too few.
    """
    seed = seed_of(data, seed)
    whole = len(raw.test_y) == 0
    number, first = _numbers(raw)
    strata = _by_client(strata_of(raw)[0], raw.natural.train if raw.natural else None)[first]
    if data.split == "writers":
        test, validation = _by_writer(_writers(raw, name)[first], data.validation, seed, name, whole)
    else:
        test = stratified_fifth(strata, seed)[1] if whole else np.zeros(0, np.int64)
        rest = np.setdiff1d(np.arange(len(first)), test)
        validation = rest[held_out(strata[rest], data.validation, validation_keys(rest, seed))]
    part = np.zeros(len(first), np.int64)
    part[validation], part[test] = 1, 2
    if share.domains > 1:
        part[_not_dealt(strata * 3 + part, share, seed)] = 3
    of_sample = part[number]
    train, held, tested = (np.flatnonzero(of_sample == which) for which in range(3))
    return Parts(train, held, tested if whole else np.arange(len(raw.test_y)))


def drawn_in_words(raw: Pixels | Signals, data: Data) -> tuple[str, ...]:
    """Return a phrase on how the test was drawn; none if it is an official one."""
    if len(raw.test_y):
        return ()
    how = "a fifth of the writers" if data.split == "writers" else "a stratified fifth"
    return (f"{how}, drawn by {'seed 0' if data.split == 'fixed' else 'the seed'}, is the test",)


def limited(
    labels: tuple[Labels, Labels, Labels], data: Data, seed: int, name: str
) -> tuple[Indices, Indices, Indices]:
    """Return which of the training, validation and test samples the limits keep, ascending, for their labels.

    Training and validation together have `data.train_limit` samples, in the proportion that they had. A limit is
    stratified by class, and of two limits the smaller keeps a subset of the larger. Each domain (`name`) has its own
    draw.
    """
    train, validation, test = map(len, labels)
    kept = min(data.train_limit or train + validation, train + validation)
    for_validation = round(kept * validation / max(train + validation, 1))
    counts = (kept - for_validation, for_validation, min(data.test_limit or test, test))
    found = []
    for part, y, count in zip(("train", "validation", "test"), labels, counts, strict=True):
        keys = np.random.default_rng(derive("limit", seed_of(data, seed), name, part)).permutation(len(y))
        found.append(np.sort(stratified_order(y, keys)[:count]))
    return found[0], found[1], found[2]


def check_validation(fraction: float, train: Labels, validation: Labels, names: tuple[str, ...], what: str) -> None:
    """Raise `UserError` if a class of the data called `what` has no validation sample, or no training sample."""
    if not fraction:
        return
    trained, validated = (np.bincount(y, minlength=len(names)) for y in (train, validation))
    for label, name in enumerate(names):
        found = int(trained[label] + validated[label])
        if found and not (trained[label] and validated[label]):
            without, instead = ("training", "lower") if validated[label] else ("validation", "raise")
            samples = f"{found} sample{'s' * (found > 1)}"
            raise UserError(
                f"data.validation is {fraction:g}, which leaves class '{name}' of {what} without a {without} sample: "
                f"beside the test it has {samples}, so {instead} the fraction, or give that class more samples."
            )


def seed_of(data: Data, seed: int) -> int:
    """Return the seed that draws a run's split and limits."""
    return 0 if data.split == "fixed" else seed


def stratified_fifth(strata: Labels, seed: int = 0) -> tuple[Indices, Indices]:
    """Return ascending indices (rest, fifth): a random fifth of every stratum, rounded up or down."""
    array = np.asarray(strata)
    mixed = np.random.default_rng(derive("split", seed)).permutation(len(array))
    by_stratum = mixed[np.argsort(array[mixed], kind="stable")]
    fifth = np.zeros(len(array), dtype=bool)
    fifth[by_stratum[::FIFTH]] = True
    return np.flatnonzero(~fifth), np.flatnonzero(fifth)


def stratified_order(strata: Labels, keys: NDArray[np.integer]) -> Indices:
    """Return an order of samples in which every stratum is spread evenly: each beginning is stratified.

    The sample with the r-th smallest key (from 0) of a stratum of n comes at the place (r + 1/2) / n, so that the
    first m of N samples have m n / N of the stratum, to within one or so. Equal places are ordered by key.
    """
    by_stratum = np.lexsort((keys, strata))
    _, sizes = np.unique(strata, return_counts=True)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = (np.arange(len(strata)) - starts + 0.5) / np.repeat(sizes, sizes)
    order: Indices = by_stratum[np.lexsort((keys[by_stratum], place))]
    return order


def held_out(strata: Labels, fraction: float, keys: NDArray[np.integer]) -> Indices:
    """Return which samples are held out: `fraction` of all, rounded down, stratified, with the smallest keys."""
    count = int(fraction * len(strata) + 1e-9)  # 0.29 of 100 must be 29, not 28
    return np.sort(stratified_order(strata, keys)[:count])


def validation_keys(numbers: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
    """Return a random key for each number of a sample's origin: the same for a number wherever it occurs."""
    size = int(numbers.max()) + 1 if len(numbers) else 0
    drawn: NDArray[np.int64] = np.random.default_rng(derive("validation", seed)).integers(0, 1 << 62, size)[numbers]
    return drawn


def strata_of(raw: Pixels | Signals) -> tuple[Labels, Labels]:
    """Return what stratification goes by in the training samples, and in those that `Parts.test` indexes: classes.

    For another task than classification these are the strata of its targets.
    """
    targets = (torch.from_numpy(y) for y in (raw.train_y, raw.test_y))
    train, test = (part.numpy() for part in task_named(raw.task).stratify(*targets))
    return train, test if len(test) else train


def _by_client(labels: Labels, natural: Labels | None) -> Labels:
    """Return a number for each class, or for each class of each natural client."""
    return labels if natural is None else natural * (int(labels.max()) + 1) + labels


def _numbers(raw: Pixels | Signals) -> tuple[Indices, Indices]:
    """Return the number of what each training sample shows, counted without gaps, and a sample that shows each."""
    if raw.origin is None:
        return np.arange(len(raw.train_y)), np.arange(len(raw.train_y))
    _, first, number = np.unique(raw.origin.number, return_index=True, return_inverse=True)
    return number.reshape(-1), first


def _writers(raw: Pixels | Signals, name: str) -> Labels:
    if raw.natural:
        return raw.natural.train
    if raw.origin:
        return raw.origin.writer
    raise UserError(
        f"data.split is writers, and data set '{name}' does not say who wrote a sample: set data.natural to a column "
        "that does, or data.split to random."
    )


def _by_writer(writers: Labels, fraction: float, seed: int, name: str, whole: bool) -> tuple[Indices, Indices]:
    """Return the samples for the test (none if there is an official one) and for validation, of whole writers."""
    found = np.random.default_rng(derive("writers", seed)).permutation(np.unique(writers))
    tests = max(1, round(len(found) / FIFTH)) if whole else 0
    validations = max(1, round(fraction * (len(found) - tests))) if fraction else 0
    if tests + validations >= len(found):
        raise UserError(
            f"data.split is writers, and data set '{name}' has {len(found)} of them: {tests} for the test and "
            f"{validations} for validation leave none for training, so set data.split to random."
        )
    tested, validated = found[:tests], found[tests : tests + validations]
    return np.flatnonzero(np.isin(writers, tested)), np.flatnonzero(np.isin(writers, validated))


def _not_dealt(strata: Labels, share: Share, seed: int) -> Indices:
    """Return what is not one domain's: things are dealt to domains in turn, in random order within each stratum."""
    mixed = np.random.default_rng(derive("content", seed)).permutation(len(strata))
    turns = mixed[np.argsort(strata[mixed], kind="stable")]
    return np.setdiff1d(turns, turns[share.turn :: share.domains])
