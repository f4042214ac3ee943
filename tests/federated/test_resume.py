"""A run that was killed goes on from its checkpoint to the bit-identical end."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from processes import CLIENTS, run
from small_runs import bits, small_run, start

from syncnorm.config import Run
from syncnorm.federated.checkpoint import Checkpoint
from syncnorm.federated.server.rounds import Rounds

PROGRAM = Path(__file__).with_name("resume_program.py")


@pytest.mark.fault
def test_runs_killed_at_any_moment_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    done = run(PROGRAM, str(tmp_path), str(seed), imports=CLIENTS)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 9
    for row in rows:
        assert 0 < row["first"] < 15, row["name"]
        assert row["resumed"] == row["whole"], row["name"]
        assert len(row["whole"]["history"]["train_loss"]) == 15
    assert rows[0]["whole"] == rows[1]["whole"]  # memory and disk


def with_checkpoint(run: Run, folder: Path) -> tuple[Rounds, Checkpoint]:
    rounds = start(run)
    return rounds, Checkpoint(folder, run, rounds, rounds.network, seconds=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("left", [0, 1, 100, 0.5, 0.999])
def test_a_torn_newest_file_falls_back_to_the_one_before(left: float, tmp_path: Path) -> None:
    run = small_run(method="fedbn", rounds=4)
    rounds, checkpoint = with_checkpoint(run, tmp_path)
    states = []
    for _ in range(3):
        rounds.play()
        checkpoint.save_if_due()
        states.append(bits(rounds.server.state))
    newest = tmp_path / "newest.pt"
    content = newest.read_bytes()
    newest.write_bytes(content[: int(left if left >= 1 else left * len(content))])
    again, checkpoint = with_checkpoint(run, tmp_path)
    assert checkpoint.resume()
    assert again.next == 2
    assert bits(again.server.state) == states[1]
    for one in (rounds, again):
        while one.next < 4:
            one.play()
    ends = [(bits(one.server.state), one.result(0.0).metrics, one.result(0.0).history) for one in (rounds, again)]
    assert ends[0] == ends[1]


def test_garbage_and_nothing_start_afresh(tmp_path: Path) -> None:
    run = small_run(method="fedbn")
    rounds, checkpoint = with_checkpoint(run, tmp_path / "missing")
    assert not checkpoint.resume()
    for name in ("newest.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 no checkpoint" * 50)
    rounds, checkpoint = with_checkpoint(run, tmp_path)
    assert not checkpoint.resume()
    assert rounds.next == 0
    rounds.play()
    checkpoint.save()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["newest.pt", "previous.pt"]
    _, checkpoint = with_checkpoint(run, tmp_path)
    assert checkpoint.resume()


def test_the_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    run = small_run(method="fedbn")
    rounds, checkpoint = with_checkpoint(run, tmp_path)
    rounds.play()
    checkpoint.save()
    for other in (replace(run, seed=1), small_run(method="silobn"), small_run(method="fedbn", rounds=3)):
        again, checkpoint = with_checkpoint(other, tmp_path)
        assert not checkpoint.resume()
        assert again.next == 0
        assert again.network.client_states([0, 1, 2]) == {}


def test_the_engine_that_was_chosen_stays_chosen(tmp_path: Path) -> None:
    run = small_run(engine="auto")
    rounds, checkpoint = with_checkpoint(run, tmp_path)
    rounds.play()
    other = {"loop": "cohort", "cohort": "loop"}[rounds.network.engine.name]  # type: ignore[attr-defined]
    rounds.network.engine.name = other  # type: ignore[attr-defined]
    checkpoint.save()
    again, checkpoint = with_checkpoint(run, tmp_path)
    assert again.network.engine.name == "auto"  # type: ignore[attr-defined]
    assert checkpoint.resume()
    assert again.network.engine.name == other  # type: ignore[attr-defined]
