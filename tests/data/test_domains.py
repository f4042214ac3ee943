import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from syncnorm.config import Data
from syncnorm.data import DOMAINS, load
from syncnorm.data.sources.registered import embedded_pixels
from syncnorm.data.split import split_samples, stratified_fifth
from syncnorm.errors import UserError

UCI = sorted(set(DOMAINS) - {"digits-fonts"})


def digest(pixels):
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in pixels[:4])).hexdigest()


@pytest.mark.parametrize("name", DOMAINS)
def test_all_domains_have_one_shape_and_all_ten_classes(name):
    data = load(name)
    assert data.shape == (3, 16, 16)
    assert data.class_names == tuple("0123456789")
    assert data.train_x.dtype == torch.float32
    assert data.train_y.dtype == torch.int64
    for x, y, expected in ((data.train_x, data.train_y, 1437), (data.test_x, data.test_y, 360)):
        copies = 3 if name == "digits-photo" else 1
        assert len(x) == len(y)
        assert len(y) == pytest.approx(copies * expected, abs=3)
        shares = torch.bincount(y, minlength=10) / len(y)
        assert shares.min() > 0.09
        assert shares.max() < 0.11


@pytest.mark.parametrize("name", DOMAINS)
def test_the_training_split_sets_mean_zero_and_deviation_one_for_both(name):
    data = load(name)
    std, mean = torch.std_mean(data.train_x.double(), dim=(0, 2, 3), correction=0)
    assert mean.abs().max() < 1e-5
    assert (std - 1).abs().max() < 1e-5
    pixels = embedded_pixels(name)
    parts = split_samples(pixels, Data(name), 0, name)
    seen = torch.from_numpy(pixels.train_x[parts.train]).double() / 255
    by_hand = torch.from_numpy(pixels.train_x[parts.test]).double() / 255 - seen.mean((0, 2, 3), keepdim=True)
    by_hand /= seen.std((0, 2, 3), correction=0, keepdim=True)
    assert (data.test_x - by_hand).abs().max() < 1e-5


@pytest.mark.parametrize("name", UCI)
def test_no_domain_trains_on_what_another_tests_on(name):
    """Each domain alone has, for a seed, the same digits in the same order: those of one stratified fifth."""
    digits = load_digits()
    train, test = stratified_fifth(digits.target)
    assert set(train).isdisjoint(test)
    data = load(name)
    copies = len(data.test_y) // len(test)
    assert data.train_y.tolist() == np.tile(digits.target[train], copies).tolist()
    assert data.test_y.tolist() == np.tile(digits.target[test], copies).tolist()


def test_inverted_is_clean_turned_dark_on_light():
    clean, inverted = DOMAINS["digits"](16), DOMAINS["digits-inverted"](16)
    assert np.abs(255 - clean.train_x.astype(int) - inverted.train_x.astype(int)).max() <= 1


def test_the_three_crops_of_a_digit_differ_and_keep_the_digit():
    """Where the digit is black a photo is untouched, where it is white the photo is inverted: contrast appears."""
    photo, clean = DOMAINS["digits-photo"](16), DOMAINS["digits"](16)
    first, second = photo.train_x[:1797], photo.train_x[1797:3594]
    assert np.abs(first.astype(int) - second.astype(int)).mean() > 20
    reach = np.maximum(clean.train_x, 255 - clean.train_x.astype(int))
    assert (first <= reach + 1).all()  # |photo - digit| <= max(digit, 1 - digit) for photos in [0, 1]


def test_fonts_are_not_cut_off():
    """Ink inside; every digit is at least about half the side high."""
    x = DOMAINS["digits-fonts"](32).train_x[:, 0]
    rows = (x > 60).any(axis=2)
    assert rows.sum(axis=1).min() >= 14


@pytest.mark.dist
def test_every_domain_is_the_same_in_a_fresh_process():
    here = {name: digest(embedded_pixels(name)) for name in DOMAINS}
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_domains import DOMAINS, digest\n"
        "for name in DOMAINS: print(name, digest(DOMAINS[name](16)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
    )
    assert dict(line.split() for line in run.stdout.splitlines()) == here


def test_the_split_and_the_pixels_are_the_same_in_every_release():
    """Results are compared between releases. Means leave room for other versions of the resampling library."""
    _, test = stratified_fifth(load_digits().target)
    assert test[:8].tolist() == [1, 8, 14, 19, 20, 23, 24, 25]
    expected = {
        "digits": 78.1,
        "digits-photo": 97.5,
        "digits-fonts": 37.5,
        "digits-rotated": 76.8,
        "digits-inverted": 176.9,
        "digits-noisy": 103.7,
    }

    def tested(name):
        pixels = embedded_pixels(name)
        return pixels.train_x[split_samples(pixels, Data(name), 0, name).test]

    means = {name: round(float(tested(name).mean()), 1) for name in DOMAINS}
    assert means == pytest.approx(expected, abs=0.3)


def test_size_is_the_side_in_pixels():
    assert load("digits-photo", size=24, train_limit=20, test_limit=10).shape == (3, 24, 24)


def test_limits_keep_so_many_and_smaller_ones_a_subset():
    full, large, small = (load("digits", train_limit=n, test_limit=50) for n in (None, 200, 100))
    assert (len(full.train_y), len(large.train_y), len(small.train_y), len(small.test_y)) == (1437, 200, 100, 50)
    raw = DOMAINS["digits"](16).train_x

    def rows(data):  # undo the normalisation, which differs with the limit
        low, high = data.train_x.amin(), data.train_x.amax()
        return {tuple(x) for x in ((data.train_x - low) / (high - low) * 255).round().int().flatten(1).tolist()}

    assert rows(small) < rows(large) < {tuple(x) for x in raw.reshape(len(raw), -1).tolist()}


@pytest.mark.parametrize("option", ["size", "train_limit", "test_limit"])
def test_numbers_below_one_are_mistakes(option):
    with pytest.raises(UserError, match=rf"data\.{option} is 0.*at least 1"):
        load("digits", **{option: 0})


def test_a_size_that_photo_crops_do_not_allow_is_a_mistake():
    with pytest.raises(UserError, match=r"data\.size is 500.*8 to 96"):
        load("digits", size=500)


def test_a_misspelt_name_gets_the_nearest_and_the_other_ways():
    with pytest.raises(UserError, match=r"digits-foto.*did you mean 'digits-photo'.*path.*owner/name"):
        load("digits-foto")


def test_to_moves_images_and_keeps_labels_whole_numbers():
    data = load("digits", train_limit=10, test_limit=10).to("cpu", torch.float64)
    assert (data.train_x.dtype, data.train_y.dtype) == (torch.float64, torch.int64)


def test_a_fixed_scale_maps_every_domain_alike_and_keeps_the_shift_between_them():
    for name in ("digits", "digits-inverted"):
        data, pixels = load(name, scale="fixed"), embedded_pixels(name)
        parts = split_samples(pixels, Data(name), 0, name)
        for x, raw in ((data.train_x, pixels.train_x[parts.train]), (data.test_x, pixels.train_x[parts.test])):
            assert (x.double() - (torch.from_numpy(raw).double() / 127.5 - 1)).abs().max() < 1e-6
    with pytest.raises(UserError, match="unknown scale 'fixd': did you mean 'fixed'"):
        load("digits", scale="fixd")
