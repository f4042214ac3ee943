"""A results folder that meets other data says so, and never mixes rows silently."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from syncnorm import environment
from syncnorm.config import Data, Devices, Domains, Optim, Run, describe, run_id
from syncnorm.study import Study
from syncnorm.study.plan.spec import expand
from syncnorm.study.report.provenance import provenance
from syncnorm.study.rows import Row, finished_row, read
from syncnorm.study.run import changes
from syncnorm.study.run.changes import changed_rows, stale_ids
from syncnorm.study.run.runner import run_study
from syncnorm.study.run.store import Store
from syncnorm.worlds import SAMPLES, fit

BASE = Run(
    data=Data("digits", size=8, train_limit=40, test_limit=20),
    model="mlp",
    model_options={"width": 4, "depth": 1},
    world=Devices(ranks=1, per_device_batch=20),
    optim=Optim(epochs=1),
)
STUDY = Study("small", "?", BASE, {"norm": ["bn", "none"]}, seeds=2)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Give every seed's data a made-up fingerprint, and return the runs whose data were loaded."""
    seen: list[Run] = []

    class World:
        def data(self, run: Run) -> "World":
            seen.append(run)
            self.fingerprint = f"{run.data.name} of seed {run.seed}"
            return self

    monkeypatch.setattr(changes, "world_of", lambda run: World())
    return seen


def rows_of(runs: list[Run], samples: Callable[[Run], str]) -> dict[str, Row]:
    return {
        run_id(run): {
            "config": describe(run),
            "metrics": {},
            "fingerprints": {SAMPLES: samples(run)},
            "environment": {"pillow": "10.0.0"},
        }
        for run in runs
    }


def test_data_that_did_not_change_are_loaded_once(loaded: list[Run]) -> None:
    """The first seed of each data set stands for all of them."""
    runs = expand(replace(STUDY, vary={"norm": ["bn", "none"], "data": [BASE.data, Data("digits-noisy")]}, seeds=5))
    rows = rows_of(runs[:-1], lambda run: f"{run.data.name} of seed {run.seed}")
    assert changed_rows(runs, rows) == []
    assert [(run.data.name, run.seed) for run in loaded] == [("digits", 0), ("digits-noisy", 0)]


def test_data_that_changed_are_said_with_all_their_seeds(loaded: list[Run]) -> None:
    runs = expand(replace(STUDY, seeds=3))
    rows = rows_of(runs[:-1], lambda run: "old" if run.seed < 2 else f"digits of seed {run.seed}")
    found = changed_rows(runs, rows)
    assert stale_ids(found, keep=False) == {run_id(run) for run in runs if run.seed < 2}
    assert {change.was for change in found} == {"old, by Pillow 10.0.0"}
    said = found[0].sentence(keep=True)
    now = environment.environment()["pillow"]
    assert said.startswith(
        f"content of data digits has changed (old, by Pillow 10.0.0 is now digits of seed 0, by Pillow {now})"
    )


def test_a_finished_study_loads_no_data(loaded: list[Run]) -> None:
    runs = expand(STUDY)
    assert changed_rows(runs, rows_of(runs, lambda run: "old")) == []
    assert loaded == []


def test_domains_are_named(loaded: list[Run]) -> None:
    runs = [replace(BASE, world=Domains(("digits", "digits-noisy")), seed=seed) for seed in (0, 1)]
    (change,) = changed_rows(runs, rows_of(runs[:1], lambda run: "old"))
    assert change.what == "content of data digits, digits-noisy"


def trained(study: Study, out: Path) -> None:
    """Train a study as its worker would, in this process."""
    with Store.open(out, study) as store:
        for run in expand(study):
            store.append(finished_row(study.name, fit(run)))


def tampered(out: Path) -> None:
    """Make the rows of a folder speak of other data."""
    rows = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    for row in rows:
        row["fingerprints"][SAMPLES] = "0" * 16
    (out / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("keep", [False, True])
def test_rows_on_other_data_are_trained_again_or_kept_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: bool
) -> None:
    out, study = tmp_path / "out", replace(STUDY, seeds=1)
    trained(study, out)
    tampered(out)
    run_study(replace(STUDY, vary={"norm": ["bn", "none", "gn"]}, seeds=1), out, jobs=1, wandb="off", keep=keep)
    assert "note: content of data digits has changed (0000000000000000" in capsys.readouterr().err
    results = read(out)
    assert len(results.finished) == 3
    doubts = [doubt for doubt in provenance(results) if "Different versions of samples of the data" in doubt]
    assert len(doubts) == keep


def test_other_seeds_and_other_data_are_no_other_version(tmp_path: Path) -> None:
    out = tmp_path / "out"
    trained(replace(STUDY, vary={"data": [BASE.data, replace(BASE.data, name="digits-noisy")]}), out)
    results = read(out)
    assert len({row["fingerprints"][SAMPLES] for row in results.finished}) >= 2
    assert not [doubt for doubt in provenance(results) if "Different versions" in doubt]
