"""The unpacked UCI HAR Dataset: 30 persons with a phone at the waist, each a separate data set.

Anguita, Ghio, Oneto, Parra & Reyes-Ortiz, "A Public Domain Dataset for Human Activity Recognition Using Smartphones"
(ESANN 2013). Its folder contains, for both parts, train and test:

    activity_labels.txt                          number and name of one activity per line
    train/subject_train.txt, train/y_train.txt   the subject and the activity of one window per line
    train/Inertial Signals/body_acc_x_train.txt  the 128 values of one window per line; one file per channel

Windows last 2.56 s at 50 Hz and overlap by half; lines are assumed to be in chronological order.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from syncnorm.data.raw import Labels, Signals
from syncnorm.errors import UserError, unknown

CHANNELS = tuple(f"{sensor}_{axis}" for sensor in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
"""Acceleration without gravity in g, angular velocity in rad/s, acceleration with gravity in g."""
LENGTH = 128
PARTS = ("train", "test")


class Recording(NamedTuple):
    """All windows of both parts, in order: x float32 (N, 9, 128), labels and subjects int64 (N,), class names."""

    x: NDArray[np.float32]
    y: Labels
    subjects: Labels
    class_names: tuple[str, ...]


def is_har(folder: Path) -> bool:
    """Return whether a folder is that of the data set, complete or not."""
    return any((folder / part / f"subject_{part}.txt").is_file() for part in PARTS) or any(
        (folder / part / "Inertial Signals").is_dir() for part in PARTS
    )


def har_signals(folder: Path, name: str) -> Signals:
    """Return all windows of a subject, "subject-1" to "subject-30", from the parts train and test together.

    The split is made per subject: for each activity, the first four fifths are for training and the last fifth is for
    the test. The window before the test part is left out, since it shares half of its samples with the first test
    window. The units of the fixed scale are 0.5 g for acceleration and 0.5 rad/s for angular velocity.

    Raises `UserError` for an unknown subject, for files that are missing or malformed, and for an activity with fewer
    than three windows of the subject.
    """
    recording = _read(folder, _state(folder))
    known = [int(number) for number in np.unique(recording.subjects)]
    match = re.fullmatch(r"subject-([1-9]\d*)", name)
    if match is None or int(match[1]) not in known:
        names = [f"subject-{number}" for number in known]
        whole = known == list(range(1, len(known) + 1))
        synopsis = [f"{names[0]} to {names[-1]}"] if whole else names
        raise unknown(f"subject of the UCI HAR Dataset in {folder}", name, names, synopsis)
    windows = np.flatnonzero(recording.subjects == int(match[1]))
    train, test = _split(windows, recording, name)
    return Signals(
        recording.x[train],
        recording.y[train],
        recording.x[test],
        recording.y[test],
        recording.class_names,
        f"UCI HAR Dataset (Anguita et al. 2013), {name}: 2.56 s at 50 Hz, a last fifth of each activity is the test",
        np.zeros(len(CHANNELS), np.float32),
        np.full(len(CHANNELS), 0.5, np.float32),
    )


def _split(windows: Labels, recording: Recording, name: str) -> tuple[Labels, Labels]:
    """Return the training and the test windows, in chronological order."""
    train, test = [], []
    for label in np.unique(recording.y[windows]):
        of_label = windows[recording.y[windows] == label]
        if len(of_label) < 3:
            raise UserError(
                f"{name} has {len(of_label)} windows of {recording.class_names[label]}: a training window, one left "
                "out and a test window need 3, so leave out that activity or that subject."
            )
        cut = 4 * len(of_label) // 5
        train.append(of_label[: cut - 1])
        test.append(of_label[cut:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def _files(folder: Path, part: str) -> dict[str, Path]:
    signals = {name: folder / part / "Inertial Signals" / f"{name}_{part}.txt" for name in CHANNELS}
    return {"subject": folder / part / f"subject_{part}.txt", "y": folder / part / f"y_{part}.txt", **signals}


def _state(folder: Path) -> tuple[tuple[int, int], ...]:
    """Return sizes and times of all files, so that `_read` notices changes."""
    state = []
    for file in (folder / "activity_labels.txt", *(file for part in PARTS for file in _files(folder, part).values())):
        try:
            found = file.stat()
        except OSError as error:
            raise UserError(
                f"{folder} is not a complete UCI HAR Dataset: {file.relative_to(folder)} is missing "
                f"({error.strerror}), so unpack it again."
            ) from error
        if found.st_size == 0:
            raise UserError(f"{file} is empty: unpack the UCI HAR Dataset again.")
        state.append((found.st_size, found.st_mtime_ns))
    return tuple(state)


@lru_cache(maxsize=1)
def _read(folder: Path, state: tuple[tuple[int, int], ...]) -> Recording:
    """Read both parts once for all subjects; `state` only serves as a cache key for the folder's content."""
    names = _class_names(folder / "activity_labels.txt")
    parts = [_read_part(_files(folder, part), names) for part in PARTS]
    x, y, subjects = (np.concatenate(both) for both in zip(*parts, strict=True))
    return Recording(x, y, subjects, tuple(names.values()))


def _class_names(file: Path) -> dict[int, str]:
    """Return the activities by their number in the files, in order."""
    lines = [line.split() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    if not all(len(line) == 2 and line[0].isdecimal() for line in lines):
        raise UserError(
            f"{file} does not have a number and a name in each line, such as '1 WALKING': unpack it again."
        )
    return {number: name for number, name in sorted((int(number), name) for number, name in lines)}


def _read_part(files: dict[str, Path], names: dict[int, str]) -> tuple[NDArray[np.float32], Labels, Labels]:
    subjects, numbers = (_table(files[column], 1, np.int64)[:, 0] for column in ("subject", "y"))
    strange = set(numbers.tolist()) - set(names)
    if strange:
        raise UserError(f"{files['y']} has activity {min(strange)}, which activity_labels.txt does not name: add it.")
    channels = [_table(files[name], LENGTH, np.float32) for name in CHANNELS]
    for name, rows in (("y", len(numbers)), *zip(CHANNELS, map(len, channels), strict=True)):
        if rows != len(subjects):
            raise UserError(
                f"{files[name]} has {rows} lines and {files['subject'].name} {len(subjects)}: each line must be one "
                "window, so unpack both again."
            )
    return np.stack(channels, axis=1), np.searchsorted(list(names), numbers).astype(np.int64), subjects


def _table(file: Path, columns: int, dtype: DTypeLike) -> NDArray[Any]:
    try:
        values = np.loadtxt(file, dtype=dtype, ndmin=2)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a table of numbers: {error}") from error
    if values.shape[1] != columns:
        one = "number" if columns == 1 else "window"
        raise UserError(
            f"{file} has {values.shape[1]} values in a line: the UCI HAR Dataset has {columns}, one {one} a line."
        )
    if not np.isfinite(values).all():
        raise UserError(f"{file} has values that are not finite: unpack the UCI HAR Dataset again.")
    return values
