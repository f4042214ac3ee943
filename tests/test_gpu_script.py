"""`launch/gpu.sh`: parts, resuming, failures and refusals, with a stand-in for Python. `.ci/run` runs it as it is."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "launch" / "gpu.sh"
PARTS = ["layers", "checks", "bandwidth", "virtual", "cohort", "several"]
PYTHON = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$1 $2" in
    -c*) echo "Some device; torch 9; commit $COMMIT" ;;
    *" $BROKEN") echo "no such thing"; exit 3 ;;
    *) echo "printed by $*" ;;
esac
"""


def start(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    python, calls = folder / "python", folder / "calls"
    python.write_text(PYTHON)
    python.chmod(0o755)
    calls.write_text("")
    given = {**os.environ, "PYTHON": str(python), "CALLS": str(calls), "COMMIT": "1", "BROKEN": "-", **environment}
    return subprocess.run(["sh", str(SCRIPT), *options], env=given, capture_output=True, text=True, check=False)


def test_a_part_that_failed_is_tried_again_and_the_others_are_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--device", "cpu", "--out", str(out))
    first = start(tmp_path, *options, BROKEN="cohort")
    assert first.returncode == 1
    assert "failed: cohort" in first.stderr
    assert "no such thing" in first.stderr
    assert {path.stem for path in out.glob("*.txt")} == {*PARTS, "cohort.failed"} - {"cohort"}
    assert (out / "virtual.txt").read_text().splitlines() == [
        "Some device; torch 9; commit 1",
        "printed by benchmarks/device.py virtual --device cpu --small",
    ]
    second = start(tmp_path, *options)
    assert second.returncode == 0
    assert {path.stem for path in out.glob("*.txt")} == set(PARTS), "what failed is forgotten once it works"
    assert second.stderr.count("done before") == 5
    assert start(tmp_path, *options, COMMIT="2").stderr.count("done before") == 0, "rows of another commit"
    assert start(tmp_path, *options, "--again", COMMIT="2", PARTS="virtual").stderr.count("done before") == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--devise", "cpu"), "'--devise' is no option"),
        (("--device", "tpu"), "write cuda or cpu"),
        (("--device",), "write cuda or cpu"),
        (("--device", "cpu", "--out", str(SCRIPT.parents[1] / "results" / "gpu")), "is for what a GPU has measured"),
    ],
)
def test_what_cannot_be_is_said(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = start(tmp_path, *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "calls").read_text()
