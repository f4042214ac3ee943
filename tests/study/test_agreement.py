from dataclasses import replace
from math import inf, nan

import pytest
from made_up import Fill, fake_row

from syncnorm.config import Devices, Run
from syncnorm.study.plan.spec import Study, expand, with_field
from syncnorm.study.report.analysis.agreement import compare, repeats
from syncnorm.study.rows import Agreement, Row, read


def pair(first: dict[str, float], other: dict[str, float]) -> list[Row]:
    run = Run(world=Devices(ranks=4, per_device_batch=8))
    twin = with_field(run, "engine", "torchrun")
    return [fake_row("s", run, **first), fake_row("s", twin, **other)]


def test_pairs_differ_in_the_field_alone(study: Study, fill: Fill) -> None:
    rows = read(fill(study)).finished
    comparison = compare(Agreement("engine"), rows)
    assert len(comparison.pairs) == 4
    for a, b in comparison.pairs:
        assert (a["config"]["world"].pop("engine"), b["config"]["world"].pop("engine")) == ("virtual", "torchrun")
        assert a["config"] == b["config"]
    assert comparison.verdict == "agree"
    assert comparison.differences == {"accuracy": 0.0, "test_loss": 0.0}


@pytest.mark.parametrize(("tolerance", "verdict"), [(1e-3, "agree"), (1e-4, "differ")])
def test_the_largest_difference_decides(tolerance: float, verdict: str) -> None:
    rows = pair({"accuracy": 0.5, "loss": 1.0, "mine": 1.0}, {"accuracy": 0.5, "loss": 1.0005, "other": 9.0})
    comparison = compare(Agreement("engine", tolerance), rows)
    assert comparison.differences == pytest.approx({"accuracy": 0.0, "loss": 0.0005})
    assert comparison.verdict == verdict
    assert comparison.worst["loss"] == tuple(rows)


def test_a_number_and_no_number_differ() -> None:
    rows = pair({"accuracy": 0.5}, {"accuracy": nan})
    assert compare(Agreement("engine"), rows).differences == {"accuracy": inf}
    assert compare(Agreement("engine"), rows).verdict == "differ"
    both = pair({"accuracy": nan}, {"accuracy": nan})
    assert compare(Agreement("engine"), both).verdict == "agree"


def test_without_a_pair_nothing_is_claimed(study: Study) -> None:
    rows = [fake_row("s", run) for run in expand(replace(study, also=()))]
    comparison = compare(Agreement("engine"), rows)
    assert comparison.pairs == []
    assert comparison.verdict == "not compared"
    assert repeats(Agreement("engine"), rows) == []


def test_devices_and_samples_per_device_change_together() -> None:
    runs = [Run(world=Devices(per_device_batch=batch, global_batch=32)) for batch in (4, 8, 32)]
    other = Run(world=Devices(per_device_batch=4, global_batch=64))
    rows = [fake_row("s", run, accuracy=0.5) for run in (*runs, other)]
    for over in ("per_device_batch", "ranks"):
        assert len(compare(Agreement(over), rows).pairs) == 2


def test_a_whole_norm_may_be_what_differs() -> None:
    rows = [fake_row("s", with_field(Run(), "norm", name), accuracy=0.5) for name in ("sync_bn", "ghost_bn")]
    assert len(compare(Agreement("norm"), rows).pairs) == 1


def test_runs_are_paired_by_seed_and_disjoint_seeds_give_no_pair() -> None:
    run = Run(world=Devices(ranks=4, per_device_batch=8))
    twin = with_field(run, "engine", "torchrun")

    def rows(one: Run, seeds: range) -> list[Row]:
        return [fake_row("s", replace(one, seed=seed), accuracy=seed / 10) for seed in seeds]

    (both,) = compare(Agreement("engine"), rows(run, range(0, 3)) + rows(twin, range(2, 5))).pairs
    assert [row["config"]["seed"] for row in both] == [2, 2]
    apart = compare(Agreement("engine"), rows(run, range(0, 3)) + rows(twin, range(3, 6)))
    assert (apart.pairs, apart.verdict) == ([], "not compared")
