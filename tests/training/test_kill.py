"""Trainings that are killed at random moments end as if they had not been."""

import json
import os
from pathlib import Path

import pytest
from processes import DEVICES, run

PROGRAM = Path(__file__).with_name("kill_program.py")
STEPS = 30


def play(folder: Path, *names: str) -> None:
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    done = run(PROGRAM, str(folder), str(seed), *names, imports=DEVICES)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(names)
    for name, row in zip(names, rows, strict=True):
        assert 0 == row["firsts"][0] < row["firsts"][1] < row["firsts"][2] < STEPS, (name, row["firsts"])
        assert row["resumed"] == row["whole"], name


@pytest.mark.fault
def test_in_one_process(tmp_path: Path) -> None:
    play(tmp_path, "virtual", "virtual, by channel", "virtual, copies", "domains")


@pytest.mark.fault
def test_in_one_process_what_validation_chose(tmp_path: Path) -> None:
    play(tmp_path, "virtual, copies, best", "domains, best")


@pytest.mark.dist
@pytest.mark.fault
@pytest.mark.parametrize(
    "name", ["two ranks", "two ranks, best", "two ranks, one killed", "domains, two ranks", "four ranks"]
)
def test_on_ranks(name: str, tmp_path: Path) -> None:
    play(tmp_path, name)
