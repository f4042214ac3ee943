"""The benchmarks' contenders take the same steps, and their parts print a table. Nothing here is timed."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_task_that_others_train_is_that_of_our_run() -> None:
    from peers.ours import begin, run_of, task_of
    from peers.task import farthest

    from syncnorm.config import Clients
    from syncnorm.federated import aggregate
    from syncnorm.federated.engines.engine import AutoEngine
    from syncnorm.federated.federation import Federation

    federation = Federation(run_of(Clients(count=20, rounds=2)), torch.device("cpu"))
    task = task_of(federation, rounds=2)
    state: dict[str, Tensor] = dict(task.state)
    for round_ in range(2):
        models = [task.model(state) for _ in range(task.clients)]
        for client, model in enumerate(models):
            task.train(model, round_, client)
        weights = [float(task.samples(client)) for client in range(task.clients)]
        state = aggregate(task.model(state), [model.state_dict() for model in models], weights)
    for engine in ("loop", "cohort"):
        ours = begin(federation, AutoEngine(engine))
        ours.play(), ours.play()
        assert farthest(task.state, ours.server.state) > 0.01
        assert farthest(state, ours.server.state) < 1e-4
        assert task.accuracy(ours.server.state) == pytest.approx(task.accuracy(state), abs=0.01)


@pytest.mark.dist
@pytest.mark.skipif(find_spec("flwr") is None, reason="needs flwr")
@pytest.mark.parametrize("ray", [False, pytest.param(True, marks=pytest.mark.slow)])  # which takes longest to start
def test_training_compares_contenders_that_end_with_the_same_model(
    ray: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import federated
    from federated import training
    from peers.task import farthest

    if not ray:
        monkeypatch.setattr(federated, "has", lambda package, *python: package != "ray" and bool(find_spec(package)))
    states = training(rounds=2, count=20)
    expected = {"syncnorm, loop", "syncnorm, cohort", "syncnorm, auto", "syncnorm, cohort, all cores"}
    expected |= {name for name, package in (("Flower, Ray", "ray"), ("pfl-research", "pfl")) if find_spec(package)}
    expected -= set() if ray else {"Flower, Ray"}
    assert set(states) == expected
    for name, state in states.items():
        assert farthest(states["syncnorm, loop"], state) < 1e-3, name
    printed = capsys.readouterr()
    assert all(name in printed.out for name in expected)
    assert printed.err == ""


@pytest.mark.dist
@pytest.mark.skipif(find_spec("flwr") is None, reason="needs flwr")
def test_every_client_that_does_nothing_replies(capsys: pytest.CaptureFixture[str]) -> None:
    from federated import doing_nothing

    doing_nothing(rounds=2, count=40, ray=False)
    assert "CohortGrid" in (printed := capsys.readouterr().out)
    assert printed.split()[-1] == str(3 * 4)


@pytest.mark.dist
def test_registered_clients_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    from federated import scale

    scale(rounds=2, counts=(100,))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("MB")] == ["100", "of"]


@pytest.mark.dist
def test_one_process_and_two_ranks_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    from federated import over_ranks
    from peers.task import farthest

    states = over_ranks(rounds=2, count=4, epochs=1, engines=["loop"])
    names = ["loop", "pfl-research"] if find_spec("pfl") else ["loop"]
    assert list(states) == [f"{name}, {ranks}" for name in names for ranks in (1, 2)]
    for name, state in states.items():
        assert farthest(states["loop, 1"], state) < 1e-3, name
    printed = capsys.readouterr()
    lines = [line.split()[:2] for line in printed.out.splitlines() if line.startswith("loop")]
    assert lines == [["loop,", "one"], ["loop,", "2"]]
    assert printed.err == ""


def test_a_part_that_is_written_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import federated

    monkeypatch.setattr(federated, "scale", lambda: print("measured"))
    monkeypatch.setattr("sys.argv", ["federated.py", "--part", "3", "--into", str(tmp_path)])
    federated.main()
    written = (tmp_path / "part-3.txt").read_text()
    assert "commit" in written
    assert "measured" in written
    monkeypatch.setattr(federated, "scale", lambda: pytest.fail("measured again"))
    federated.main()
    assert (tmp_path / "part-3.txt").read_text() == written


def test_hostile_clients_are_tabled_by_attack_and_aggregation(capsys: pytest.CaptureFixture[str]) -> None:
    from hostile import accuracy, cell, table

    table(["huge_variance"], ["mean", "krum"], seeds=1, rounds=1, count=4)
    first, head, none, attacked = capsys.readouterr().out.splitlines()
    assert head.split() == ["attack", "mean", "krum"]
    assert (none.split()[0], attacked.split()[0]) == ("none", "huge_variance")
    plain, robust = (accuracy(name, "none", 0, 1, count=4) for name in ("mean", "krum"))
    assert plain is not None
    assert robust is not None
    assert first == f"weighted mean without attackers: {plain:.1f}"
    assert none.split()[1:] == [f"{plain:.1f}", "(0.0)", f"{robust:.1f}", f"({plain - robust:.1f})"]
    assert cell([90.0, 80.0], [91.0, 84.0]) == " 85.0 (4.0)"
    assert cell([90.0, None], [91.0, 84.0]) == "ended 1 of 2"


def test_a_contender_that_fails_says_why() -> None:
    from peers.process import Contender

    with Contender("absent") as contender, pytest.raises(RuntimeError, match="No module named"):
        contender.wait()


def test_surgery_is_measured_on_any_model_by_the_same_rules() -> None:
    import architectures
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(4, 3, 8, 8)
    before = architectures.outputs(model, x)
    for norm in ("sync_bn", "ghost_bn", "gn", "ws"):
        assert architectures.through(model, norm, x, before) == ""
    assert architectures.through(model, "sync_bn", x, before + 1e-6) == "different"
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8))
    assert architectures.through(flat, "ws", x, architectures.outputs(flat, x)).startswith("refused: ")


def test_every_precision_takes_the_same_steps() -> None:
    from precision import PRECISIONS, compare

    found = compare("small_cnn", size=8, batch=4, repeats=1)
    assert list(found) == PRECISIONS
    assert all(seconds > 0 for seconds in found.values())


def test_the_model_of_an_all_gather_is_found_in_its_own_seconds() -> None:
    from growth.model import AlphaBeta, fit

    truth = AlphaBeta(2e-5, 3e-9, cores=8)
    sizes = [(ranks, size) for ranks in (2, 4, 16) for size in (8, 1000, 100_000)]
    found = fit([(ranks, size, truth.seconds(ranks, size)) for ranks, size in sizes], cores=8)
    assert found.alpha == pytest.approx(truth.alpha)
    assert found.beta == pytest.approx(truth.beta)
    assert truth.seconds(4, 1000) == pytest.approx(3 * (2e-5 + 3e-6))
    assert truth.seconds(16, 1000) == pytest.approx(15 * 2 * (2e-5 + 3e-6)), "two turns each"


def test_made_rows_are_those_of_a_finished_study(tmp_path: Path) -> None:
    from growth.rows import RUNS_OF_A_SEED, study_of, write_folder

    from syncnorm.study.rows import read

    study = study_of(RUNS_OF_A_SEED + 1)
    assert write_folder(tmp_path / "all", study) == 2 * RUNS_OF_A_SEED
    assert not read(tmp_path / "all").missing
    write_folder(tmp_path / "but_one", study, slice(-1))
    assert len(read(tmp_path / "but_one").missing) == 1


@pytest.mark.slow
@pytest.mark.dist
def test_costs_by_ranks_and_rows_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from scale import collectives, merged, resumed

    collectives((2,), (16, 64))
    resumed((300,), repeats=1)
    merged(300)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines if line[:1] == ["2"]] == [["2", "16"], ["2", "64"]]
    assert [line for line in lines if line[:1] == ["300"] and line[-1] == "MB"]
    assert [line[0] for line in lines if line[2:3] == ["rows"]] == ["merge", "report"]


def test_a_benchmark_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    from peers.blocks import Blocks

    path = tmp_path / "found.txt"
    Blocks(path, "commit 1").add("one", "one: fine", 1, 2)
    again = Blocks(path, "commit 1")
    assert list(again.found) == ["one"]
    again.add("two", "two: bad", 3, 4)
    assert again.totals(["one", "two"]) == [4, 6]
    assert not Blocks(path, "commit 2").found, "another commit starts anew"
    again.end(["two", "one"], "the end")
    assert path.read_text() == "commit 1\ntwo: bad\none: fine\nthe end\n"
    assert [one.name for one in tmp_path.iterdir()] == ["found.txt"]


def test_stacks_are_compared_with_runs_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    from stacked import apart, line, run_of, step_table, timed, together

    step_table({"small_cnn": (8,)}, (1, 2), turns=1)
    assert "small_cnn, 8x8, 8 ranks" in capsys.readouterr().out
    runs = line(run_of("small_cnn", 8, 8, precision="float64"), 2, seeds=True)
    (seconds, got), (_, expected) = timed(runs, together(runs)), timed(runs)
    assert seconds > 0
    assert {one.environment["stack"] for one in got} == {"2 runs at once"}
    assert max(apart(got, expected).values()) < 1e-10


def test_the_larger_network_is_that_of_the_paper() -> None:
    from peers.task import resnet20

    model = resnet20(3, 10)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sum(isinstance(one, torch.nn.Conv2d) for one in model.modules()) == 19
    assert sum(one.numel() for one in model.parameters()) == 269_722


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.skipif(find_spec("flwr") is None, reason="needs flwr")
def test_clients_whose_arithmetic_decides_end_with_the_same_model(capsys: pytest.CaptureFixture[str]) -> None:
    from federated import arithmetic
    from peers.task import farthest

    states = arithmetic(rounds=1, count=10)
    assert {"syncnorm, 1", "syncnorm, 2"} <= set(states)
    for name, state in states.items():
        assert farthest(states["syncnorm, 1"], state) < 1e-3, name
    assert "ResNet-20" in capsys.readouterr().out
