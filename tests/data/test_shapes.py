"""The embedded segmentation task: deterministic by index, masks that fit, scenes, and test images of their own."""

import numpy as np
import pytest
import torch

from syncnorm.data import load
from syncnorm.data.embedded import shapes
from syncnorm.errors import UserError


def test_images_depend_on_their_index_alone_and_masks_have_every_class() -> None:
    data = load("shapes-photo", size=16, task="segmentation")
    assert (data.train_x.shape, data.test_x.shape) == ((960, 3, 16, 16), (320, 3, 16, 16))
    assert data.train_y.shape == (960, 16, 16)
    assert data.class_names == shapes.CLASSES
    assert data.classes == 5
    share = torch.bincount(data.train_y.flatten()) / data.train_y.numel()
    assert share.min() > 0.02
    assert 0.6 < share[0] < 0.85
    image, mask = shapes.draw(17, 16, "train")
    assert np.array_equal(mask, data.train_y[17].numpy())
    again, _ = shapes.draw(17, 16, "train")
    assert np.array_equal(image, again)
    assert "5 outputs for segmentation, 8 natural clients" in data.summary()


def test_an_object_is_seen_in_its_place_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the bare background: outside of the mask nothing changes, inside nearly everything."""
    image, mask = shapes.draw(3, 32, "train")
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "_shape", lambda kind, side: np.zeros((side, side), dtype=bool))
        patch.setattr(shapes, "_digit", lambda index, side, split: np.zeros((side, side), dtype=bool))
        bare, nothing = shapes.draw(3, 32, "train")
    assert not nothing.any()
    assert np.array_equal(image[:, mask == 0], bare[:, mask == 0])
    changed = (image != bare).any(0)
    assert changed[mask > 0].mean() > 0.99


def test_a_scene_has_its_photograph_and_its_light() -> None:
    data = load("shapes-photo", size=16, task="segmentation")
    assert data.natural is not None
    scenes = data.natural.train
    assert np.bincount(scenes).tolist() == [120] * 8
    assert np.bincount(data.natural.test).tolist() == [40] * 8
    means = [data.train_x[torch.from_numpy(scenes == k)].mean().item() for k in range(8)]
    spreads = [data.train_x[torch.from_numpy(scenes == k)].std((2, 3)).mean().item() for k in range(8)]
    for dark, bright in ((0, 2), (1, 3), (4, 6), (5, 7)):
        assert means[dark] < means[bright]
    assert all(np.isfinite(spreads))


def test_no_pixel_of_a_photograph_and_no_digit_is_in_both_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, np.ndarray] = {}
    photos = [np.arange(3 * 427 * 640).reshape(3, 427, 640).astype(float)] * 2
    monkeypatch.setattr(shapes, "photographs", lambda: photos)
    for split, columns in (("train", shapes.TRAIN_COLUMNS), ("test", shapes.TEST_COLUMNS)):
        used: list[np.ndarray] = []
        monkeypatch.setattr(shapes, "resample", lambda channel, size, used=used: used.append(channel) or channel)
        for index in range(200):
            shapes._background(index % 8, 32, columns, np.random.default_rng(index))
        seen[split] = np.unique(np.concatenate([part.ravel() for part in used]))
    assert len(np.intersect1d(seen["train"], seen["test"])) == 0
    _, train, test = shapes._digits()
    assert len(np.intersect1d(train, test)) == 0
    assert len(test) >= shapes.TEST


def test_sizes_out_of_range_get_a_sentence() -> None:
    with pytest.raises(UserError, match=r"data\.size is 8: shapes-photo can be 16 to 96 pixels wide"):
        load("shapes-photo", size=8, task="segmentation")
    assert shapes.draw(0, 96, "test")[0].shape == (3, 96, 96)
