"""The one line that says what was loaded, and the fingerprint of its content."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import matplotlib
import pytest
import torch

from syncnorm.config import Clients, Data
from syncnorm.data import fingerprint, load, make_federated_dataset
from syncnorm.data.domain_pool import load_pool
from syncnorm.data.embedded.fonts import font_files
from syncnorm.errors import UserError

CPU = torch.device("cpu")


def test_a_data_set_prints_one_line():
    data = load("digits")
    expected = "digits: 1,437 training and 360 test images (3, 16, 16), 10 classes, 139 to 147 a class"
    expected += "; a stratified fifth, drawn by the seed, is the test"
    assert data.summary() == expected
    assert repr(data) == str(data) == f"<Dataset {expected}>"
    assert (
        load("activity-01")
        .summary()
        .startswith("activity-01: 264 training and 66 test signals (6, 64), 6 classes, 44")
    )


def test_classes_that_a_limit_leaves_to_the_test_are_said():
    data = load("digits", train_limit=3, test_limit=200)
    missing = sorted(set(range(10)) - set(data.train_y.tolist()))
    assert f"never learned: classes {', '.join(map(str, missing[:5]))} and {len(missing) - 5} more" in data.summary()


def test_a_pool_and_a_federated_data_set_print_one_line():
    data, names = Data("digits", train_limit=50, test_limit=10), ("digits", "digits-noisy")
    pool = load_pool(data, names, False, CPU, torch.float32)
    start = "2 domains (digits, digits-noisy): 100 training and 20 test images (3, 16, 16), 10 classes"
    assert pool.summary().startswith(start)
    made = make_federated_dataset(data, Clients(count=4, held_out=2, domains=names), seed=0)
    assert repr(made) == f"<FederatedDataset {pool.summary()}; 4 clients and 2 held out, skew iid>"


def test_the_fingerprint_is_of_the_content_and_not_of_names_or_types():
    data = load("digits", train_limit=50, test_limit=10)
    assert fingerprint(data) == fingerprint(replace(data, name="x", note="y"))
    assert fingerprint(data) == fingerprint(data.to("cpu", torch.float64))
    assert len(fingerprint(data)) == 16
    other = data.train_x.clone()
    other[7, 1, 2, 3] += 1
    labels = data.train_y.flip(0)
    moved = replace(data, train_x=data.train_x[1:], train_y=data.train_y[1:])
    swapped = replace(data, train_x=data.test_x, train_y=data.test_y, test_x=data.train_x, test_y=data.train_y)
    changed = [replace(data, train_x=other), replace(data, train_y=labels), moved, swapped]
    assert len({fingerprint(one) for one in (data, *changed)}) == 5


def test_pools_have_a_fingerprint_too():
    data, names = Data("digits", train_limit=50, test_limit=10), ("digits", "digits-noisy")
    pool = load_pool(data, names, False, CPU, torch.float32)
    made = make_federated_dataset(data, Clients(count=4, domains=names, noise=0.5), seed=0)
    assert fingerprint(made) == fingerprint(pool)
    assert fingerprint(pool) == fingerprint(load_pool(data, names, False, CPU, torch.float64))
    assert fingerprint(pool) != fingerprint(load_pool(data, names[::-1], False, CPU, torch.float32))


def test_a_matplotlib_without_a_font_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNCNORM_CACHE", str(tmp_path))
    fonts = tmp_path / "fonts" / "ttf"
    fonts.mkdir(parents=True)
    for file in (Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf"):
        if file.name != "cmtt10.ttf":
            (fonts / file.name).symlink_to(file)
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    said = rf"matplotlib {matplotlib.__version__} here has no cmtt10\.ttf: install matplotlib again"
    with pytest.raises(UserError, match=said):
        load("digits-fonts", size=9)


def test_the_fonts_have_the_same_bytes_in_every_version_of_matplotlib():
    """3.8.0, 3.8.4, 3.9.4, 3.10.0, 3.10.8 and 3.11.2 ship these bytes; hold the installed version to them."""
    content = b"".join(file.read_bytes() for file in font_files())
    assert sha256(content).hexdigest() == "a6374f49791a6a33b686eee119a43d021f70ec5a6f58921a65ec7fbb939ecd2d"
