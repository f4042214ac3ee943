"""`load`: one door to embedded data, files on this machine and the Hugging Face hub."""

import os
import re
from hashlib import sha256
from pathlib import Path
from typing import get_args

from syncnorm.data.augment import Kind, check_augment
from syncnorm.data.dataset import Dataset, Pixels, Scale, Signals, normalised
from syncnorm.data.sources.cache import cached
from syncnorm.data.sources.decode import to_pixels
from syncnorm.data.sources.digits import DOMAINS, MAX_SIZE, MIN_SIZE, SIZE
from syncnorm.data.sources.har import har_signals, is_har
from syncnorm.data.sources.local import find
from syncnorm.data.sources.signals import SIGNALS, SYNOPSIS
from syncnorm.data.sources.tables import hub_splits, pick_splits, raw_split
from syncnorm.errors import UserError, unknown


def load(
    name: str,
    *,
    path: str = "",
    size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    augment: Kind = "none",
    scale: Scale = "own",
) -> Dataset:
    """Return a data set by name; all arguments but `scale` are fields of `config.Data`.

    `name` is an embedded data set (`DOMAINS`, or a person's signals, `SIGNALS`), or a name of your own for what lies
    at `path` (a parquet file, a folder with train*.parquet and test*.parquet, an image folder with one
    subfolder a class, with or without train/ and test/), or itself such a path, or a data set of the
    Hugging Face hub ("owner/name"). Where `path` is the folder of the UCI HAR Dataset, `name` is one of its subjects,
    "subject-1" to "subject-30", see `har_signals`.
    Without a test split a stratified fifth, drawn by seed 0, is held out.

    `size` is the side in pixels that images are stretched to (embedded data: 16 by default). Limits keep that
    many samples, drawn by seed 0. Decoded images are cached, see `cache.folder`. `augment` is what
    training is to do: nothing is done here, but it is refused where the samples are signals.

    `scale` says what each channel is normalised with: "own", the mean and standard deviation of the training
    samples, or "fixed", which is (pixel - 0.5) / 0.5 for pixels in [0, 1], and for signals a centre and a unit of
    each channel that all persons share, so that domains can be compared.

    Raises `UserError` for names, paths, sizes and files that do not work.
    """
    if scale not in get_args(Scale):
        raise unknown("scale", scale, get_args(Scale))
    for option, value in (("size", size), ("train_limit", train_limit), ("test_limit", test_limit)):
        if value is not None and value < 1:
            raise UserError(f"data.{option} is {value}: it must be at least 1.")
    try:
        raw = _raw(name, path, size)
    except ImportError as error:
        raise UserError(
            f"loading data needs the package '{error.name}', which is not installed: pip install 'syncnorm[study]'."
        ) from error
    data = normalised(name, raw, train_limit, test_limit, scale)
    check_augment(augment, name, data.shape)
    return data


def _raw(name: str, path: str, size: int | None) -> Pixels | Signals:
    if path and (name in DOMAINS or name in SIGNALS):
        raise UserError(
            f"data.path is {path} but data.name is the embedded '{name}': give what lies there a name of its "
            "own, which results are kept under."
        )
    if path:
        return _from_path(path, size, name)
    if name in DOMAINS:
        return embedded_pixels(name, size or SIZE)
    if name in SIGNALS:
        return _without_size(name, SIGNALS[name](), size)
    if os.path.exists(os.path.expanduser(name)):
        return _from_path(name, size, name)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return _from_hub(name, size)
    if "/" in name or name.startswith(("~", ".")):
        return _from_path(name, size, name)
    message = str(unknown("data set", name, (*DOMAINS, *SIGNALS), (*sorted(DOMAINS), *SYNOPSIS)))
    raise UserError(
        f"{message} A path, or a name of the Hugging Face hub with its slash (owner/name), works as well."
    )


def embedded_pixels(name: str, size: int = SIZE) -> Pixels:
    """Return the pixels of an embedded data set, from the cache if they lie there."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UserError(f"data.size is {size}: the embedded data can be {MIN_SIZE} to {MAX_SIZE} pixels wide.")
    return cached(f"{name}-{size}", lambda: DOMAINS[name](size))


def _without_size(name: str, signals: Signals, size: int | None) -> Signals:
    if size is not None:
        raise UserError(
            f"data.size is {size}: size is for images, and data set '{name}' has signals of shape "
            f"{signals.train_x.shape[1:]}: leave it out."
        )
    return signals


def _from_path(path: str, size: int | None, name: str) -> Pixels | Signals:
    folder = Path(path).expanduser()
    if is_har(folder):
        return _without_size(name, har_signals(folder, name), size)
    source = find(path)
    label = re.sub(r"\W+", "_", source.path.stem)
    return cached(f"{label}-{source.fingerprint()}-{size or 'own'}", lambda: source.read(size))


def _from_hub(name: str, size: int | None) -> Pixels:
    splits = hub_splits(name)
    chosen = {split: splits[found] for split, found in pick_splits(list(splits), f"data set '{name}'").items()}
    files = [Path(part["filename"]) for table in chosen.values() for part in table.cache_files]
    state = "\n".join(f"{file}\t{file.stat().st_size}\t{file.stat().st_mtime_ns}" for file in files)
    digest = sha256(state.encode()).hexdigest()[:16]

    def build() -> Pixels:
        raws = {split: raw_split(table, f"data set '{name}', split {split}") for split, table in chosen.items()}
        note = f"{name} of the Hugging Face hub (columns {', '.join(next(iter(raws.values()))[1])})"
        return to_pixels({split: raw for split, (raw, _) in raws.items()}, size, f"data set '{name}'", note)

    return cached(f"{name.replace('/', '--')}-{digest}-{size or 'own'}", build)
