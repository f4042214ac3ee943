"""Data that do not fit on the device, or in memory: the same results as in memory, to the bit, in every world."""

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import DEVICES, run
from torch import nn
from torch.utils.data import IterableDataset

import syncnorm
from syncnorm.config import Clients, Data, Devices, Domains, Norm, Optim, Run, run_id
from syncnorm.data import load
from syncnorm.data.mapped import is_mapped
from syncnorm.data.sources import spool
from syncnorm.errors import UserError
from syncnorm.worlds import fit, forget

datasets = pytest.importorskip("datasets")
X = np.random.default_rng(0).integers(0, 255, (90, 3, 6, 5), dtype=np.uint8)
Y = np.arange(90) % 3
NAMED = datasets.ClassLabel(names=["one", "three", "two"])
OPTIM = Optim(lr=0.1, epochs=2)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCNORM_CACHE", str(tmp_path / "cache"))


class Dropping(nn.Sequential):
    """A network with a random layer, whose draws a loader of batches must not move."""

    def __init__(self, in_channels: int, classes: int, norm: Any, width: int = 4) -> None:
        first = nn.Conv2d(in_channels, width, 3, padding=1)
        super().__init__(first, norm(width), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(classes))
        self(torch.zeros(2, in_channels, 8, 8))


DIGITS = Data("digits", size=8, train_limit=96, test_limit=40, augment="shift", validation=0.2)
MODEL = f"{__name__}:Dropping"
RUNS = {
    "devices": Run(DIGITS, MODEL, world=Devices(ranks=2, per_device_batch=8, skew=50), optim=OPTIM),
    "domains": Run(
        DIGITS,
        MODEL,
        norm=Norm("domain_bn"),
        world=Domains(("digits", "digits-inverted", "digits-noisy"), unseen=("digits-noisy",), batch=16),
        optim=OPTIM,
    ),
    "loop": Run(DIGITS, MODEL, world=Clients(count=3, rounds=2, engine="loop", held_out=1), optim=OPTIM),
    "cohort": Run(
        DIGITS,
        world=Clients(count=4, rounds=2, noise=0.1, domains=("digits", "digits-inverted"), engine="cohort"),
        optim=OPTIM,
    ),
}


@pytest.mark.parametrize("world", RUNS)
def test_workers_and_files_change_no_bit(world: str) -> None:
    plain = fit(RUNS[world])
    for where in ({"workers": 2}, {"on_disk": True}, {"workers": 1, "on_disk": True}):
        forget()
        other = replace(RUNS[world], data=replace(DIGITS, **where))
        assert run_id(other) == plain.run_id
        found = fit(other)
        assert found.metrics == plain.metrics, where
        assert found.history == plain.history, where
        assert found.details == plain.details, where


def test_a_client_that_fails_leaves_the_others_batches_in_their_places() -> None:
    from syncnorm.federated.engines import loop
    from syncnorm.federated.federation import Federation
    from syncnorm.federated.local import Task

    federation = Federation(RUNS["loop"])
    local = federation.local(1)
    state = dict(federation.fresh(1))
    bad = {name: value for name, value in state.items() if "weight" not in name}
    batches = tuple(torch.arange(start, start + 8) for start in (0, 8, 16))
    tasks = [Task(client, batches, (False,) * 3, bad if client == 1 else state, client) for client in range(3)]
    pool = federation.population
    alone = loop.train(local, pool.x, pool.y, tasks)
    helped = loop.train(replace(local, workers=2), pool.x, pool.y, tasks)
    assert [bool(update.error) for update in helped] == [False, True, False]
    for one, other in zip(alone, helped, strict=True):
        assert one.loss == other.loss
        assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())


def stream(pictures: bool) -> Any:
    kind = datasets.Image() if pictures else datasets.Array3D(X.shape[1:], "uint8")

    def rows() -> Any:
        for x, y in zip(X, Y, strict=True):
            yield {"image": Image.fromarray(x.transpose(1, 2, 0)) if pictures else x, "label": int(y)}

    features = datasets.Features({"image": kind, "label": NAMED})
    return datasets.IterableDataset.from_generator(rows, features=features)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield np.zeros((1, 256, 256), np.float32), 1


def on_disk(folder: Path) -> Any:
    rows = {"image": [Image.fromarray(x.transpose(1, 2, 0)) for x in X], "label": Y.tolist()}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["one", "three", "two"])}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return datasets.load_from_disk(str(folder)).to_iterable_dataset()


def test_a_stream_is_written_once_and_gives_what_arrays_give(tmp_path: Path) -> None:
    given = {
        "arrays": {"x": X, "y": Y, "class_names": ("one", "three", "two")},
        "stream": stream(pictures=False),
        "pictures": stream(pictures=True),
        "arrow": on_disk(tmp_path / "arrow"),
        "rows": datasets.load_from_disk(str(tmp_path / "arrow")),
        "mapped": (np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, X.shape), Y),
    }
    given["mapped"][0][:] = X
    for name, value in given.items():
        syncnorm.register_data(f"large-{name}")(lambda value=value: value)
    plain = load("large-arrays", seed=3, validation=0.2)
    for name in given:
        found = load(f"large-{name}", on_disk=True, seed=3, validation=0.2)
        assert is_mapped(found.train_x), name
        assert found.fingerprint == plain.fingerprint, name
        assert name == "mapped" or found.class_names == plain.class_names, name
    with pytest.raises(UserError, match=r"IterableDataset without a length, a stream: set data\.on_disk"):
        load("large-stream")


def test_an_endless_stream_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    syncnorm.register_data("large-endless")(Endless)
    free = spool.shutil.disk_usage("/").free
    monkeypatch.setattr(spool, "CHECKED", 1 << 20)
    monkeypatch.setattr(spool, "SPARED", max(free - (1 << 24), 0))
    with pytest.raises(UserError, match=r"after [0-9]+ of them that failed .less than .* cut a stream that"):
        load("large-endless", on_disk=True)


def test_pictures_of_a_folder_lie_in_files_and_are_the_same(tmp_path: Path) -> None:
    """Grey ones come first, then one in colour, then one of 16 bits."""
    folder = tmp_path / "pictures"
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(X[number, 0]).save(folder / name / f"{number}.png")
        Image.fromarray(X[7].transpose(1, 2, 0)).save(folder / name / "6.png")
    for deep in (False, True):
        if deep:
            Image.fromarray(X[8, 0].astype(np.uint16) * 200).save(folder / "b" / "7.png")
        plain = load("mine", path=str(folder))
        found = load("mine", path=str(folder), on_disk=True)
        assert found.fingerprint == plain.fingerprint
        assert (found.changes, found.class_names, found.shape) == (plain.changes, plain.class_names, plain.shape)
    Image.fromarray(X[8, 0, :4]).save(folder / "b" / "8.png")
    with pytest.raises(UserError, match=r"different sizes \(4 to 6 pixels high, 5 to 5 wide\): give `size`"):
        load("mine", path=str(folder), on_disk=True)


ROWS, LENGTH = 1600, 1 << 15
"""Samples of 128 KiB: 210 MB as float32."""
ALLOWED = 190 << 20
"""Bytes of memory beyond what the imports take: less than the samples have."""


class Lazy(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Any:
        return np.full((1, LENGTH), row % 7, np.float32), row % 2


def program(where: str) -> None:
    """Train on more samples than memory may hold."""
    syncnorm.register_data("large-lazy")(Lazy)
    torch.manual_seed(0)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    limit = int(status["VmData"].split()[0]) * 1024 + ALLOWED
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    data = Data("large-lazy", on_disk=where == "disk")
    result = fit(Run(data, f"{__name__}:Flat", world=Devices(1, 50), optim=Optim(epochs=1)))
    print("accuracy", result.metrics["accuracy"])


class Flat(nn.Module):
    def __init__(self, in_channels: int, classes: int, norm: Any) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(1), nn.Linear(1, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.norm(x[:, :, ::64]).mean(2))
        return logits


def test_training_needs_less_memory_than_its_data(tmp_path: Path) -> None:
    for where, code in (("disk", 0), ("memory", 1)):
        done = run(__file__, where, imports=DEVICES)
        assert (done.returncode != 0) == bool(code), done
        assert ("accuracy" in done.stdout) == (not code), done


if __name__ == "__main__":
    import sys

    program(sys.argv[1])
