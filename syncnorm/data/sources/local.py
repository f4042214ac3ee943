"""Data on this machine: a parquet or CSV file, a folder of them, or a folder of images."""

import os
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from syncnorm.data.raw import Pixels, Signals
from syncnorm.data.sources.decode import Raw, to_pixels
from syncnorm.data.sources.features import to_features
from syncnorm.data.sources.spool import stack_on_disk
from syncnorm.data.sources.tables import (
    TEST_NAMES,
    TRAIN_NAMES,
    Columns,
    Wanted,
    csv_table,
    find_columns,
    parquet_table,
    pick_splits,
    raw_split,
)
from syncnorm.errors import UserError
from syncnorm.tasks.task import where

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
TABLE_SUFFIXES = {".parquet": "parquet", ".csv": "CSV", ".tsv": "CSV"}
"""Suffixes of table files, and their kinds."""


@dataclass(frozen=True)
class Files:
    """The files at a path, all of one kind, by split ("train" and "test", or "whole")."""

    path: Path
    kind: str
    splits: dict[str, list[Path]]
    empty: list[str] = field(default_factory=list)
    """Class folders without an image."""

    def fingerprint(self) -> str:
        """Return 16 hex digits that change when a file is added, removed, renamed or written."""
        lines = [self.kind, *self.empty]
        for split, files in self.splits.items():
            for file in files:
                try:
                    state = file.stat()
                except OSError as error:  # e.g. a broken link
                    raise UserError(f"{file} cannot be read: {error.strerror}.") from error
                lines.append(f"{split}\t{file.relative_to(self.path.parent)}\t{state.st_size}\t{state.st_mtime_ns}")
        return sha256("\n".join(lines).encode()).hexdigest()[:16]

    def tables(self) -> dict[str, Any]:
        """Return the table of each split."""
        read = parquet_table if self.kind == "parquet" else csv_table
        return {split: read(files) for split, files in self.splits.items()}

    def read_images(self, size: int | None, on_disk: bool = False) -> Pixels:
        """Decode an image folder. Each class is a folder named after its label, in alphabetical order over all
        splits.

        `size` is the side in pixels to which images are stretched; None keeps their sizes. With `on_disk`
        they lie in files (`stack_on_disk`).
        """
        names = tuple(sorted({file.parent.name for files in self.splits.values() for file in files}))
        number = {name: index for index, name in enumerate(names)}
        raws = {
            split: Raw(files, np.array([number[file.parent.name] for file in files], dtype=np.int64), names)
            for split, files in self.splits.items()
        }
        stacked = stack_on_disk if on_disk else None
        changes = [f"left out, as empty: class folder {name}" for name in self.empty]
        return to_pixels(raws, size, str(self.path), f"image folder {self.path.name}", changes, stacked)


def columns_of(tables: dict[str, Any], what: str, wanted: Wanted) -> Columns:
    """Return the image, label and natural columns, which must be the same in all splits' tables."""
    found = {split: find_columns(table.features, where(what, split), wanted) for split, table in tables.items()}
    if len(set(found.values())) > 1:
        seen = "; ".join(f"{split}: {columns.named()}" for split, columns in found.items())
        raise UserError(f"{what}: the splits have other columns ({seen}): name them alike.")
    return next(iter(found.values()))


def read_tables(
    tables: dict[str, Any],
    columns: Columns,
    size: int | None,
    what: str,
    note: str,
    task: str = "classification",
    on_disk: bool = False,
) -> Pixels | Signals:
    """Return tables by split as images, or as features if no column has images. `what` names them in errors. With
    `on_disk`, images lie in files (`stack_on_disk`)."""
    note = f"{note} (columns {columns.named()})"
    if columns.image:
        raws = {split: raw_split(table, where(what, split), columns) for split, table in tables.items()}
        return to_pixels(raws, size, what, note, stacked=stack_on_disk if on_disk else None)
    if size is not None:
        raise UserError(f"data.size is {size}: size is for images, and {what} has a column of none: leave it out.")
    return to_features(tables, columns, what, note, task)


def find(path: str) -> Files:
    """Return the files at `path`; a path that is missing, empty or of an unknown kind raises `UserError`."""
    place = Path(os.path.expanduser(path)).resolve()
    try:
        if place.is_file():
            if place.suffix not in TABLE_SUFFIXES:
                raise UserError(
                    f"{place} is neither a parquet nor a CSV file: give a .parquet, .csv or .tsv file, a folder of "
                    "them, or of images."
                )
            return Files(place, TABLE_SUFFIXES[place.suffix], {"whole": [place]})
        if not place.is_dir():
            raise UserError(
                f"no data at {place}: `path` must be a parquet or CSV file, a folder with train* and test* of them, "
                "or a folder of images with one subfolder a class."
            )
        for suffix, kind in TABLE_SUFFIXES.items():
            tables = sorted(place.glob(f"*{suffix}")) or sorted(place.glob(f"*/*{suffix}"))
            if tables and (kind == "parquet" or not _holds_images(place)):
                return _table_folder(place, kind, tables)
        return _image_folder(place)
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror}.") from error


def _holds_images(place: Path) -> bool:
    """Return whether subfolders contain images; a CSV file next to them is then only a list."""
    return any(_images(sub) or any(_images(inner) for inner in _subfolders(sub)) for sub in _subfolders(place))


def _table_folder(place: Path, kind: str, files: list[Path]) -> Files:
    """Assign files to the split with which their name begins: train.parquet, train-00000-of-00002.parquet."""
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(file.stem.split("-")[0].split("_")[0].split(".")[0].lower(), []).append(file)
    chosen = pick_splits(list(found), str(place))
    return Files(place, kind, {split: found[name] for split, name in chosen.items()})


def _image_folder(place: Path) -> Files:
    """Find classes: subfolders with images, in `place` itself or in its train/ and test/; hidden folders are
    ignored."""
    folders = _subfolders(place)
    classes = [folder.name for folder in folders if _images(folder)]
    if classes and {name.lower() for name in classes} <= {*TRAIN_NAMES, *TEST_NAMES}:
        raise UserError(
            f"{place} holds images directly in {', '.join(classes)}: put the images of each class in a subfolder "
            "there, named after the class."
        )
    if classes:
        splits = {"whole": folders}
    else:
        inner = {folder.name.lower(): _subfolders(folder) for folder in folders}
        inner = {name: subs for name, subs in inner.items() if any(_images(sub) for sub in subs)}
        if not inner:
            raise UserError(
                f"{place} holds neither parquet or CSV files nor subfolders of images: put train.parquet and "
                "test.parquet there, or the images of each class in a subfolder named after the class."
            )
        splits = {split: inner[name] for split, name in pick_splits(list(inner), str(place)).items()}
    files = {split: [file for sub in subs for file in _images(sub)] for split, subs in splits.items()}
    empty = [str(sub.relative_to(place)) for subs in splits.values() for sub in subs if not _images(sub)]
    return Files(place, "images", files, empty)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )
