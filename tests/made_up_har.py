"""A made-up folder in the form of the UCI HAR Dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path

CHANNELS = [f"{sensor}_{axis}" for sensor in ("body_acc", "body_gyro", "total_acc") for axis in "xyz"]
ACTIVITIES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")
ROUND = 5
"""Windows of an activity before the next one begins; each subject goes round all activities twice."""


def value(part: str, row: int, channel: int) -> float:
    """Return what the made-up files have in all 128 columns of a row: another number for each window and channel."""
    return {"train": 1.0, "test": -1.0}[part] * (row + 1) + channel / 16


def make_har(root: Path, held_by: Mapping[str, Sequence[int]]) -> Path:
    """Write the files as they are unpacked: blanks on the left, exponents, one window in a line."""
    for part, subjects in held_by.items():
        signals = root / part / "Inertial Signals"
        signals.mkdir(parents=True)
        who = [subject for subject in subjects for _ in range(2 * len(ACTIVITIES) * ROUND)]
        what = [label for _ in subjects for _ in range(2) for label in range(1, 7) for _ in range(ROUND)]
        (root / part / f"subject_{part}.txt").write_text("".join(f"{one}\n" for one in who))
        (root / part / f"y_{part}.txt").write_text("".join(f"{one}\n" for one in what))
        for channel, name in enumerate(CHANNELS):
            lines = (f"{value(part, row, channel): .7e}".rjust(16) * 128 + "\n" for row in range(len(who)))
            (signals / f"{name}_{part}.txt").write_text("".join(lines))
    names = "".join(f"{number} {name}\n" for number, name in enumerate(ACTIVITIES, 1))
    (root / "activity_labels.txt").write_text(names)
    return root
