"""The hub without a network: the library's two entry points are replaced at its edge."""

import datasets
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image

from syncnorm.data import load
from syncnorm.errors import UserError


def table(folder, count):
    """A split as an earlier download left it: an Arrow file on disk."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = [Image.fromarray(np.full((6, 6), i, np.uint8)) for i in range(count)]
    made = datasets.Dataset.from_dict({"image": rows, "label": [i % 2 for i in range(count)]}, features=features)
    made.save_to_disk(folder)
    return datasets.load_from_disk(folder)


@pytest.fixture
def no_network(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)


def test_a_hub_data_set_is_found_by_its_name(tmp_path, monkeypatch):
    splits = datasets.DatasetDict(train=table(tmp_path / "a", 10), test=table(tmp_path / "b", 4))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits if name == "owner/set" else None)
    data = load("owner/set")
    assert (data.shape, data.class_names) == ((1, 6, 6), ("no", "yes"))
    assert data.train_y.tolist() == [0, 1] * 5
    assert len(data.test_y) == 4
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded again"))
    assert load("owner/set").test_y.tolist() == data.test_y.tolist()


def test_without_a_network_an_earlier_download_is_used(tmp_path, monkeypatch, no_network):
    import datasets.config

    splits = datasets.DatasetDict(train=table(tmp_path / "a", 10), test=table(tmp_path / "b", 2))

    def offline_cache(_):
        assert datasets.config.HF_HUB_OFFLINE
        return splits

    monkeypatch.setattr(datasets, "load_dataset", offline_cache)
    before = datasets.config.HF_HUB_OFFLINE
    assert len(load("owner/earlier").test_y) == 2
    assert before == datasets.config.HF_HUB_OFFLINE


def test_without_a_network_and_a_download_the_ways_out_are_named(tmp_path, monkeypatch, no_network, capfd):
    """The library itself runs here: offline it must give up at once."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError, match=r"owner/nothing.*neither a path here.*hub cannot be reached.*`path`"):
        load("owner/nothing")
    assert capfd.readouterr() == ("", "")


def test_a_name_the_hub_does_not_know(monkeypatch):
    def missing(*_, **__):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", missing)
    with pytest.raises(UserError, match="'owner/mnsit' is not on the Hugging Face hub, or is private"):
        load("owner/mnsit")


def test_a_data_set_of_several_configurations_says_what_the_hub_says(monkeypatch):
    def refuse(_):
        raise ValueError("Config name is missing.\nPlease pick one")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match="'owner/set' of the Hugging Face hub: Config name is missing"):
        load("owner/set")
