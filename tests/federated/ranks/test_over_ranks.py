"""Clients over ranks are those of one process: what ranks tell each other, who trains whom, and what all end with."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import CLIENTS, torchrun
from processes import run as run_process
from ranks import ok, run_ranks
from small_runs import bits, every_kind_of_tensor, small_run

from syncnorm.config import Clients, Run, run_id
from syncnorm.errors import UserError
from syncnorm.federated import simulate
from syncnorm.federated.federation import Federation
from syncnorm.federated.ranks.deal import deal
from syncnorm.moments import Moments
from syncnorm.training.ranks import launch
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.worlds import check

PROGRAM = Path(__file__).with_name("over_ranks_program.py")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the file of what all runs end with in one process."""
    file = str(tmp_path_factory.mktemp("alone") / "ends.pt")
    done = run_process(PROGRAM, "alone", file, imports=CLIENTS)
    assert done.returncode == 0, done.stderr
    return file


@pytest.mark.dist
@pytest.mark.parametrize(
    ("ranks", "engines"),
    [(2, ("loop", "cohort")), (3, ("cohort",)), pytest.param(4, ("loop",), marks=pytest.mark.slow)],
)
def test_every_policy_and_algorithm_equals_one_process(ranks: int, engines: Sequence[str], alone: str) -> None:
    torchrun(ranks, PROGRAM, "equal", alone, *engines, imports=CLIENTS)


@pytest.mark.dist
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    torchrun(2, PROGRAM, "resume", str(tmp_path), imports=CLIENTS)


@pytest.mark.dist
def test_a_batched_run_goes_on_bit_for_bit_with_as_many_ranks(tmp_path: Path) -> None:
    torchrun(2, PROGRAM, "same_ranks", str(tmp_path), imports=CLIENTS)


@pytest.mark.dist
def test_ranks_return_the_result_of_one_process_and_save_its_model(tmp_path: Path) -> None:
    torchrun(2, PROGRAM, "fit", str(tmp_path), imports=CLIENTS)


@pytest.mark.dist
@pytest.mark.fault
def test_a_rank_that_dies_is_named_and_the_same_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "lives").write_text("2")  # a study tries such a run twice
    environment = {**os.environ, "SYNCNORM_TEST_LIVES": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    study = str(PROGRAM.with_name("dying_study.py"))
    arguments = ("run", study, "--out", str(tmp_path / "out"), "--checkpoint-every", "0")

    def go(code: int) -> dict[str, Any]:
        (tmp_path / "calls").write_text("")
        done = run_process("syncnorm", *arguments, imports=CLIENTS, env=environment)
        assert done.returncode == code, done.stderr
        row: dict[str, Any] = json.loads((tmp_path / "out" / "runs.jsonl").read_text().splitlines()[-1])
        return row

    assert go(1)["error"].startswith("rank 1 of the torchrun launch of 2 ranks was killed by SIGKILL")
    row = go(0)
    assert len((tmp_path / "calls").read_text()) < 2 * 6  # not from the start
    expected = simulate(small_run(count=4, rounds=6, method="silobn"))  # whose algorithm does the same
    assert row["metrics"] == expected.metrics
    assert row["history"] == expected.history


def told(rank: int) -> dict[str, Any]:
    """Return what a rank tells: more of it, the higher the rank."""
    moments = Moments.of(torch.full((3, 2), float(rank)), 0)
    return {
        "tensors": [every_kind_of_tensor(client) for client in range(rank)],
        "moments": moments,
        "plain": (rank, "x", None),
    }


@pytest.mark.parametrize("size", [1, 2, 3])
def test_whatever_ranks_tell_arrives_bit_for_bit(size: int) -> None:
    def work(rank: int) -> Any:
        ranks = Ranks(rank, size)
        return ranks.gather(told(rank)), ranks.collect(told(rank)), ranks.told(lambda: told(2 + rank))

    for rank, (gathered, collected, broadcast) in enumerate(ok(run_ranks(size, work))):
        assert [same(one, told(peer)) for peer, one in enumerate(gathered)] == [True] * size
        here = range(size) if rank == 0 else [rank]
        assert [same(one, told(peer)) for peer, one in zip(here, collected, strict=True)] == [True] * len(here)
        assert same(broadcast, told(2))


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Compare what was told, to the bit."""
    pairs = zip(found["tensors"], expected["tensors"], strict=True)
    return (
        all(bits(one) == bits(other) and types(one) == types(other) for one, other in pairs)
        and torch.equal(found["moments"].mean, expected["moments"].mean)
        and found["plain"] == expected["plain"]
    )


def types(state: dict[str, torch.Tensor]) -> list[Any]:
    """Return what bytes do not say."""
    return [(name, value.dtype, value.shape) for name, value in state.items()]


def test_an_error_on_one_rank_is_heard_on_all() -> None:
    def work(rank: int, errors: dict[int, Exception]) -> str:
        def raise_() -> None:
            if rank in errors:
                raise errors[rank]

        try:
            Ranks(rank, 3).each(raise_)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    mistake, other = UserError("no such file."), ValueError("odd")
    for errors, expected in (
        ({}, ["nothing"] * 3),
        ({1: mistake}, ["UserError: rank 1: no such file."] * 3),
        (dict.fromkeys(range(3), mistake), ["UserError: no such file."] * 3),
        ({2: other}, ["RuntimeError: rank 2 failed: ValueError: odd"] * 2 + ["ValueError: odd"]),
    ):
        assert ok(run_ranks(3, lambda rank, errors=errors: work(rank, errors))) == expected


def test_the_longest_work_is_dealt_first() -> None:
    work = {0: 5.0, 1: 9.0, 2: 4.0, 3: 3.0, 4: 3.0}
    assert deal(work, 2, {}) == {1: 0, 0: 1, 2: 1, 3: 0, 4: 1}  # 9 + 3, and 5 + 4 + 3
    assert deal(dict.fromkeys(range(4), 1.0), 2, {}) == {0: 0, 1: 1, 2: 0, 3: 1}


def test_a_client_stays_with_its_owner_unless_that_evens_out_the_work() -> None:
    alike = dict.fromkeys(range(4), 1.0)
    assert deal(alike, 2, {0: 1, 1: 0, 2: 1, 3: 0}, moving=True) == {0: 1, 1: 0, 2: 1, 3: 0}
    assert deal(alike, 2, {0: 1, 1: 1, 2: 1}, moving=True) == {0: 1, 1: 0, 2: 1, 3: 0}
    assert deal(alike, 2, {0: 1, 1: 1, 2: 1}) == {0: 1, 1: 1, 2: 1, 3: 0}
    first = deal({0: 5.0, 1: 9.0, 2: 4.0, 3: 3.0}, 3, {})
    assert deal({0: 5.0, 1: 9.0, 2: 4.0, 3: 3.0}, 3, first, moving=True) == first


def test_the_number_of_ranks_is_no_part_of_a_run() -> None:
    runs = [Run(world=Clients(engine="torchrun", ranks=ranks)) for ranks in (None, 2, 3)]
    assert len({run_id(run) for run in runs}) == 1
    assert run_id(runs[0]) != run_id(Run(world=Clients()))
    assert [run.world.processes() for run in runs[1:]] == [2, 3]
    assert Clients().processes() is None
    assert Clients(count=1, engine="torchrun").processes() == 1


def test_one_rank_needs_no_torchrun() -> None:
    run = small_run(method="fedbn")
    alone = simulate(run)
    found = simulate(replace(run, world=replace(run.world, engine="torchrun", rank_engine="loop")))
    assert (found.metrics, found.history, found.details) == (alone.metrics, alone.history, alone.details)
    assert (found.environment["ranks"], found.environment["engine"]) == ("1", "loop")


@pytest.mark.parametrize(
    ("world", "sentence"),
    [
        ({"ranks": 2}, "ranks is 2, and the engine auto has none: set engine to torchrun."),
        ({"rank_engine": "loop"}, "rank_engine is loop, which only the engine torchrun has: set engine."),
        ({"engine": "torchrun", "ranks": 0}, "ranks is 0: it must be at least 1."),
        (
            {"engine": "torchrun", "ranks": 3, "participation": 0.1},
            "a round has 2 of 20 clients, too few for 3 ranks, each of which trains at least one: use at most 2",
        ),
        (
            {"engine": "torchrun", "rank_engine": "loop", "method": "fedtan"},
            "method fedtan has clients exchange statistics inside a step, which the engine loop cannot",
        ),
    ],
)
def test_ranks_that_cannot_be_get_one_sentence(world: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        check(Run(world=Clients(**world)))
    assert str(raised.value).startswith(sentence)


def test_another_number_of_ranks_than_torchrun_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match="this run needs 2 ranks and was started with 1: use torchrun --nproc-per-node"
    ):
        simulate(small_run(engine="torchrun", ranks=2))
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="this run needs 1 rank and was started with 4: use torchrun"):
        simulate(small_run(engine="torchrun", ranks=1))
    with pytest.raises(UserError, match="ranks is 0: it must be at least 1"):
        simulate(small_run(engine="torchrun", ranks=0))
    with pytest.raises(UserError, match="a round has 3 of 3 clients, too few for 4 ranks"):
        simulate(small_run(engine="torchrun"))


def template(federation: Federation) -> torch.nn.Module:
    """Return the first model of a federation."""
    return federation.models.template


def test_ranks_agree_on_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run()
    federation, here = Federation(run, torch.device("cpu")), launch.environment()
    monkeypatch.setattr(launch, "environment", lambda: {**here, "torch": f"2.{8 + dist.get_rank() // 2}"})

    def work(rank: int) -> None:
        with pytest.raises(UserError) as raised:
            launch.agreed(Ranks(rank, 3), run, lambda: federation, template)
        assert str(raised.value).startswith("the ranks differ in torch (2.8 on ranks 0 and 1; 2.9 on rank 2): give")

    ok(run_ranks(3, work))


def test_ranks_agree_on_run_and_first_model() -> None:
    runs = [small_run(seed=1), small_run(seed=2), small_run(seed=1)]
    federations = [Federation(run, torch.device("cpu")) for run in runs]
    with torch.no_grad():
        next(federations[2].models.template.parameters()).add_(1.0)

    def work(rank: int, chosen: Sequence[int]) -> str:
        one = chosen[rank]
        try:
            launch.agreed(Ranks(rank, len(chosen)), runs[one], lambda: federations[one], template)
        except UserError as error:
            return str(error)
        return "agreed"

    assert ok(run_ranks(2, lambda rank: work(rank, [0, 0]))) == ["agreed"] * 2
    for chosen, what, who in (
        ([0, 1, 0], "run", f"({run_id(runs[0])} on ranks 0 and 2; {run_id(runs[1])} on rank 1)"),
        ([0, 2, 2], "the first model", "on rank 0; "),
    ):
        for said in ok(run_ranks(3, lambda rank, chosen=chosen: work(rank, chosen))):
            assert said.startswith(f"the ranks differ in {what} (")
            assert who in said
            assert said.endswith("): give all ranks the same, then start again.")
