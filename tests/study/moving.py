"""What the tests of executors share: a study of clients whose runs lose their place, and what it has to end with."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from syncnorm.seeds import derive
from syncnorm.study.rows import read

ROUNDS = 5


def played(journal: Path) -> Counter[str]:
    """Return how many rounds of each run were played."""
    return Counter(line.split()[0] for line in journal.read_text().splitlines())


def until(true: Callable[[], bool], seconds: float = 100) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def check(out: Path, journal: Path, runs: int) -> None:
    """Check that every run has ended with the number that its rounds lead to, and that no run began anew."""
    rows = read(out).finished
    assert len(rows) == runs
    for row in rows:
        state = derive("round", row["config"]["seed"])
        for number in range(1, ROUNDS + 1):
            state = derive("round", state, number)
        assert row["metrics"]["accuracy"] == state / 2**63
        assert row["environment"]["python"]
    assert len(journal.read_text().splitlines()) <= runs * ROUNDS + 1, "a lost run resumes from its checkpoint"
    assert not (out / "checkpoints").exists()
