"""Data that lie at their sites: a function a site, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from syncnorm.config import Clients, Data, Run
from syncnorm.data import make_federated_dataset
from syncnorm.data.partitions.sites import SITES, Site, load_site
from syncnorm.errors import UserError
from syncnorm.federated import simulate

GOOD = """
import numpy as np
def load(site, sites):
    rng = np.random.default_rng(site)
    def some(count):
        return rng.normal(size=(count, 2)).astype("float32"), np.arange(count) % 3
    return some(5 + site), some(3)
"""
AGREED: dict[str, Any] = {"shape": [2], "classes": 3}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "data.py"
    path.write_text(GOOD)
    return str(path)


def made(data: Data, site: Site | None = None, **world: Any) -> Any:
    return make_federated_dataset(data, Clients(**{"count": 3, **world}), 0, site=site)


def test_a_site_has_its_own_samples_and_no_others(file: str) -> None:
    everyone = made(Data(SITES, path=file, options=AGREED))
    assert everyone.complete
    for site in range(3):
        own = made(Data(SITES, options=AGREED), Site(site, file))
        assert not own.complete
        assert (own.shape, own.classes, own.count) == ((2,), 3, 3)
        assert torch.equal(own.x[own.train(site)], everyone.x[everyone.train(site)])
        for mine, theirs in zip(own.test(site), everyone.test(site), strict=True):
            assert torch.equal(mine, theirs)
        assert len(own.x) == 5 + site
        assert len(own.pool.test_x) == 3
        assert own.histogram(site).tolist() == np.bincount(np.arange(5 + site) % 3, minlength=3).tolist()
        assert not len(own.train((site + 1) % 3))


def test_a_server_has_none(file: str) -> None:
    server = made(Data(SITES, options=AGREED))
    assert (server.shape, server.classes, len(server.x), server.complete) == ((2,), 3, 0, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", r"has no function load\(site, sites\)"),
        ("import nothing_of_this_name", "cannot be imported: ModuleNotFoundError"),
        ("def load(site, sites): return open('gone.csv')", r"load\(1, 3\) of .* failed: FileNotFoundError"),
        ("def load(site): return 1", "failed: TypeError"),
        ("def load(site, sites): return 1", r"something else than \(x, y\), \(test_x, test_y\)"),
        (GOOD.replace('astype("float32")', "astype(int)"), "samples of torch.int64: scale them"),
        (GOOD.replace("(count, 2)", "(count, 4)"), r"training samples of shape \(4,\), and the others, or the run"),
        (GOOD.replace("% 3", "% 4"), "training labels must be whole numbers from 0 to 2"),
        (GOOD.replace("some(3)", "some(0)"), "test samples of shape .* with 0 labels: give at least one of each"),
        (GOOD.replace("rng.normal(", "np.nan * rng.normal("), "with NaN or infinite values"),
        (GOOD.replace("np.arange(count)", "np.arange(count + 1)"), "5 labels|6 labels|7 labels"),
    ],
)  # fmt: skip
def test_mistakes_in_the_function_are_sentences(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "data.py"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        load_site(str(path), 1, 3, (2,), 3)


@pytest.mark.parametrize("path", ["none.py", "data.txt", ""])
def test_a_file_that_is_no_module_is_said(path: str, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text(GOOD)
    with pytest.raises(UserError, match="is no Python file"):
        load_site(str(tmp_path / path), 0, 3)


@pytest.mark.parametrize(
    ("data", "world", "said"),
    [
        ({"options": {"classes": 3}}, {}, r"data.options.shape is None: write the shape .* such as \[1, 28, 28\]"),
        ({"options": {"shape": [2], "classes": 0}}, {}, "data.options.classes is 0"),
        ({"options": {**AGREED, "shap": 2}}, {}, "did you mean 'shape'"),
        ({"validation": 0.2}, {}, "give name, path and options alone"),
        ({"train_limit": 100}, {}, "give name, path and options alone"),
        ({}, {"skew": "quantity"}, "world.skew is quantity, and sites have their data already"),
        ({}, {"held_out": 1}, "world.held_out is 1"),
        ({}, {"unsampled": "average"}, "set world.weighting to uniform"),
    ],
)
def test_what_a_run_cannot_say_of_sites_is_refused(
    data: dict[str, Any], world: dict[str, Any], said: str, file: str
) -> None:
    with pytest.raises(UserError, match=said):
        made(replace(Data(SITES, path=file, options=AGREED), **data), **world)


def test_a_site_that_the_run_does_not_have_is_refused(file: str) -> None:
    with pytest.raises(UserError, match="this is site 3, and the run has 3 of them, from 0"):
        made(Data(SITES, options=AGREED), Site(3, file))


def test_a_simulation_needs_all_sites(file: str) -> None:
    run = Run(data=Data(SITES, options=AGREED), model="mlp", world=Clients(count=3, rounds=1, engine="loop"))
    with pytest.raises(UserError, match=r"the data lie at their sites: give data\.path"):
        simulate(run)
    assert simulate(replace(run, data=replace(run.data, path=file))).metrics["batch_norms"]
