"""The scores of pixel baselines in a results folder: which data they belong to, and how they are stored.

`baselines.jsonl` has one line per baseline and problem. A problem is the data of a run, its split and the weights of
its test samples, so that all runs on the same data with the same seed share one.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from syncnorm.config import WORLD_CONFIGS
from syncnorm.errors import UserError
from syncnorm.files import write_file
from syncnorm.worlds import SAMPLES

SCORES = "baselines.jsonl"
TRAINING_ONLY = ("augment",)
"""Fields of the data that change nothing for a baseline."""
DIGITS = 12


@dataclass(frozen=True)
class Scored:
    """The score of a baseline on a problem."""

    baseline: str
    words: str
    """Its name in figures."""
    problem: str
    """`problem_of` the runs that it can be compared with."""
    samples: str
    """Fingerprint of the data."""
    content: str
    """Hash of the samples, labels and weights that it was given."""
    accuracy: float
    used: int
    """Number of training samples that it used."""
    of: int
    """Number of training samples."""
    tests: int
    """Number of test samples."""
    settings: str
    """The settings that it chose."""
    source: str
    """Hash of its source, if it is registered; else empty."""
    seconds: float

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it was computed for; a later score with the same key replaces it."""
        return self.baseline, self.source, self.problem, self.samples

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Return whether it is a score on the data of a row."""
        seen = (row.get("fingerprints") or {}).get(SAMPLES, self.samples)
        return self.samples == seen and self.problem == problem_of(row["config"])


def problem_of(config: Mapping[str, Any]) -> str:
    """Return what names the problem of a run, from its description: 12 hex digits."""
    return _hash([family_of(config), config["seed"]])


def family_of(config: Mapping[str, Any]) -> str:
    """Return what problems of different seeds have in common: 12 hex digits."""
    world = config["world"]
    kind = next(kind for kind in WORLD_CONFIGS if kind.kind == world["kind"])
    data = {name: value for name, value in config["data"].items() if name not in TRAINING_ONLY}
    return _hash([kind.kind, data, {name: world[name] for name in kind.deals if name in world}])


def read_scores(folder: Path) -> tuple[Scored, ...]:
    """Return the scores in a results folder, those with the same key once; empty without any."""
    path = folder / SCORES
    if not path.exists():
        return ()
    try:
        found = [Scored(**json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {path}: remove it, and the next start makes it again.") from error
    return tuple({one.key: one for one in found}.values())


def write_scores(folder: Path, scores: Iterable[Scored]) -> None:
    """Write all scores of a results folder, atomically."""
    write_file(folder / SCORES, "".join(json.dumps(asdict(one)) + "\n" for one in scores))


def _hash(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]
