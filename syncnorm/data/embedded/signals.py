"""The generated signals: one data set per person, so that persons are domains of one task.

`activity-01` to `activity-24` are described in `syncnorm.data.embedded.activity`, `biosignal-01` to `biosignal-16` in
`syncnorm.data.embedded.biosignal`. A person's windows depend only on the person's number, not on the number of
persons.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from syncnorm.data.embedded import activity, biosignal
from syncnorm.data.raw import Signals

ACTIVITY_PERSONS, BIOSIGNAL_PERSONS = 24, 16
ACTIVITY_WINDOWS, BIOSIGNAL_WINDOWS = 55, 90
"""Windows per class and person, of which the run's seed draws a fifth for the test."""
SYNOPSIS = (f"activity-01 to activity-{ACTIVITY_PERSONS}", f"biosignal-01 to biosignal-{BIOSIGNAL_PERSONS}")
"""All names of `SIGNALS`, abbreviated."""


def activity_signals(person: activity.Person) -> Signals:
    """Return all 330 windows of a person, (6, 64), with balanced classes.

    The units of the fixed scale are 0.5 g for acceleration and 0.5 rad/s for angular velocity.
    """
    note = f"generated: accelerometer and gyroscope of person {person.number}, 2.56 s at 25 Hz"
    window = partial(activity.window, person)
    return _windows(window, ACTIVITY_WINDOWS, activity.NAMES, note, np.zeros(6), np.full(6, 0.5))


def biosignal_signals(person: biosignal.Person) -> Signals:
    """Return all 270 windows of a person, (4, 128), with balanced classes.

    The fixed scale subtracts the average person's baseline, in the channels' units.
    """
    note = f"generated: pulse, breath, skin conductance and temperature of person {person.number}, 16 s at 8 Hz"
    window = partial(biosignal.window, person)
    return _windows(window, BIOSIGNAL_WINDOWS, biosignal.NAMES, note, biosignal.BASELINE, np.ones(4))


def _windows(
    window: Callable[[int, int], activity.Array],
    per_class: int,
    names: tuple[str, ...],
    note: str,
    centre: activity.Array,
    unit: activity.Array,
) -> Signals:
    """Draw windows 0, 1, ... with the classes in turn."""
    y = np.arange(per_class * len(names)) % len(names)
    x = np.stack([window(int(label), index) for index, label in enumerate(y)]).astype(np.float32)
    return Signals(
        x,
        y,
        x[:0],
        y[:0],
        names,
        note,
        centre.astype(np.float32),
        unit.astype(np.float32),
    )


def _build_activity(number: int) -> Signals:
    return activity_signals(activity.person(number))


def _build_biosignal(number: int) -> Signals:
    return biosignal_signals(biosignal.person(number))


SIGNALS: dict[str, Callable[[], Signals]] = {
    **{f"activity-{k:02}": partial(_build_activity, k) for k in range(1, ACTIVITY_PERSONS + 1)},
    **{f"biosignal-{k:02}": partial(_build_biosignal, k) for k in range(1, BIOSIGNAL_PERSONS + 1)},
}
"""The generated data sets by name."""
