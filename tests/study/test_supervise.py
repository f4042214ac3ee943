"""Launches under `launch/supervise.sh`: started afresh where they were killed, unless that would not help."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from syncnorm.config import Run
from syncnorm.federated import simulate

ROOT = Path(__file__).parents[2]
DYING = next((ROOT / "tests").rglob("dying_study.py"))
SMALL_RUNS = next((ROOT / "tests").rglob("small_runs.py")).parent
LAUNCH = ROOT / "launch"
Launch = subprocess.Popen[str]


def supervised(*command: str, **environment: str) -> Launch:
    """Start a command under the script."""
    path = os.pathsep.join([str(SMALL_RUNS), *filter(None, sys.path)])
    bin_ = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PYTHONPATH": path, "PATH": bin_, "OMP_NUM_THREADS": "1", "PAUSE": "0", **environment}
    return subprocess.Popen(
        ["sh", str(LAUNCH / "supervise.sh"), *command],
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
    )


def ended(launch: Launch, seconds: float = 100) -> tuple[int, str]:
    """Return the exit code of a launch, and what it wrote."""
    try:
        said, _ = launch.communicate(timeout=seconds)
    finally:
        launch.terminate()  # of one that hangs, so that the loop does not outlive the test
    return launch.returncode, said


def says(code: int) -> str:
    """Return the shell command that says a code and ends with 1, as torchrun does."""
    return f'echo {code} > "$SYNCNORM_EXIT_FILE"; exit 1'


@pytest.mark.parametrize(
    ("script", "code", "sentence"),
    [
        ("exit 0", 0, ""),
        ("exit 2", 2, "supervise: not started again, since the mistake would be the same\n"),
        (says(2), 2, "supervise: not started again, since the mistake would be the same\n"),
        (says(1), 1, "supervise: the study has ended, and runs have failed\n"),
    ],
)
def test_an_end_that_another_start_would_repeat_is_the_end(script: str, code: int, sentence: str) -> None:
    assert ended(supervised("sh", "-c", script)) == (code, sentence)


def test_starts_are_counted_unless_a_launch_has_lived() -> None:
    code, said = ended(supervised("sh", "-c", "exit 3", RESTARTS="2"))
    assert code == 1
    starts = re.findall(r"^supervise: ended with code 3 after \d+ s; start (\d) of 2 in 0 s$", said, flags=re.M)
    assert starts == ["1", "2"]
    assert said.endswith("supervise: given up after 2 starts in a row\n")


def test_a_launch_that_has_lived_starts_the_count_anew(tmp_path: Path) -> None:
    thrice = f'echo x >> "{tmp_path}/starts"; [ $(wc -l < "{tmp_path}/starts") -lt 4 ]'
    code, said = ended(supervised("sh", "-c", f"{thrice} && exit 3; exit 0", RESTARTS="1", HEALTHY="0"))
    assert code == 0, said
    assert said.count("start 1 of 1") == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_goes_on_to_the_command_and_ends_the_loop(number: signal.Signals, code: int, tmp_path: Path) -> None:
    script = f'trap "echo heard; kill \\$!; exit 7" TERM; sleep 90 & touch "{tmp_path}/ready"; wait $!'
    launch = supervised("sh", "-c", script)
    until(lambda: (tmp_path / "ready").exists())
    launch.send_signal(number)
    assert ended(launch) == (code, "heard\n")


def until(true: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@contextmanager
def study(folder: Path, lives: int) -> Iterator[dict[str, str]]:
    """Prepare the study whose second rank dies so often; at the end, hold its row against an undisturbed run."""
    sys.path.append(str(SMALL_RUNS))
    from small_runs import small_run

    (folder / "lives").write_text(str(lives))
    (folder / "calls").write_text("")
    yield {"SYNCNORM_TEST_LIVES": str(folder)}
    row = json.loads((folder / "out" / "runs.jsonl").read_text().splitlines()[-1])
    run: Run = small_run(count=4, rounds=6, method="silobn")  # whose algorithm does the same
    expected = simulate(run)
    assert row["metrics"] == expected.metrics
    assert row["history"] == expected.history
    assert len((folder / "calls").read_text()) < 2 * 6 + 6  # of 2 x 6: not twice from the start
    assert [one["rank"] for one in row["ranks"]] == [0, 1]


def options(folder: Path) -> list[str]:
    return [str(DYING), "--out", str(folder / "out"), "--checkpoint-every", "0", "--wandb", "off"]


@pytest.mark.dist
@pytest.mark.fault
@pytest.mark.timeout(700)
def test_a_killed_rank_costs_one_start(tmp_path: Path) -> None:
    with study(tmp_path, lives=1) as environment:
        launch = supervised("sh", str(LAUNCH / "torchrun_one_node.sh"), "2", *options(tmp_path), **environment)
        code, said = ended(launch, 600)
        assert code == 0, said
        assert said.count("start 1 of 10") == 1


@pytest.mark.slow  # one node's launch, above, is supervised alike
@pytest.mark.dist
@pytest.mark.fault
@pytest.mark.timeout(1000)
def test_a_killed_node_costs_one_start_of_each(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = f"127.0.0.1:{server.getsockname()[1]}"
    with study(tmp_path, lives=0) as environment:
        calls = tmp_path / "calls"
        environment |= {"HEAD": head, "NODES": "2", "SYNCNORM_TEST_PAUSE": "0.3", "PAUSE": "4"}
        many = ["sh", str(LAUNCH / "torchrun_many_nodes.sh"), "1", *options(tmp_path)]
        nodes = [supervised(*many, **environment) for _ in range(2)]
        until(lambda: len(calls.read_text()) >= 6, 300)
        other = next(node for node in nodes if not any(is_first(pid) for pid in below(node.pid)))
        for pid in below(other.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for node in nodes:
            code, said = ended(node, 600)
            assert code == 0, said
            assert said.count("supervise: ended with code") >= 1


def below(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found += [int(entry.name), *below(int(entry.name))]
    return found


def is_first(pid: int) -> bool:
    """Return whether a process is the first rank."""
    with suppress(OSError):
        return b"RANK=0" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False
