"""Ranges of hyperparameters, and the positions in them at which trials lie."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import floor, isfinite, log10
from typing import Any, ClassVar

from syncnorm.checks import check_value
from syncnorm.errors import UserError
from syncnorm.seeds import derive


class Range(ABC):
    """Values of one hyperparameter."""

    kind: ClassVar[str]
    """Its name in `study.json`."""
    low: float
    high: float

    @abstractmethod
    def at(self, position: float) -> Any:
        """Return the value at a position in [0, 1]."""

    def probes(self) -> list[Any]:
        """Return the values that are tried for mistakes before training: both ends and the middle."""
        return [self.at(0.0), self.at(0.5), self.at(1.0)]

    def plain(self) -> dict[str, Any]:
        """Return the range as plain data."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]

    def _check(self) -> None:
        """Raise `UserError` for ends that are no numbers, or that hold nothing between them."""
        for end in (self.low, self.high):
            check_value(end, float, f"an end of {type(self).__name__}")
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            what = "is reversed" if self.low > self.high else "holds nothing"
            raise UserError(f"the tuning range {self} {what}: its first number must be below its second.")

    @property
    def _whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.low}, {self.high})"


@dataclass(frozen=True)
class LogUniform(Range):
    """Numbers between two positive ends, evenly on a logarithmic scale, rounded to three significant digits.

    value(u) = low (high / low)^u. If both ends are whole numbers, so are the values.
    """

    kind: ClassVar[str] = "log_uniform"
    low: float
    high: float

    def __post_init__(self) -> None:
        self._check()
        if self.low <= 0:
            raise UserError(f"the tuning range {self} has a logarithmic scale: both numbers must be above 0.")

    def at(self, position: float) -> float:
        """Return the value at a position in [0, 1]."""
        value = self.low * (self.high / self.low) ** position
        # Rounded, so that a label shows the value itself, and no processor's last bit changes a run's id.
        value = round(value) if self._whole else float(f"{value:.3g}")
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Uniform(Range):
    """Numbers between two ends, evenly, rounded to a thousandth of the range or finer.

    value(u) = low + u (high - low). If both ends are whole numbers, so are the values, both ends included.
    """

    kind: ClassVar[str] = "uniform"
    low: float
    high: float

    def __post_init__(self) -> None:
        self._check()

    def at(self, position: float) -> float:
        """Return the value at a position in [0, 1]."""
        if self._whole:
            return min(int(self.low + position * (self.high - self.low + 1)), self.high)
        value = self.low + position * (self.high - self.low)
        value = round(value, 3 - floor(log10(self.high - self.low)))
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Choice(Range):
    """One of several values."""

    kind: ClassVar[str] = "choice"
    values: Sequence[Any]

    def __post_init__(self) -> None:
        if isinstance(self.values, str) or not isinstance(self.values, Sequence) or not self.values:
            raise UserError(f"a tuning range is Choice({self.values!r}): write a list of values.")
        check_value({"values": self.values}, dict[str, Any], "a tuning range")

    def at(self, position: float) -> Any:
        """Return the value at a position in [0, 1]."""
        return self.values[min(int(position * len(self.values)), len(self.values) - 1)]

    def probes(self) -> list[Any]:
        """Return all values."""
        return list(self.values)

    def __str__(self) -> str:
        return f"Choice({list(self.values)!r})"


def positions(study: str, field: str, dimension: int, count: int) -> list[float]:
    """Return the positions in [0, 1) of the first `count` trials of one field.

    They are one dimension of a scrambled Halton sequence (scipy.stats.qmc), so that any number of trials covers the
    range evenly, alone and together with other dimensions. Position k depends on the study's name, the field, its
    dimension and k: more trials extend fewer.
    """
    import numpy as np
    from scipy.stats import qmc  # slow to import

    generator = np.random.default_rng(derive("tuning", 0, study, field))
    sequence = qmc.Halton(dimension + 1, scramble=True, seed=generator)
    found: list[float] = sequence.random(count)[:, dimension].tolist()
    return found
