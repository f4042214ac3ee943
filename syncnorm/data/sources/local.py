"""Data on this machine: a parquet file, a folder of them, or a folder of images."""

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from syncnorm.data.dataset import Pixels
from syncnorm.data.sources.decode import Raw, to_pixels
from syncnorm.data.sources.tables import TEST_NAMES, TRAIN_NAMES, parquet_table, pick_splits, raw_split
from syncnorm.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Source:
    """What a path holds: files of one kind, by split ("train" and "test", or "whole")."""

    path: Path
    kind: str
    splits: dict[str, list[Path]]

    def fingerprint(self) -> str:
        """Return 16 hex digits that change when a file is added, removed, renamed or written."""
        lines = [self.kind]
        for split, files in self.splits.items():
            for file in files:
                try:
                    state = file.stat()
                except OSError as error:  # e.g. a link to a file that is gone
                    raise UserError(f"{file} cannot be read: {error.strerror}.") from error
                lines.append(f"{split}\t{file.relative_to(self.path.parent)}\t{state.st_size}\t{state.st_mtime_ns}")
        return sha256("\n".join(lines).encode()).hexdigest()[:16]

    def read(self, size: int | None) -> Pixels:
        """Decode all images. `size`: side in pixels that they are stretched to, None to keep theirs."""
        if self.kind == "images":
            return self._read_images(size)
        found = {
            split: raw_split(parquet_table(files), f"{self.path}, split {split}")
            for split, files in self.splits.items()
        }
        columns = ", ".join(next(iter(found.values()))[1])
        note = f"parquet {self.path.name} (columns {columns})"
        return to_pixels({split: raw for split, (raw, _) in found.items()}, size, str(self.path), note)

    def _read_images(self, size: int | None) -> Pixels:
        """A class is a folder: its name is the label, in alphabetical order over all splits."""
        names = tuple(sorted({file.parent.name for files in self.splits.values() for file in files}))
        number = {name: index for index, name in enumerate(names)}
        raws = {
            split: Raw(files, np.array([number[file.parent.name] for file in files], dtype=np.int64), names)
            for split, files in self.splits.items()
        }
        return to_pixels(raws, size, str(self.path), f"image folder {self.path.name}")


def find(path: str) -> Source:
    """Return what lies at `path`; what is missing, empty or of no known kind raises `UserError`."""
    place = Path(os.path.expanduser(path)).resolve()
    try:
        if place.is_file():
            if place.suffix != ".parquet":
                raise UserError(f"{place} is not a parquet file: give a .parquet file, a folder of them, or images.")
            return Source(place, "parquet", {"whole": [place]})
        if not place.is_dir():
            raise UserError(
                f"no data at {place}: `path` must be a parquet file, a folder with train*.parquet and "
                "test*.parquet, or a folder of images with one subfolder a class."
            )
        tables = sorted(place.glob("*.parquet")) or sorted(place.glob("*/*.parquet"))
        return _parquet_folder(place, tables) if tables else _image_folder(place)
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror}.") from error


def _parquet_folder(place: Path, files: list[Path]) -> Source:
    """Files belong to the split that their name begins with: train.parquet, train-00000-of-00002.parquet."""
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(file.stem.split("-")[0].split("_")[0].split(".")[0].lower(), []).append(file)
    chosen = pick_splits(list(found), str(place))
    return Source(place, "parquet", {split: found[name] for split, name in chosen.items()})


def _image_folder(place: Path) -> Source:
    """Classes are subfolders with images, of `place` itself or of its train/ and test/; nothing hidden is one."""
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
                f"{place} holds neither parquet files nor subfolders of images: put train.parquet and "
                "test.parquet there, or the images of each class in a subfolder named after the class."
            )
        splits = {split: inner[name] for split, name in pick_splits(list(inner), str(place)).items()}
    files = {split: [file for sub in subs for file in _images(sub)] for split, subs in splits.items()}
    return Source(place, "images", files)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(sub for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )
