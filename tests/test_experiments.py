"""Every experiment is imported, expanded, and run for two steps or rounds with each of its norms and methods."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from made_up_har import make_har
from PIL import Image

from syncnorm.config import Clients, Devices, Domains, Run, layout
from syncnorm.data import DOMAINS
from syncnorm.study.plan.about import about_study
from syncnorm.study.plan.load import load_study
from syncnorm.study.plan.override import quicker
from syncnorm.study.plan.spec import expand
from syncnorm.study.report.plots.check import check_plots
from syncnorm.tasks import task_named
from syncnorm.worlds import fit

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))


def two_steps_of(run: Run, world: Devices) -> Run:
    """Return a run cut to two steps of one epoch, on virtual ranks."""
    ranks, per_device_batch = layout(world)
    data = replace(run.data, train_limit=2 * ranks * per_device_batch, test_limit=20)
    return replace(run, data=data, world=replace(world, engine="virtual"), optim=replace(run.optim, epochs=1))


def two_rounds_of(run: Run, world: Clients) -> Run:
    """Return a run cut to two rounds of one step, with few samples and clients, all in this process."""
    cut = replace(
        world,
        rounds=2,
        local_steps=1,
        batch=min(world.batch, 8),
        count=min(world.count, 12 * max(1, len(world.domains))),
        held_out=min(world.held_out, max(2, len(world.unseen))),
        alpha=None if world.alpha is None else max(world.alpha, 0.5),
        small_batch="use_running",
        engine="auto" if world.engine == "flower" else world.engine,
    )
    return replace(run, data=replace(run.data, train_limit=600, test_limit=100), world=cut)


def two_epochs_of(run: Run, world: Domains) -> Run:
    """Return a run cut to two epochs of few steps, with the unseen domains and two others."""
    others = [name for name in world.domains if name not in world.unseen][:2]
    cut = replace(world, domains=(*world.unseen, *others), batch=8, test_batch=8, adapt_samples=8, engine="virtual")
    data = replace(run.data, train_limit=20, test_limit=20)
    return replace(run, data=data, world=cut, optim=replace(run.optim, epochs=2), evaluate_every=1)


def with_made_up_data(run: Run, folder: Path) -> Run:
    """Return a run of data that are not embedded on noise that lies at `folder`, ten classes a domain."""
    domains = () if isinstance(run.world, Devices) else run.world.domains
    if run.data.name == "cifar10":
        make_noise(folder, 20)
        return replace(run, data=replace(run.data, path=str(folder)))
    if all(name in DOMAINS or name.startswith(("activity", "biosignal")) for name in domains):
        return run
    if domains[0].startswith("subject"):
        root, numbers = folder / "har", [int(name.partition("-")[2]) for name in domains]
        if not root.exists():
            make_har(root, {"train": numbers[:3], "test": numbers[3:]})
        return replace(run, data=replace(run.data, path=str(root)))
    for domain in set(domains) - set(DOMAINS):
        make_noise(folder / domain, 6)
    return replace(run, data=replace(run.data, path=str(folder), size=min(run.data.size or 32, 32)))


def make_noise(folder: Path, samples: int) -> None:
    """Write images of ten classes, so many of each, unless they are there."""
    rng = np.random.default_rng(0)
    for label, number in product(range(10), range(samples)):
        image = folder / f"{label}" / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        if not image.exists():
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(image)


def without_choice(run: Run) -> Run:
    """Return a run without validation: cut data are too small to hold out a sample of each class."""
    return replace(run, data=replace(run.data, validation=0.0), select="last")


def what_is_tried(run: Run) -> tuple[str, ...]:
    """Return what one run is enough of."""
    if isinstance(run.world, Clients):
        return (run.norm.name, run.world.method, run.world.algorithm)
    if isinstance(run.world, Domains):
        return (run.norm.name, str(run.norm.options), str(run.model_options), run.world.adapt, run.world.batches)
    return (run.norm.name,)


def test_there_are_experiments() -> None:
    assert EXPERIMENTS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_two_steps(path: Path, tmp_path: Path) -> None:
    study = load_study(str(path))
    assert study.quick, "an experiment has a quick version"
    assert len(expand(quicker(study))) < len(expand(study))
    for run in map(without_choice, {what_is_tried(run): run for run in expand(study)}.values()):
        if isinstance(run.world, Clients):
            result = fit(with_made_up_data(two_rounds_of(run, run.world), tmp_path))
            assert len(result.history["train_loss"]) == 2
        elif isinstance(run.world, Domains):
            result = fit(with_made_up_data(two_epochs_of(run, run.world), tmp_path))
            assert len(result.history["unseen_accuracy" if run.world.unseen else "seen_accuracy"]) == 2
        else:
            result = fit(with_made_up_data(two_steps_of(run, run.world), tmp_path))
            assert result.metrics["steps"] == 2
        assert 0 <= result.metrics[task_named(run.task).metric] <= 1


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_figure_has_runs_with_each_value_that_it_asks_for(path: Path) -> None:
    study = replace(load_study(str(path)), tune=None)  # tuned runs are known only when trials have been made
    about = about_study(study)
    check_plots(study, expand(study))
    for figure in study.figures:
        for name, wanted in figure.where.items():
            for value in wanted if isinstance(wanted, list) else [wanted]:
                one = replace(figure, where={**figure.where, name: value})
                assert any(one.fits(fields) for fields in about.runs.values()), (
                    f"{figure}: no run with {name} {value}"
                )
