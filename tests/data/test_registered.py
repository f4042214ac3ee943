"""Data sets that other people's modules register: what their functions may return, and what is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, TensorDataset

import syncnorm
from syncnorm.config import Clients, Data, Devices, Domains, Optim, Run, describe, run_id
from syncnorm.data import load, make_federated_dataset
from syncnorm.data.domain_pool import load_pool
from syncnorm.data.sources.registered import SOURCES
from syncnorm.devices.prepare import prepare
from syncnorm.errors import UserError
from syncnorm.study.plan.spec import value_at
from syncnorm.worlds import fit

RNG = np.random.default_rng(0)
X, Y = RNG.normal(3, 2, (40, 5)), np.arange(40) % 4
IMAGES = RNG.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)


@pytest.fixture
def register(monkeypatch):
    """Register for one test."""
    monkeypatch.setattr(SOURCES, "_items", dict(SOURCES._items))
    monkeypatch.setattr(SOURCES, "_sources", dict(SOURCES._sources))
    return syncnorm.register_data


def returning(register, value, name="mine"):
    register(name)(lambda: value)
    return load(name)


class Pictures(TorchDataset):
    """Samples one by one, as torchvision's data sets give them."""

    def __init__(self, samples, labels=Y):
        self.samples, self.labels = samples, labels

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index], self.labels[index]


WHOLES = {
    "arrays": (X, Y),
    "tensors": (torch.from_numpy(X), torch.from_numpy(Y)),
    "dict": {"x": X, "y": Y.tolist()},
    "train alone": {"train": (X, Y)},
    "torch": TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
    "names": (X, np.array(list("abcd"))[Y]),
}


@pytest.mark.parametrize("form", WHOLES)
def test_a_whole_is_split_and_normalised_by_its_training_part(register, form):
    data = returning(register, WHOLES[form])
    assert (len(data.train_y), len(data.test_y), data.shape, data.classes) == (32, 8, (5,), 4)
    assert torch.bincount(data.test_y).tolist() == [2] * 4
    assert data.train_x.double().mean(0).numpy() == pytest.approx(np.zeros(5), abs=1e-6)
    assert data.train_x.double().std(0, correction=0).numpy() == pytest.approx(np.ones(5), abs=1e-6)
    assert "a stratified fifth, drawn by the seed, is the test" in data.summary()
    assert data.class_names == (("a", "b", "c", "d") if form == "names" else ("0", "1", "2", "3"))


SPLITS = {
    "pairs": ((X, Y), (X[:8], Y[:8])),
    "dict of pairs": {"train": (X, Y), "test": (X[:8], Y[:8])},
    "dict of dicts": {"train": {"x": X, "y": Y}, "test": {"x": X[:8], "y": Y[:8]}},
    "torch": (Pictures(torch.from_numpy(X)), Pictures(X[:8])),
}


@pytest.mark.parametrize("form", SPLITS)
def test_a_split_is_kept(register, form):
    data = returning(register, SPLITS[form])
    assert (len(data.train_y), len(data.test_y)) == (40, 8)
    expected = (X - X.mean(0)) / X.std(0)
    assert data.train_x.numpy() == pytest.approx(expected, abs=1e-5)
    assert data.test_x.numpy() == pytest.approx(expected[:8], abs=1e-5)


def test_bytes_are_pixels_however_they_come(register):
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in IMAGES]
    forms = [(IMAGES, Y), (IMAGES.transpose(0, 2, 3, 1), Y), Pictures(pictures), Pictures(torch.from_numpy(IMAGES))]
    register("numbered")(lambda form=0: forms[form])
    one, *others = [load("numbered", options={"form": form}) for form in range(4)]
    assert one.shape == (3, 8, 8)
    assert all(torch.equal(one.train_x, other.train_x) for other in others)
    assert "channels moved from last to first" in others[0].summary()
    assert len({syncnorm.data.fingerprint(data) for data in (one, *others)}) == 1
    fixed = load("numbered", scale="fixed").train_x
    kept = torch.isin(torch.arange(40), torch.from_numpy(stratified_train(Y)))
    assert torch.equal(fixed, (torch.from_numpy(IMAGES)[kept].float() / 255 - 0.5) / 0.5)


def stratified_train(labels):
    from syncnorm.data.split import stratified_fifth

    return stratified_fifth(labels)[0]


def test_a_data_set_of_ours_stays_as_it_is(register):
    digits = load("digits", train_limit=50, test_limit=20)
    data = returning(register, digits)
    assert data.name == "mine"
    assert torch.equal(data.train_x, digits.train_x)
    assert torch.equal(data.test_y, digits.test_y)


def test_options_path_and_size_reach_a_function_that_names_them(register):
    got = {}

    @register("asking")
    def asking(path, size, scale=1.0, *, shift: int = 0):
        got.update(path=path, size=size, scale=scale, shift=shift)
        return X * scale + shift, Y

    load("asking", path="/data/mine", size=8, options={"scale": 2.0})
    assert got == {"path": "/data/mine", "size": 8, "scale": 2.0, "shift": 0}
    with pytest.raises(UserError, match="unknown option of data set 'asking' 'shft': did you mean 'shift'"):
        load("asking", options={"shft": 1})


def test_what_is_given_to_a_function_that_does_not_ask_is_refused(register):
    register("plain")(lambda: (X, Y))
    for field, value in (("path", "/x"), ("size", 8)):
        with pytest.raises(
            UserError, match=f"data.{field} is {value}: the function of data set 'plain' has no param"
        ):
            load("plain", **{field: value})
    with pytest.raises(UserError, match="data set 'plain' takes no options: leave out 'shift'"):
        load("plain", options={"shift": 1})
    with pytest.raises(UserError, match=r"data\.natural is site: it names a column of a table"):
        load("plain", natural="site")
    register("needy")(lambda amount: (X, Y))
    with pytest.raises(UserError, match=r"needy.*amount.*give it in data\.options"):
        load("needy")
    with pytest.raises(UserError, match=r"options.*'digits' is embedded, so leave it out"):
        load("digits", options={"a": 1})


NAN = X.copy()
NAN[7, 2] = np.nan
WRONG = {
    "nothing": (None, "data set 'mine' is None: return"),
    "number": (3, "is an int: return"),
    "three": ((X, Y, X), "is a tuple of 3: return"),
    "keys": ({"a": X}, "a dict with the keys a: it needs train and test, or x and y"),
    "more keys": ({"x": X, "y": Y, "z": Y}, "a dict with the keys x, y, z"),
    "lengths": ((X, Y[:-1]), "40 samples and 39 labels: give one for each"),
    "labels of two columns": ((X, np.stack([Y, Y], 1)), r"labels have shape \(40, 2\)"),
    "fractions": ((X, Y + 0.5), "label 0.5 is no whole number"),
    "no label": ((X, np.where(Y == 0, np.nan, Y)), "row 0 has no label"),
    "negative": ((X, Y - 1), "label -1 stands for no class"),
    "not finite": ((NAN, Y), "sample 7 has a value that is not finite"),
    "one class": ((X, Y * 0), "every training sample has the label '0'"),
    "one training class": (((X, Y * 0), (X, Y)), "every training sample has the label '0'"),
    "ids": ((X, np.arange(40)), "40 different labels on 40 samples"),
    "empty": ((X[:0], Y[:0]), "is empty: it has no sample"),
    "numbers": ((X[:, 0], Y), r"samples have shape \(\): a sample is an image"),
    "words": ((X.astype(str), Y), "samples are of type <U"),
    "mixed sizes": (Pictures([np.zeros((1, 8 + i % 2, 8)) for i in range(40)]), r"\(1, 8, 8\) and \(1, 9, 8\)"),
    "mixed pictures": (Pictures([Image.new("L", (8 + i % 2, 8)) for i in range(40)]), "8 to 9 wide.*transform"),
    "other shape": (((X, Y), (X[:, :3], Y)), r"shape \(5,\) and test samples \(3,\)"),
    "other type": (((IMAGES, Y), (IMAGES.astype(float), Y)), "of type uint8 and test samples of type float32"),
    "stream": (type("Stream", (IterableDataset,), {"__iter__": lambda self: iter(())})(), "Stream without a length"),
    "item": (Pictures(X, [(1, 2)] * 40), r"labels have shape \(40, 2\)"),
    "samples alone": (type("Bare", (Pictures,), {"__getitem__": lambda self, i: X[i]})(X), "item 0 is an? ndarray"),
    "beyond the names": ({"x": X, "y": Y, "class_names": ["a", "b"]}, "label 3 is beyond the 2 class names"),
    "not among the names": ({"x": X, "y": list("abcd") * 10, "class_names": list("abc")}, "label 'd' is not among"),
    "natural of one": ({"train": {"x": X, "y": Y, "natural": Y}, "test": (X, Y)}, "split test has no column natural"),
    "natural too short": ({"x": X, "y": Y, "natural": Y[:9]}, "40 samples and 9 values of natural"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_in_what_is_returned_get_a_sentence(register, case):
    value, words = WRONG[case]
    with pytest.raises(UserError, match=words) as error:
        returning(register, value)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_a_name_is_needed_and_must_be_free(register):
    with pytest.raises(UserError, match=r"syncnorm.register_data needs a name: write @syncnorm.register_data"):
        register(lambda: (X, Y))
    with pytest.raises(UserError, match="data set 'digits' is registered already, by syncnorm itself"):
        register("digits")(lambda: (X, Y))
    register("mine")(lambda: (X, Y))
    with pytest.raises(UserError, match=r"unknown data set 'mnie': did you mean 'mine'.*Known: .*mine"):
        load("mnie")


def sites(shift=0.0):
    """Feature vectors of three sites, each around a mean of its own."""
    site = np.repeat(["north", "south", "west"], 40)
    y = np.tile(np.arange(4), 30)
    x = np.random.default_rng(1).normal(0, 1, (120, 5)) + 10 * (site == "south")[:, None] + shift
    x += 3 * np.eye(4, 5)[y]
    return {"x": x, "y": y, "natural": site}


PROGRAM = """
import sys
from syncnorm.config import Data, Run
from syncnorm.worlds import fingerprints
print(fingerprints(Run(data=Data("mine")))["data mine"])
"""


@pytest.mark.dist
def test_the_source_of_a_registered_function_names_it_in_every_process(tmp_path):
    """Its fingerprint is the same in two processes, and another one once it was edited."""
    said = []
    for factor in (1, 1, 2):
        file = tmp_path / "own.py"
        file.write_text(
            "import syncnorm\n@syncnorm.register_data('mine')\n"
            f"def mine():\n    return [[{factor}.0], [2.0]] * 10, [0, 1] * 10\n"
        )
        plugins = json.dumps([{"module": "own", "file": str(file)}])
        environment = {**os.environ, "SYNCNORM_PLUGINS": plugins}
        (tmp_path / "program.py").write_text(PROGRAM)
        if not said:  # in a process with another hash seed than the forked ones
            fresh = subprocess.run(
                [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
            )
            said.append(fresh.stdout)
            continue
        done = run(tmp_path / "program.py", imports="syncnorm.devices.world", env=environment)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1] != said[2]


def test_only_what_is_set_names_a_run():
    """Runs from before these fields keep their ids."""
    plain = describe(Run())
    assert {"label", "natural", "options"}.isdisjoint(plain["data"])
    assert value_at(plain, "data.options") == {}
    set_ = Run(data=Data("sites", natural="site", label="kind", options={"shift": 1}))
    assert {"label": "kind", "natural": "site", "options": {"shift": 1}}.items() <= describe(set_)["data"].items()
    assert run_id(set_) != run_id(Run(data=Data("sites", natural="site", label="kind")))
    assert len({set_.data, Data("sites", natural="site", label="kind"), replace(set_.data)}) == 2


def test_what_is_registered_anew_is_loaded_anew(register):
    run = Run(data=Data("mine"), model="mlp", world=Devices(per_device_batch=8), optim=Optim(epochs=1))
    for labels in (Y, 3 - Y):
        register("mine")(lambda labels=labels: (X, labels))
        pool = load_pool(run.data, ("mine",), False, torch.device("cpu"), torch.float32)
        assert torch.equal(pool.y, load("mine").train_y)
        assert prepare(run, torch.device("cpu")).data.train_y.tolist() == pool.y.tolist()


def test_domains_are_values_of_a_column_and_share_the_scale_of_those_that_train(register):
    register("sites")(sites)
    names = ("north", "south", "west")
    pool = load_pool(Data("sites"), names, False, torch.device("cpu"), torch.float32, ("south",))
    assert pool.starts == (0, 32, 64, 96)
    assert pool.test_starts == (0, 8, 16, 24)
    seen = torch.cat([pool.x[:32], pool.x[64:]]).double()
    assert seen.mean(0).numpy() == pytest.approx(np.zeros(5), abs=1e-5)
    assert seen.std(0, correction=0).numpy() == pytest.approx(np.ones(5), abs=1e-5)
    assert pool.x[32:64].mean() > 3
    with pytest.raises(UserError, match="unknown domain of data set 'sites' 'nort': did you mean 'north'"):
        load_pool(Data("sites"), ("nort", "south"), False, torch.device("cpu"), torch.float32)


def test_a_domain_column_is_apart_from_that_of_clients(register):
    """Two hospitals are the domains, and six doctors, of whom each works in one, are the clients."""
    made = sites()
    keep = made["natural"] != "west"
    hospital, doctor = made["natural"][keep], np.tile(np.repeat([0, 1, 2], 4), 7)[:80] + 3 * np.repeat([0, 1], 40)
    register("mine")(lambda: {"x": made["x"][keep], "y": made["y"][keep], "natural": doctor, "domain": hospital})
    world = Clients(count=6, domains=("north", "south"), skew="natural")
    clients = make_federated_dataset(Data("mine"), world, seed=0)
    assert [clients.natural(client) for client in range(6)] == ["0", "3", "1", "4", "2", "5"]
    assert [clients.domain(client) for client in range(6)] == ["north", "south"] * 3
    assert "6 natural clients, 2 domains" in load("mine").summary()


SHAPES = {"mlp": (80,), "signal_cnn": (5, 16), "small_cnn": (5, 4, 4)}
WORLDS = [
    Devices(ranks=2, per_device_batch=8),
    Clients(count=3, rounds=2, skew="natural", batch=8, engine="loop"),
    Domains(domains=("north", "south", "west"), unseen=("west",), batch=8),
]


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.kind)
def test_all_worlds_train_on_a_registered_data_set(register, model, world):
    """Feature vectors, signals and images; clients and domains are the sites."""
    made = sites()
    x = np.repeat(made["x"], 16, axis=1).reshape(120, *SHAPES[model])
    register("sites")(lambda: {**made, "x": x})
    result = fit(Run(data=Data("sites"), model=model, world=world, optim=Optim(epochs=2)))
    assert result.metrics["accuracy"] > 0.3  # of four classes


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(UserError, match="data set 'table' is a dict: register a function"):
        syncnorm.register_data("table")({"train": None})  # type: ignore[type-var]
