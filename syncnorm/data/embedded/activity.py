"""Generated wearable activity recognition: one person's accelerometer and gyroscope in six activities.

The data are synthetic. They have the structure of such recordings but describe no population: results on them say
nothing about people.

A window is 64 samples at 25 Hz (2.56 s) of 6 channels: acceleration along the sensor's x, y, z in g, angular velocity
about them in rad/s. In the body's frame (forward, left, up) an activity is a direction of gravity and a sum of
harmonics of the stride frequency; a person's sensor sees it as

    x = gain * (R (gravity + sum_h style_h amplitude_h cos(2 pi h f t + phase_h)) + noise) + offset

Differences between activities: lean (the direction of gravity), stride frequency, amplitudes of the harmonics by
axis. Stairs are close to walking, and standing to sitting.

Differences between persons, and the effect of normalising a person's channels by their own mean and deviation:

- gain and offset of each channel (attachment, calibration): affine per channel, so normalising removes them exactly;
- placement, a rotation R of the sensor that accelerometer and gyroscope share: it mixes channels, so normalising
  cannot remove it, except for the effect of R on a person's mean gravity;
- tempo (stride frequency), style (a factor for each axis and harmonic, their phases), posture, noise: not affine, so
  normalising cannot remove them.

Differences between windows of a person and activity: current phase, tempo and vigour, sway, noise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from syncnorm.seeds import derive

Array = NDArray[np.float64]

NAMES = ("walking", "upstairs", "downstairs", "sitting", "standing", "lying")
LENGTH, RATE = 64, 25.0
"""Samples per window, and per second."""
HARMONICS = np.array([1.0, 2.0, 4.0])
"""Multiples of the stride frequency. The left-right symmetry of a stride makes the second strong, up and forward."""


@dataclass(frozen=True)
class Activity:
    """An activity in the body's frame."""

    lean: tuple[float, float]
    """Degrees that the trunk is turned backwards and to its left: (0, 0) is upright."""
    stride: float
    """Strides (two steps) per second."""
    shake: tuple[tuple[float, float, float], ...]
    """Amplitude in g by axis (forward, left, up) and harmonic."""
    turn: tuple[tuple[float, float, float], ...]
    """Amplitude in rad/s about those axes, by harmonic."""


STILL = ((0.004, 0.003, 0.001), (0.005, 0.003, 0.001), (0.003, 0.002, 0.001))
ACTIVITIES = (
    Activity(
        (-2, 0),
        0.92,
        ((0.04, 0.16, 0.05), (0.12, 0.04, 0.03), (0.04, 0.28, 0.09)),
        ((0.40, 0.10, 0.08), (0.10, 0.45, 0.15), (0.50, 0.12, 0.06)),
    ),
    Activity(
        (-9, 0),
        0.80,
        ((0.05, 0.20, 0.04), (0.14, 0.04, 0.02), (0.05, 0.24, 0.06)),
        ((0.45, 0.12, 0.06), (0.15, 0.60, 0.12), (0.40, 0.10, 0.05)),
    ),
    Activity(
        (2, 0),
        0.96,
        ((0.05, 0.14, 0.08), (0.15, 0.06, 0.06), (0.06, 0.34, 0.18)),
        ((0.45, 0.16, 0.12), (0.12, 0.50, 0.25), (0.42, 0.14, 0.10)),
    ),
    Activity((16, 0), 0.3, STILL, STILL),
    Activity(
        (0, 0), 0.4, tuple((2 * a, 2 * b, c) for a, b, c in STILL), tuple((4 * a, 3 * b, c) for a, b, c in STILL)
    ),
    Activity((78, 15), 0.3, STILL, STILL),
)
"""In the order of `NAMES`."""


@dataclass(frozen=True)
class Person:
    """The traits common to one person's recordings."""

    number: int
    gain: Array
    """(6,), of each channel."""
    offset: Array
    """(6,), in g and rad/s."""
    placement: Array
    """(3, 3): the rotation from the body's axes to the sensor's."""
    tempo: float
    """Factor on every stride frequency."""
    style: Array
    """(activities, 6, harmonics): factor on the amplitudes."""
    phase: Array
    """(activities, 6, harmonics): of the harmonics, relative to the stride."""
    posture: Array
    """(activities, 2): degrees added to the lean."""
    noise: float
    """Standard deviation of the sensor's noise, in g and rad/s."""


def person(number: int) -> Person:
    """Draw person `number`; each trait has its own random stream."""

    def stream(trait: str) -> np.random.Generator:
        return np.random.default_rng(derive(f"activity {trait}", 0, number))

    shape = (len(ACTIVITIES), 6, len(HARMONICS))
    own_style = stream("style").normal(0, 1, (6, len(HARMONICS)))
    return Person(
        number,
        gain=np.exp(stream("gain").normal(0, 0.25, 6)),
        offset=stream("offset").normal(0, 0.2, 6),
        placement=rotation(stream("placement").normal(0, np.radians(14), 3)),
        tempo=float(np.exp(stream("tempo").normal(0, 0.10))),
        style=np.exp(0.25 * own_style + stream("gait").normal(0, 0.12, shape)),
        phase=stream("phase").uniform(-np.pi, np.pi, (6, len(HARMONICS))) + stream("phases").normal(0, 0.4, shape),
        posture=stream("posture").normal(0, (4, 3), (len(ACTIVITIES), 2)),
        noise=float(np.exp(stream("noise").normal(np.log(0.02), 0.4))),
    )


def window(one: Person, label: int, index: int) -> Array:
    """Return window `index` of a person during activity `label`: (6, 64), in g and rad/s."""
    rng = np.random.default_rng(derive("activity window", 0, one.number, index))
    activity = ACTIVITIES[label]
    stride = activity.stride * one.tempo * np.exp(rng.normal(0, 0.05))
    vigour = np.exp(rng.normal(0, 0.15))
    start = rng.uniform(0, 2 * np.pi)
    angle = (2 * np.pi * stride * np.arange(LENGTH) / RATE + start) * HARMONICS[:, None]
    amplitude = vigour * np.array([*activity.shake, *activity.turn]) * one.style[label]
    waves = np.cos(angle[None] + one.phase[label][..., None])
    body = (amplitude[..., None] * waves).sum(1)
    back, left = np.radians(np.array(activity.lean) + one.posture[label] + rng.normal(0, (3, 2)))
    body[:3] += rotation(np.array([0, back, 0])) @ rotation(np.array([left, 0, 0])) @ np.array([[0.0], [0.0], [1.0]])
    sensed = np.concatenate([one.placement @ body[:3], one.placement @ body[3:]])
    sensed += rng.normal(0, one.noise, sensed.shape)
    recorded: Array = one.gain[:, None] * sensed + one.offset[:, None]
    return recorded


def rotation(vector: Array) -> Array:
    """Return the rotation (3, 3) about `vector` (3,) by its length in radians (Rodrigues' formula)."""
    angle = float(np.linalg.norm(vector))
    if angle == 0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned: Array = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turned
