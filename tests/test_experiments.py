"""Every experiment is imported, expanded and run for two steps with each of its norms."""

from dataclasses import replace
from pathlib import Path

import pytest

from syncnorm.cli import load_study
from syncnorm.config import Run, layout
from syncnorm.study.spec import expand, quicker
from syncnorm.training import fit

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))


def two_steps_of(run: Run) -> Run:
    """Return `run` cut to two steps of one epoch, on virtual ranks."""
    ranks, per_device_batch = layout(run.world)
    data = replace(run.data, train_limit=2 * ranks * per_device_batch, test_limit=20)
    world = replace(run.world, engine="virtual")
    return replace(run, data=data, world=world, optim=replace(run.optim, epochs=1))


def test_there_are_experiments() -> None:
    assert EXPERIMENTS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_two_steps(path: Path) -> None:
    study = load_study(str(path))
    assert study.quick, "an experiment has a quick version"
    assert len(expand(quicker(study))) < len(expand(study))
    runs = {run.norm.name: run for run in expand(study)}
    for run in runs.values():
        result = fit(two_steps_of(run))
        assert result.metrics["steps"] == 2
        assert 0 <= result.metrics["accuracy"] <= 1
