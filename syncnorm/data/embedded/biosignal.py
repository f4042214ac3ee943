"""Generated physiological signals: one person's pulse, breath, skin conductance and skin temperature in three states.

The data are synthetic. They have the structure of such recordings but describe no population: results on them say
nothing about people.

A window is 128 samples at 8 Hz (16 s) of 4 channels: pulse wave (arbitrary units), breathing (arbitrary units), skin
conductance (microsiemens), skin temperature (degrees Celsius). A person's sensors record

    x = baseline + offset + gain * (signal + noise)

    pulse:        a (cos(u) + shape cos(2 u + lag)), du/dt = 2 pi heart (1 + sway breath)
    breathing:    d cos(v), dv/dt = 2 pi breath
    conductance:  level + drift t + responses, each with a rise of about 1 s and a decay of some seconds
    temperature:  warmth + drift t

Differences between states (rest, load, stress): heart and breathing rates rise, the pulse gets smaller, breathing
shallower, conductance higher with more responses, and the skin cooler.

Differences between persons, and the effect of normalising a person's channels by their own mean and deviation:

- gain and offset of each channel (contact, calibration): affine per channel, so normalising removes them exactly;
- heart and breathing rate at rest, shape of the pulse wave, strength of each sign of the state (some hardly sweat),
  duration of a response, noise: not affine, so normalising cannot remove them.

Differences between windows of a person and state: current phases, rates and depths, times and sizes of responses,
slow drifts, noise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from syncnorm.seeds import derive

Array = NDArray[np.float64]

NAMES = ("rest", "load", "stress")
LENGTH, RATE = 128, 8.0
"""Samples per window, and per second."""
SIGNS = ("heart", "pulse", "breath", "depth", "level", "responses", "warmth")
"""Quantities that depend on the state: heart rate, size of the pulse wave, breathing rate and depth, level of
conductance and number of its responses, temperature."""
BASELINE = np.array([0.0, 0.0, 3.0, 33.0])
"""Values by channel for the average person at rest."""
STATES = np.array(
    [
        [0.00, 0.00, 0.00, 0.00, 0.0, 0.0, 0.0],
        [0.10, -0.15, 0.18, -0.15, 0.5, 1.3, -0.25],
        [0.24, -0.38, 0.30, -0.10, 1.0, 2.2, -0.60],
    ]
)
"""By state (`NAMES`) and sign: logarithms of factors, for the level microsiemens and for the warmth degrees."""


@dataclass(frozen=True)
class Person:
    """The traits common to one person's recordings."""

    number: int
    gain: Array
    """(4,), of each channel."""
    offset: Array
    """(4,), in the channels' units."""
    heart: float
    """Beats per second at rest."""
    breath: float
    """Breaths per second at rest."""
    shape: tuple[float, float]
    """Size and lag (radians) of the pulse's second harmonic."""
    response: Array
    """(signs,): factor on each effect of a state; some are near zero."""
    decay: float
    """Seconds in which a response of the conductance falls to 1/e."""
    noise: float
    """Standard deviation of the sensors' noise, in the channels' units (a tenth of it for temperature)."""


def person(number: int) -> Person:
    """Draw person `number`; each trait has its own random stream."""

    def stream(trait: str) -> np.random.Generator:
        return np.random.default_rng(derive(f"biosignal {trait}", 0, number))

    return Person(
        number,
        gain=np.exp(stream("gain").normal(0, 0.3, 4)),
        offset=stream("offset").normal(0, (0.25, 0.25, 0.5, 0.25)),
        heart=float(np.exp(stream("heart").normal(np.log(1.1), 0.08))),
        breath=float(np.exp(stream("breath").normal(np.log(0.25), 0.14))),
        shape=(float(stream("shape").uniform(0.2, 0.6)), float(stream("lag").uniform(-1.0, 1.0))),
        response=stream("response").gamma(3.0, 1 / 3.0, len(SIGNS)),
        decay=float(stream("decay").uniform(2.0, 5.0)),
        noise=float(np.exp(stream("noise").normal(np.log(0.12), 0.4))),
    )


def window(one: Person, label: int, index: int) -> Array:
    """Return window `index` of a person in state `label`: (4, 128), in the channels' units."""
    rng = np.random.default_rng(derive("biosignal window", 0, one.number, index))
    time = np.arange(LENGTH) / RATE
    now = dict(
        zip(SIGNS, STATES[label] * one.response + rng.normal(0, (0.05, 0.12, 0.1, 0.2, 0.3, 0.3, 0.2)), strict=True)
    )
    breathing = 2 * np.pi * one.breath * np.exp(now["breath"]) * time + rng.uniform(0, 2 * np.pi)
    speed = 2 * np.pi * one.heart * np.exp(now["heart"]) * (1 + 0.06 * np.cos(breathing))
    beat = np.cumsum(speed) / RATE + rng.uniform(0, 2 * np.pi)
    size, lag = one.shape
    conductance = now["level"] + rng.normal(0, 0.01) * time
    for _ in range(rng.poisson(0.8 * np.exp(now["responses"]))):
        since = np.clip(time - rng.uniform(-4, LENGTH / RATE), 0, None)
        conductance += rng.gamma(2.0, 0.15) * (np.exp(-since / one.decay) - np.exp(-since / 0.7))
    signal = np.stack(
        [
            np.exp(now["pulse"]) * (np.cos(beat) + size * np.cos(2 * beat + lag)),
            np.exp(now["depth"]) * np.cos(breathing),
            conductance,
            now["warmth"] + rng.normal(0, 0.005) * time,
        ]
    )
    signal += one.noise * np.array([[1.0], [1.0], [1.0], [0.1]]) * rng.standard_normal(signal.shape)
    recorded: Array = (BASELINE + one.offset)[:, None] + one.gain[:, None] * signal
    return recorded
